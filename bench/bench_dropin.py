# SPDX-License-Identifier: Apache-2.0
"""One training step of somebody else's model, block-sparse beside itself dense.

python bench/bench_dropin.py --device cpu [--sparsities 0.8] [--repeats 7] [--profile]

Hugging Face's FastSpeech2Conformer at its default size (70 million parameters), 8 utterances of 90
tokens and 540 frames: forward, backward, gradient clipping and Adam. `sniper.sparsify` takes its
feed-forward and attention layers; everything else runs as Hugging Face wrote it, once with torch's
dropout, depthwise convolutions, attention and optimizer and once, on both sides, with
`fast_dropout`, `fast_depthwise`, `fast_attention` and `sniper.optim.Adam`. What a step spends
outside those layers bounds the ratio, however fast they are, and is reported.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any, cast

import common
import torch
from torch import Tensor, nn
from transformers import FastSpeech2ConformerConfig, FastSpeech2ConformerModel

from sniper import densify, sparsify
from sniper.layers.convert import SparsifyReport
from sniper.layers.masked import BlockMaskedLayer
from sniper.ops import dispatch
from sniper.optim import Adam

UTTERANCES, TOKENS, FRAMES_A_TOKEN = 8, 90, 6
INCLUDE = ("*.feed_forward*", "*.self_attn.*")


def make_batch(config: FastSpeech2ConformerConfig) -> dict[str, Tensor]:
    """Random speech of equal lengths."""
    generator = torch.Generator().manual_seed(0)
    shape = (UTTERANCES, TOKENS)
    mel = (UTTERANCES, TOKENS * FRAMES_A_TOKEN, config.num_mel_bins)
    return {
        "input_ids": torch.randint(1, config.vocab_size, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "spectrogram_labels": torch.randn(mel, generator=generator),
        "duration_labels": torch.full(shape, FRAMES_A_TOKEN),
        "pitch_labels": torch.randn(*shape, 1, generator=generator),
        "energy_labels": torch.randn(*shape, 1, generator=generator),
    }


class Step:
    """A model with its optimizer; calling it trains one step and gives the loss.

    Args:
        ours: whether `sniper.optim.Adam` clips, updates and clears.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], ours: bool = False):
        self.model, self.batch = model.train(), batch
        if ours:
            self.optimizer = Adam(model.parameters(), lr=1e-4, max_norm=1.0, clear=True)
        else:
            self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> float:
        loss = self.model(**self.batch).loss
        loss.backward()
        if not isinstance(self.optimizer, Adam):
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if not isinstance(self.optimizer, Adam):
            self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def sparse_copy(
    model: FastSpeech2ConformerModel, sparsity: float, block: int
) -> tuple[FastSpeech2ConformerModel, SparsifyReport]:
    """A copy whose feed-forward and attention layers have random masks of this sparsity, and the
    report.
    """
    model = copy.deepcopy(model)
    report = sparsify(model, block, include=INCLUDE)
    generator = torch.Generator().manual_seed(0)
    for name in report.taken:
        layer = cast(BlockMaskedLayer, model.get_submodule(name))
        scores = torch.rand(layer.block_mask_shape, generator=generator)
        cut = scores.flatten().kthvalue(max(1, round(sparsity * scores.numel()))).values
        layer.set_block_mask(scores > cut if sparsity else scores >= 0)
    return model, report


def with_switches(model: FastSpeech2ConformerModel, block: int) -> FastSpeech2ConformerModel:
    """The dense model with our dropout, depthwise convolutions and attention, to tell their share
    of the gain from that of the layers.
    """
    sparsify(
        model, block, include=INCLUDE, fast_dropout=True, fast_depthwise=True, fast_attention=True
    )
    return model  # without masks its layers are torch's


def check(
    sparse: FastSpeech2ConformerModel, dense: FastSpeech2ConformerModel, batch: dict[str, Tensor]
) -> None:
    """The dense model with the same zeros must give the same loss and input gradients; dropout is
    off, since torch draws it in memory order.
    """
    modules = [*sparse.modules(), *dense.modules()]
    rates = [(m, m.p) for m in modules if isinstance(m, nn.Dropout)]
    for m, _ in rates:
        m.p = 0.0
    found = []
    for side in (sparse, dense):
        loss = side.train()(**batch).loss
        loss.backward()
        grad = cast(Tensor, cast(nn.Embedding, side.encoder.embed).weight.grad)
        found.append((loss.detach(), grad.clone()))
        side.zero_grad()
    for m, p in rates:
        m.p = p
    common.check_close("loss", found[0][0], found[1][0], 1e-4)
    common.check_close("gradient of the embedding", found[0][1], found[1][1], 1e-3)


