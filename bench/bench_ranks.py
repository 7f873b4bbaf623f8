# SPDX-License-Identifier: Apache-2.0
"""Updates of two processes with a thread each, beside those of one process with a thread.

python bench/bench_ranks.py [--sparsities 0.8 0] [--repeats 9] [--accumulation 1] [--profile]

An ESPnet-size FastSpeech2 as in bench_train_step.py, on the CPU: one process sees all utterances of
a micro-batch, two see half each, and add up their gradients through gloo behind the last of an
update's micro-batches (the presets for LJSpeech have eight). They take turns, so what else
the machine does meets both. The columns of a row are those of every benchmark; `dense` in
`ratio_to_dense` is the one process here, so it says how much faster two are.
"""

from __future__ import annotations

import argparse
import copy
import os
import socket
import time
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import cast

import common
import torch
import torch.distributed as dist
from bench_train_step import FRAMES_A_TOKEN, TOKENS, VOCABULARY, Step, make_batch, plain
from torch import Tensor

from sniper import LearningRateScale, Sniper
from sniper.ops import gradients, keep_freed_memory
from sniper.sparsity.exchange import GradientExchange
from sniper.training.batch_norm import share_batch_norms
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config

# About as many frames as the presets have in a micro-batch.
UTTERANCES = 16
PARTS = ("backward", "exchange", "update")


def part_of(batch: Batch, rank: int, size: int) -> Batch:
    """What one of several processes has of a batch."""
    counts = [
        len(batch),
        int(batch.mel_lengths.sum()),
        int(batch.token_lengths.sum()),
        int((batch.durations > 0).sum()),
    ]
    tensors = {k: v[rank::size] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    ids, totals = batch.ids[rank::size], torch.tensor(counts)
    return replace(batch, ids=ids, totals=totals, n_frames=None, **tensors)


class Update:
    """One update as `Trainer` makes it.

    Attributes:
        seconds: of each of PARTS, over all updates so far; and what this process has computed in
            them, which is less where it waits.
    """

    def __init__(
        self, model: FastSpeech2, sparsity: float, args: argparse.Namespace, rank: int, size: int
    ):
        model = copy.deepcopy(model) if sparsity else plain(model)
        batch = part_of(make_batch(UTTERANCES), rank, size)
        if size > 1:
            share_batch_norms(model)
            for p in model.parameters():
                gradients.without_ddp(p)
        sniper = None
        if sparsity:
            rates = LearningRateScale(max=10.0)
            sniper = Sniper(model, {0: sparsity}, block_size=args.block, lr_scale=rates)
            sniper.score([batch], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
        self._step = Step(model, batch, "fp32", sniper)
        self._exchange = GradientExchange(sniper) if size > 1 else None
        self._parameters, self._accumulation = list(model.parameters()), args.accumulation
        self.seconds = {name: (0.0, 0.0) for name in PARTS}

    def __call__(self) -> float:
        """The loss of the whole update."""
        step, times = self._step.step, [_now()]
        loss, share = torch.zeros(()), 1 / self._accumulation
        for _ in range(self._accumulation):
            loss += share * step.backward(self._step.batch, share)["total"]
        times.append(_now())
        if self._exchange is not None:
            self._exchange.sum(self._parameters)
            dist.all_reduce(loss)
        times.append(_now())
        step.clip()
        step.update()
        times.append(_now())
        for name, begun, done in zip(PARTS, times, times[1:], strict=False):
            spent = self.seconds[name]
            self.seconds[name] = (spent[0] + done[0] - begun[0], spent[1] + done[1] - begun[1])
        return float(loss)


def _now() -> tuple[float, float]:
    """Of the clock, and of this process's computing."""
    return time.perf_counter(), time.process_time()


def work(rank: int, size: int, port: int, pipe: Connection, args: argparse.Namespace) -> None:
    """A process: makes what `(sparsity)` says, then an update for each `None`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY))
    update = None
    while (told := pipe.recv()) != "end":
        if told is None:
            assert update is not None
            pipe.send((update(), update.seconds))
        else:
            update = Update(model, told, args, rank, size)
            pipe.send(None)
    if size > 1:
        dist.destroy_process_group()


class Processes:
    """So many processes that make one update together."""

    def __init__(self, size: int, args: argparse.Namespace):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.pipes: list[Connection] = []
        for rank in range(size):
            ours, theirs = Pipe()
            given = (rank, size, port, theirs, args)
            torch.multiprocessing.get_context("spawn").Process(
                target=work, args=given, daemon=True
            ).start()
            self.pipes.append(ours)

    def tell(self, what: object) -> list:
        for pipe in self.pipes:
            pipe.send(what)
        return [] if what == "end" else [pipe.recv() for pipe in self.pipes]

    def __call__(self) -> float:
        self.last = self.tell(None)
        return self.last[0][0]


def measure(
    compared: dict[str, Processes], sparsity: float, args: argparse.Namespace
) -> list[common.Row]:
    for processes in compared.values():
        processes.tell(sparsity)
    for _ in range(2):  # optimizer state, the choice of backends
        losses = [processes() for processes in compared.values()]
    # Dropout draws differ between them, so losses are alike and not the same.
    if not abs(losses[1] / losses[0] - 1) < 0.1:
        raise SystemExit(f"the losses are {losses}: nothing is timed that is wrong")
    before = {name: dict(p.last[0][1]) for name, p in compared.items()}
    times = common.time_side_by_side(compared, args.repeats, lambda: None)
    cuts = {name: common.percentiles(t) for name, t in times.items()}
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    frames = args.accumulation * UTTERANCES * TOKENS * FRAMES_A_TOKEN
    one = cuts["1 process"][1]
    said = [
        f"{name} {p50:,.0f} ms ({1e3 * frames / p50:,.0f} frames/s)"
        for name, (_, p50, _) in cuts.items()
    ]
    middle = ratios[len(ratios) // 2]
    print(f"sparsity {sparsity:.0%}: {', '.join(said)}; 2 are {middle:.2f}x as fast", flush=True)
    if args.profile:
        for name, processes in compared.items():
            for rank, (_, seconds) in enumerate(processes.last):
                each = 1e3 / (args.repeats + 1)
                words = ", ".join(
                    f"{k} {each * (a - before[name][k][0]):,.0f} ms"
                    f" ({each * (b - before[name][k][1]):,.0f} computing)"
                    for k, (a, b) in seconds.items()
                )
                print(f"    {name}, rank {rank}: {words}", flush=True)
    return common.rows(
        cuts,
        one,
        torch.device("cpu"),
        op="ranks",
        shape=f"espnet {args.accumulation}x{UTTERANCES}x{TOKENS * FRAMES_A_TOKEN}",
        block=args.block,
        density=1 - sparsity,
        dtype="float32",
        pass_="update",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.0])
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of an update")
    parser.add_argument("--profile", action="store_true", help="where each process's time goes")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    compared = {"1 process": Processes(1, args), "2 processes": Processes(2, args)}
    rows = []
    for sparsity in args.sparsities:
        rows += measure(compared, sparsity, args)
    for processes in compared.values():
        processes.tell("end")
    if not args.no_save:
        print(common.append_rows("ranks_cpu", rows))


if __name__ == "__main__":
    main()
