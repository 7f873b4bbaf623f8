# SPDX-License-Identifier: Apache-2.0
"""A change of sparsity, single-weight masks, and scoring, beside plain torch.

python bench/bench_mask_update.py [change elements following score] [--device cuda] [--repeats 15]

The model is an ESPnet-size FastSpeech2 (37.1 M parameters) in blocks of 64; a change goes from 80 %
to 40 % sparsity and restores initial values.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import cast

import common
import torch
from bench_train_step import VOCABULARY, make_batch
from torch import Tensor

from sniper import NewWeights, Sniper
from sniper.ops.layout import BlockLayout
from sniper.ops.rebuild import Change, rebuild, rebuild_reference
from sniper.sparsity.masking import (
    Fixed,
    Following,
    MaskStages,
    nested_masks,
    nested_masks_reference,
)
from sniper.sparsity.targets import BlockTargets
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config

BLOCK, HIGH, LOW = 64, 0.8, 0.4
WEIGHTS = 37_100_000
RESTORED = NewWeights(restore_init=True, prime_moments=0.0)


class Changes:
    """A model at 80 % sparsity, and what it takes to bring it to 40 %, again and again: each of
    `providers()` is called after a `reset()`.
    """

    def __init__(self, device: torch.device):
        torch.manual_seed(0)
        model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY)).to(device)
        schedule = {0: HIGH, 1: LOW, 2: 0.0}
        self.sniper = Sniper(model, schedule, block_size=BLOCK, new_weights=RESTORED)
        # The loss makes every weight's saliency its square: as good as any other here.
        loss = lambda m, b: torch.stack([p.square().sum() for p in m.parameters()]).sum()  # noqa: E731
        self.sniper.score([None], loss)
        self.sniper.step(0)
        self.layers = cast(BlockTargets, self.sniper._targets).layers
        self.plan = cast(MaskStages, self.sniper._scheduled)
        self.init = self.sniper._init
        new = sum(self.plan.counts[LOW].values()) - sum(self.plan.counts[HIGH].values())
        self.source = torch.rand(new * BLOCK * BLOCK, device=device)
        self.target = torch.empty_like(self.source)

    def _to(self, sparsity: float) -> list[Change]:
        masks, counts = self.plan.masks[sparsity], self.plan.counts[sparsity]
        return [
            Change(cast(BlockLayout, layer.layout), layer.weight, masks[n], counts[n], self.init[n])
            for n, layer in self.layers.items()
        ]

    def providers(self) -> dict[str, Callable[[], None]]:
        """What brings about the change, and the copy that bounds it."""
        return {
            "Sniper.step": self.step,
            "extension": self.extension,
            "torch": self.reference,
            "copy floor": self.floor,
        }

    def check(self) -> None:
        """Sniper.step, extension and reference must leave the same weights and index arrays."""
        states = []
        for name, call in self.providers().items():
            if name != "copy floor":
                self.reset()
                call()
                states.append(self.state())
        first, *others = states
        same = all(torch.equal(a, b) for x in others for a, b in zip(first, x, strict=True))
        if not same:
            raise SystemExit("change: extension and reference differ, not timed")

    def reset(self) -> None:
        """Back to 80 %."""
        rebuild(self._to(HIGH))
        self.sniper.sparsity = HIGH

    def step(self) -> None:
        """What a training loop waits for."""
        self.sniper.step(1)

    def extension(self) -> None:
        rebuild(self._to(LOW))

    def reference(self) -> None:
        rebuild_reference(self._to(LOW))

    def floor(self) -> None:
        """The bytes of the new blocks, copied in one go."""
        self.target.copy_(self.source)

    def state(self) -> list[Tensor]:
        """Weights and index arrays after a change."""
        layers = self.layers.values()
        return [
            t.clone()
            for x in layers
            for t in (x.weight.detach(), *cast(BlockLayout, x.layout).written())
        ]


def timed(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Milliseconds of one call."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def bench_change(device: torch.device, repeats: int) -> list[common.Row]:
    changes = Changes(device)
    providers = changes.providers()
    changes.check()
    times: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(repeats):
        for name, call in providers.items():
            changes.reset()
            times[name].append(timed(call, synchronizer(device)))
    megabytes = changes.source.numel() * 4 / 1e6
    blocks = sum(changes.plan.masks[LOW][n].numel() for n in changes.layers)
    shape = f"{len(changes.layers)} layers, {blocks} blocks, {megabytes:.0f} MB of new blocks"
    return rows("mask_update", shape, BLOCK, 1 - LOW, "80->40", times, "torch", device)


def element_providers(weights: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Masks of single weights: the largest of `weights` values; checked against each other."""
    values = torch.randn(weights, device=device).mul_(torch.randn(weights, device=device)).abs_()
    k = int(HIGH * weights)
    providers: dict[str, Callable[[], Tensor]] = {
        "extension": lambda: nested_masks({"w": values}, [HIGH], Fixed(1.0)).masks[HIGH]["w"],
        "torch": lambda: values > torch.kthvalue(values, k).values,
    }
    if not torch.equal(*(call() for call in providers.values())):
        raise SystemExit("elements: extension and kthvalue differ, not timed")
    return providers


