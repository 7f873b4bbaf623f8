# SPDX-License-Identifier: Apache-2.0
"""How much memory `synthesize` takes for a long text: its peak, a process each.

    python bench/bench_long_text.py --checkpoint runs/small-corpus
    python bench/bench_long_text.py --checkpoint runs/small-corpus --vocoder generator_v2

The same sentences over and over, so that only the number of them differs. `more_mib` is the peak
above that of the first number of sentences; `sound_mib` is what the sound alone would be as float32
samples, which nobody may keep.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from bench_align import append
from common import RESULTS, commit, versions

SENTENCES = (
    "The grey horse slept by the river.",
    "Nobody had told the children when the boat would come back.",
    "In the morning it rained.",
    "She put the letters on the table, took her coat, and went out without a word.",
)


def peak_mib(checkpoint: Path, vocoder: Path | None, sentences: int, wav: Path) -> float:
    """Speak a text into `wav`; peak resident memory of the process in MiB."""
    text = " ".join(islice(cycle(SENTENCES), sentences))
    command = [sys.executable, "-m", "sniper.synthesize", "--checkpoint", str(checkpoint), "-"]
    command += ["-o", str(wav)] + (["--vocoder", str(vocoder)] if vocoder else [])
    # One thread: several wait for each other by spinning where the machine has other work.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(text.encode())
    process.stdin.close()
    said = process.stderr.read().decode()
    # Of this child alone: the peak over all children never falls.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said}")
    return used.ru_maxrss / 1024


def measure(checkpoint: Path, vocoder: Path | None, counts: list[int]) -> Iterator[dict]:
    """A row for each number of sentences, as soon as it is there."""
    first = 0.0
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            wav = Path(scratch) / "a.wav"
            peak = peak_mib(checkpoint, vocoder, count, wav)
            with wave.open(str(wav)) as sound:
                samples, rate = sound.getnframes(), sound.getframerate()
        first = first or peak
        yield {
            "vocoder": vocoder.name if vocoder else "griffin-lim",
            "sentences": count,
            "seconds": round(samples / rate, 1),
            "peak_mib": round(peak, 1),
            "more_mib": round(peak - first, 1),
            "sound_mib": round(samples * 4 / 2**20, 1),
            "versions": versions(),
            "commit": commit(),
        }


def main() -> None:
    """Measure, print and append the rows."""
    parser = argparse.ArgumentParser(description="Peak memory of speaking a long text.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder")
    parser.add_argument("--vocoder", type=Path, help="default: Griffin-Lim")
    parser.add_argument("--sentences", type=int, nargs="+", default=[20, 400])
    parser.add_argument("--out", type=Path, default=RESULTS / "long_text_cpu.csv")
    options = parser.parse_args()
    for row in measure(options.checkpoint, options.vocoder, options.sentences):
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        append(options.out, row)


if __name__ == "__main__":
    main()