class Inside:
    """Sums what the block-sparse products take while it is entered, all passes; on a CPU they end
    before they return.
    """

    def __enter__(self) -> Inside:
        self.milliseconds = 0.0
        self._choose, dispatch.choose = dispatch.choose, self._timed
        return self

    def __exit__(self, *exception: object) -> None:
        dispatch.choose = self._choose

    def _timed(self, *args: Any, **options: Any) -> Callable[[], Any]:
        start = time.perf_counter()
        product = self._choose(*args, **options)

        def timed() -> Any:
            try:
                return product()
            finally:
                self.milliseconds += 1e3 * (time.perf_counter() - start)

        return timed


def profile(step: Callable[[], Any]) -> None:
    """Prints where one step spends its time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as p:
        step()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8])
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="of one step a side, then stop")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = FastSpeech2ConformerConfig()
    model, batch = FastSpeech2ConformerModel(config), make_batch(config)
    rows = []
    for sparsity in args.sparsities:
        rows += measure(model, batch, sparsity, args)
    if rows and not args.no_save:
        print(common.append_rows("dropin_cpu", rows))


class Timed:
    """A sparse step that notes what it spent inside its sparse layers."""

    def __init__(self, step: Step):
        self.step, self.inside = step, []

    def __call__(self) -> None:
        with Inside() as timer:
            self.step()
        self.inside.append(timer.milliseconds)


def measure(
    model: FastSpeech2ConformerModel,
    batch: dict[str, Tensor],
    sparsity: float,
    args: argparse.Namespace,
) -> list[common.Row]:
    """Rows of the dense and the sparse steps, timed in turn, and of what the latter spend outside
    their sparse layers.
    """
    masked, report = sparse_copy(model, sparsity, args.block)
    fast, _ = sparse_copy(model, sparsity, args.block)
    with_switches(fast, args.block)
    for each in (masked, fast):
        check(each, densify(copy.deepcopy(each)), batch)
    dense = Step(copy.deepcopy(model), batch)
    dense_fast = Step(with_switches(copy.deepcopy(model), args.block), batch, ours=True)
    sides = {
        "sparse": Timed(Step(masked, batch)),
        "sparse, switches": Timed(Step(fast, batch, ours=True)),
    }
    for step in (dense, dense_fast, *sides.values()):
        step()  # optimizer state, and the choice of backends
    if args.profile:
        for step in (dense, *sides.values()):
            profile(step)
        return []
    calls = {"dense": dense, "dense, switches": dense_fast, **sides}
    times = common.time_side_by_side(calls, args.repeats, lambda: None)
    cuts = {name: common.percentiles(times[name]) for name in list(calls)[:2]}
    dense_ms, dense_fast_ms = (c[1] for c in cuts.values())
    print(
        f"sparsity {sparsity:.0%} of {report.parameter_share:.0%} of the parameters: "
        f"dense {dense_ms:,.0f} ms, with all switches {dense_fast_ms:,.0f} ms"
    )
    for name, side in sides.items():
        # Two calls before those that count.
        pairs = zip(times[name], side.inside[2:], strict=True)
        outside = [whole - inside for whole, inside in pairs]
        cuts[name] = common.percentiles(times[name])
        cuts[f"{name}: outside sparse layers"] = common.percentiles(outside)
        sparse_ms, outside_ms = cuts[name][1], common.percentiles(outside)[1]
        print(
            f"  {name}: {sparse_ms:,.0f} ms, {dense_ms / sparse_ms:.2f}x; outside sparse layers "
            f"{outside_ms:,.0f} ms, {outside_ms / sparse_ms:.0%} of the step and "
            f"{outside_ms / dense_ms:.0%} of the dense one: at most {dense_ms / outside_ms:.2f}x",
            flush=True,
        )
    return common.rows(
        cuts,
        dense_ms,
        torch.device("cpu"),
        op="train_step",
        shape=f"fastspeech2_conformer {UTTERANCES}x{TOKENS * FRAMES_A_TOKEN}",
        block=args.block,
        density=1 - sparsity,
        dtype="float32",
        pass_="step",
    )


if __name__ == "__main__":
    main()
