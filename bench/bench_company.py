# SPDX-License-Identifier: Apache-2.0
"""How much a training step slows down when others want the cores too, sparse beside dense torch.

python bench/bench_company.py [--utterances 2] [--rounds 7] [--busy N]

Each round times one step of either kind alone and then with N busy processes (default: as many as
torch has threads), so that whatever else the machine does meets all of them alike. What threads do
while they wait decides: those that spin take the cores from those that are waited for. Each kind
runs in a process of its own that is stopped while the other is timed.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from bench_train_step import VOCABULARY, Step, make_batch, plain, sparse

from sniper.ops import keep_freed_memory
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config

KINDS = ("dense", "sparse")


def serve(kind: str, utterances: int) -> None:
    """Trains a step for every line that comes in, and says its seconds."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY))
    batch = make_batch(utterances)
    step = sparse(model, batch, 0.8, 64)
    if kind == "dense":
        step = Step(plain(model), batch, "fp32", graphs=False)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


class Side:
    """A process that trains one kind of step, and stands still otherwise."""

    def __init__(self, kind: str, utterances: int):
        command = [sys.executable, str(Path(__file__)), "--serve", kind]
        self.process = subprocess.Popen(
            [*command, "--utterances", str(utterances)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise SystemExit(f"{kind}: expected a step, the process ended")
        self.process.send_signal(signal.SIGSTOP)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def time(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        print(file=self.process.stdin, flush=True)
        seconds = float(self._line())
        self.process.send_signal(signal.SIGSTOP)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--utterances", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.utterances)
    sides = {kind: Side(kind, args.utterances) for kind in KINDS}
    alone: dict[str, list[float]] = {kind: [] for kind in KINDS}
    company: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, side in sides.items():
            alone[kind].append(side.time())
        busy = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(args.busy)]
        try:
            for kind, side in sides.items():
                company[kind].append(side.time())
        finally:
            for each in busy:
                each.kill()
                each.wait()
    for kind in KINDS:
        ratio = statistics.median(b / a for a, b in zip(alone[kind], company[kind], strict=True))
        medians = (1e3 * statistics.median(times[kind]) for times in (alone, company))
        print("{}: {:,.0f} ms alone, {:,.0f} in company, {:.2f}x".format(kind, *medians, ratio))
    load = os.getloadavg()[0]
    print(f"{args.busy} busy processes, {torch.get_num_threads()} threads, load {load:.1f}")
    for side in sides.values():
        side.process.kill()


if __name__ == "__main__":
    main()
