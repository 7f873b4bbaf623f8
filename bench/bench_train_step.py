# SPDX-License-Identifier: Apache-2.0
"""One training step of an ESPnet-size FastSpeech2, block-sparse beside plain dense torch.

python bench/bench_train_step.py --device cpu [--sparsities 0.8 0.5 0] [--repeats 7]
    [--profile | --memory]

Forward, backward, gradient clipping and optimizer on 8 utterances of 90 tokens and 540 frames.
Dense is the same model with nn.Linear, nn.Conv1d and nn.Dropout and torch's fused Adam.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys

import common
import torch
from torch import nn

from sniper import Sniper, densify
from sniper.layers import Dropout
from sniper.tts.batch import Batch
from sniper.tts.fastspeech2 import FastSpeech2, FastSpeech2Config

UTTERANCES, TOKENS, FRAMES_A_TOKEN, VOCABULARY = 8, 90, 6, 78


def make_batch() -> Batch:
    """Random speech of equal lengths; the end-of-sentence token has no frames."""
    generator = torch.Generator().manual_seed(0)
    frames = TOKENS * FRAMES_A_TOKEN
    durations = torch.full((UTTERANCES, TOKENS + 1), FRAMES_A_TOKEN)
    durations[:, -1] = 0
    shape = (UTTERANCES, TOKENS + 1)
    return Batch(
        ids=[str(i) for i in range(UTTERANCES)],
        tokens=torch.randint(1, VOCABULARY, shape, generator=generator),
        token_lengths=torch.full((UTTERANCES,), TOKENS + 1),
        mel=torch.randn(UTTERANCES, frames, 80, generator=generator),
        mel_lengths=torch.full((UTTERANCES,), frames),
        durations=durations,
        pitch=torch.randn(shape, generator=generator),
        energy=torch.randn(shape, generator=generator),
    )


class Step:
    """A model with its optimizer; calling it trains one step."""

    def __init__(self, model: FastSpeech2, batch: Batch, sniper: Sniper | None):
        self.model, self.batch, self.sniper = model.train(), batch, sniper
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        if sniper is not None:
            sniper.step(0, self.optimizer)

    def __call__(self) -> None:
        loss, _ = self.model.loss(self.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def plain(model: FastSpeech2) -> FastSpeech2:
    """The model as a user of torch would have it."""
    model = densify(copy.deepcopy(model))
    for module in model.modules():
        if type(module) is Dropout:
            module.__class__ = nn.Dropout
    return model


def sparse(model: FastSpeech2, batch: Batch, sparsity: float, block: int) -> Step:
    """A copy of the model under SNIPER at one sparsity."""
    model = copy.deepcopy(model)
    # At 0 the schedule starts above it, so that layers are masked and then all active.
    schedule = {0: sparsity} if sparsity else {0: 0.5, 1: 0.0}
    sniper = Sniper(model, schedule, block_size=block, max_param_sparsity=0.95)
    sniper.score([batch], lambda m, b: m.loss(b)[0])
    step = Step(model, batch, sniper)
    if not sparsity:
        sniper.step(1, step.optimizer)
    return step


def profile(step: Step) -> None:
    """Prints where one step spends its time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as p:
        step()
    print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(sparsities: list[float]) -> None:
    """Prints the peak resident memory of three steps, dense and sparse, each in a fresh process."""

    def peak(*options: str) -> float:
        command = [sys.executable, __file__, *options]
        return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)

    dense = peak("--only", "dense")
    print(f"dense: peak {dense:.2f} GiB", flush=True)
    for sparsity in sparsities:
        sparse_peak = peak("--only", "sparse", "--sparsities", str(sparsity))
        share = sparse_peak / dense
        print(f"sparsity {sparsity:.0%}: peak {sparse_peak:.2f} GiB, {share:.2f} of it", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.5, 0.0])
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="of one sparse step, then stop")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of each step in a process of its own"
    )
    parser.add_argument("--only", choices=("dense", "sparse"), help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, batch = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY)), make_batch()
    if args.profile:
        step = sparse(model, batch, args.sparsities[0], args.block)
        step()
        step()
        return profile(step)
    if args.only:
        if args.only == "sparse":
            step = sparse(model, batch, args.sparsities[0], args.block)
        else:
            step = Step(plain(model), batch, None)
        del model  # both sides are copies of it
        for _ in range(3):
            step()
        return print(f"{peak_gib():.3f}")
    if args.memory:
        return memory(args.sparsities)
    rows = []
    for sparsity in args.sparsities:
        rows += measure(model, batch, sparsity, args)
    if not args.no_save:
        print(common.append_rows("train_step_cpu", rows))


def measure(
    model: FastSpeech2, batch: Batch, sparsity: float, args: argparse.Namespace
) -> list[common.Row]:
    """Rows of the dense and the sparse step, timed in turn."""
    steps = {
        "dense": Step(plain(model), batch, None),
        "sparse": sparse(model, batch, sparsity, args.block),
    }
    for step in steps.values():
        step()  # optimizer state, and the choice of executors
    times = common.time_side_by_side(steps, args.repeats, lambda: None)
    cuts = {name: common.percentiles(t) for name, t in times.items()}
    ratio = cuts["dense"][1] / cuts["sparse"][1]
    rates = {name: 1e3 * batch.n_frames / c[1] for name, c in cuts.items()}
    print(
        f"sparsity {sparsity:.0%}: dense {cuts['dense'][1]:,.0f} ms ({rates['dense']:,.0f} "
        f"frames/s), sparse {cuts['sparse'][1]:,.0f} ms ({rates['sparse']:,.0f} frames/s), "
        f"{ratio:.2f}x",
        flush=True,
    )
    return common.rows(
        cuts,
        cuts["dense"][1],
        torch.device("cpu"),
        op="train_step",
        shape=f"espnet {UTTERANCES}x{TOKENS * FRAMES_A_TOKEN}",
        block=args.block,
        density=1 - sparsity,
        dtype="float32",
        pass_="step",
    )


if __name__ == "__main__":
    main()