def bench_elements(device: torch.device, repeats: int) -> list[common.Row]:
    providers = element_providers(WEIGHTS, device)
    times = common.time_side_by_side(providers, repeats, synchronizer(device))
    shape = f"{WEIGHTS} values"
    return rows("element_mask", shape, 1, 1 - HIGH, "select", times, "torch", device)


def bench_following(device: torch.device, repeats: int) -> list[common.Row]:
    """The masks of three stages with a cap that follows, of blocks and of single weights."""
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY))
    weights = {n: p.shape for n, p in model.named_parameters() if "norm" not in n}
    blocks = {n: (math.ceil(math.prod(shape) / BLOCK**2),) for n, shape in weights.items()}
    found = []
    for what, shapes in (("blocks", blocks), ("single weights", weights)):
        scores = {n: torch.rand(shape, device=device) for n, shape in shapes.items()}
        args = (scores, [HIGH, LOW, 0.0], Following(0.1))
        providers = {
            "extension": functools.partial(nested_masks, *args),
            "torch": functools.partial(nested_masks_reference, *args),
        }
        ours, theirs = (call() for call in providers.values())
        if ours.counts != theirs.counts:
            raise SystemExit("following: extension and torch differ, not timed")
        times = common.time_side_by_side(providers, repeats, synchronizer(device))
        shape = f"{len(scores)} parameters, {sum(s.numel() for s in scores.values())} {what}"
        block = BLOCK if what == "blocks" else 1
        found += rows("following_masks", shape, block, 1 - HIGH, "stages", times, "torch", device)
    return found


def bench_score(device: torch.device, repeats: int, batches: int = 2) -> list[common.Row]:
    """Seconds of scoring on `batches` batches beside as many forwards and backwards."""
    torch.manual_seed(0)
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY)).to(device)
    schedule = {0: HIGH, 1: LOW, 2: 0.0}
    sniper = Sniper(model, schedule, block_size=BLOCK, cap=Fixed(0.75), new_weights=RESTORED)
    batch = make_batch().to(device)

    def backward() -> None:
        for _ in range(batches):
            model.loss(batch)[0].backward()
            model.zero_grad(set_to_none=True)

    providers = {
        "score": lambda: sniper.score(
            [batch] * batches, lambda m, b: cast(FastSpeech2, m).loss(b)[0]
        ),
        "forward+backward": backward,
    }
    times = common.time_side_by_side(providers, repeats, synchronizer(device))
    shape = f"espnet, {batches} batches of 8x540"
    return rows("score", shape, BLOCK, 1 - HIGH, "score", times, "forward+backward", device)


def rows(
    op: str,
    shape: str,
    block: int,
    density: float,
    pass_: str,
    times: dict[str, list[float]],
    base: str,
    device: torch.device,
) -> list[common.Row]:
    """A row for each provider, with the time of `base` over its own; printed too."""
    cuts = {name: common.percentiles(t) for name, t in times.items()}
    for name, (p20, p50, p80) in cuts.items():
        ratio = cuts[base][1] / p50
        print(f"{op} {name}: {p50:.2f} ms ({p20:.2f} to {p80:.2f}), {base} / this {ratio:.2f}")
    what = {"op": op, "shape": shape, "block": block, "density": density, "dtype": "float32"}
    return common.rows(cuts, cuts[base][1], device, pass_=pass_, **what)


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Waits for the device."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


BENCHES = {
    "change": bench_change,
    "elements": bench_elements,
    "following": bench_following,
    "score": bench_score,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", nargs="*", choices=[*BENCHES, []], help="all without any")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    found = [row for w in args.which or BENCHES for row in BENCHES[w](device, args.repeats)]
    if not args.no_save:
        print(common.append_rows(f"mask_update_{device.type}", found))


if __name__ == "__main__":
    main()
