# SPDX-License-Identifier: Apache-2.0
"""Clipping, Adam and clearing of the ESPnet-size model, at several sparsities beside torch's fused.

python bench/bench_optimizer.py [--sparsities 0.8 0.5 0] [--repeats 15]

Gradients are as a step leaves them; making them is not timed. `torch` clips with `clip_grad_norm_`
and sets gradients to None, on the same masked model: what it costs does not depend on the masks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import cast

import common
import torch
from bench_train_step import VOCABULARY, make_batch
from torch import Tensor, nn

from sniper import Sniper
from sniper.ops import keep_freed_memory
from sniper.optim import Adam
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config


class Update:
    """A model with gradients and an optimizer; calling it clips, updates and clears.

    Args:
        sparsity: of its block-sparse layers; 0: all blocks are active.
        ours: whether the optimizer is `sniper.optim.Adam`.
    """

    def __init__(self, sparsity: float, ours: bool):
        torch.manual_seed(0)
        self.model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY))
        schedule = {0: sparsity} if sparsity else {0: 0.5, 1: 0.0}
        snip = Sniper(self.model, schedule, block_size=64)
        snip.score([make_batch(1)], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
        params, self.ours = self.model.parameters(), ours
        make = {True: lambda: Adam(params, 1e-4, clear=True, fused=True)}
        self.optimizer = make.get(ours, lambda: torch.optim.Adam(params, 1e-4, fused=True))()
        snip.step(0, self.optimizer)
        if not sparsity:
            snip.step(1, self.optimizer)
        self.model.loss(make_batch(1))[0].backward()
        self.gradients = {p: p.grad.clone() for p in self.model.parameters() if p.grad is not None}

    def prepare(self) -> None:
        """Gradients as a backward pass leaves them: added where they are allocated, else new."""
        for p, value in self.gradients.items():
            if p.grad is None:
                p.grad = torch.empty_like(p).copy_(value)
            else:
                p.grad.copy_(value)

    def __call__(self) -> Tensor:
        if isinstance(self.optimizer, Adam):
            norm = self.optimizer.clip(1.0)
            self.optimizer.step()
            return norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.5, 0.0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    updates = {(s, "sparse"): Update(s, True) for s in args.sparsities}
    updates[args.sparsities[-1], "dense"] = Update(args.sparsities[-1], False)
    times: dict[tuple[float, str], list[float]] = {key: [] for key in updates}
    for round_ in range(args.repeats + 2):
        for key, update in updates.items():
            update.prepare()
            start = time.perf_counter()
            update()
            if round_ > 1:  # states are made, and gradients stay, from then on
                times[key].append(1e3 * (time.perf_counter() - start))
    full = times[args.sparsities[-1], "sparse"]
    rows = []
    for (sparsity, name), taken in times.items():
        cuts = common.percentiles(taken)
        ratio = statistics.median(a / b for a, b in zip(taken, full, strict=True))
        print(
            f"{name} {sparsity:.0%}: {cuts[1]:.1f} ms, {ratio:.2f} of sparse at the last sparsity"
        )
        rows += common.rows(
            {name: cuts},
            common.percentiles(times[args.sparsities[-1], "dense"])[1],
            torch.device("cpu"),
            op="optimizer",
            shape="espnet",
            block=64,
            density=1 - sparsity,
            dtype="float32",
            pass_="clip, adam, clear",
        )
    if not args.no_save:
        print(common.append_rows("optimizer_cpu", rows))


if __name__ == "__main__":
    main()
