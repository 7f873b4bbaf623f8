# SPDX-License-Identifier: Apache-2.0
"""How exact the aligners are, and how fast: the synthetic corpus against its exact times.

    python bench/bench_align.py                      # both ways, 200 sentences
    python bench/bench_align.py --ways english --utterances 100

A border counts where the phones on both sides of it are those that were spoken. espeak-ng speaks a
sentence with weak forms that its words alone do not have, and `english` writes ARPAbet, so phones
are matched by the longest common blocks, in ARPAbet without stress for `english`. The last column
is CPU time of the alignment over the length of the audio, one process with one thread, reading and
resampling included; for `learned` without the training, whose wall-clock time is its own column.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, commit, versions

from sniper.ops.timings import device_name
from sniper.tts.aligners.run import align_corpus
from sniper.tts.corpus.alignment import read_textgrid
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.text.arpabet import from_ipa, without_stress
from sniper.tts.text.text import PAUSE

COLUMNS = (
    "way", "corpus", "utterances", "aligned", "borders", "matched", "median_ms", "mean_ms",
    "bias_ms", "over_50ms", "train_s", "real_time_factor", "device", "versions", "commit",
)  # fmt: skip


def arpabet(phones: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """espeak-ng's phones in ARPAbet; of one that becomes two, the start belongs to the first."""
    found = []
    for phone, start in phones:
        for index, name in enumerate(without_stress(from_ipa([phone]) or [])):
            found.append((name, start if index == 0 else float("nan")))
    return found


def spoken_borders(root: Path) -> dict[str, list[tuple[str, float]]]:
    """Phones of the corpus without its pauses, with the second at which each begins."""
    found = {}
    for line in (root / "alignments.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        starts = [sample / entry["sample_rate"] for sample in entry["starts"]]
        pairs = zip(entry["phones"], starts, strict=True)
        found[entry["id"]] = [(p, s) for p, s in pairs if any(c.isalpha() for c in p)]
    return found


def errors(root: Path, textgrids: Path, english: bool) -> tuple[np.ndarray, int]:
    """Seconds between found and exact borders, and how many borders the corpus has."""
    found, total = [], 0
    for name, exact in spoken_borders(root).items():
        path = textgrids / f"{name}.TextGrid"
        if not path.is_file():
            continue
        alignment = read_textgrid(path)
        pairs = zip(alignment.phones, alignment.boundaries, strict=False)
        ours = [(phone, float(start)) for phone, start in pairs if phone != PAUSE]
        if english:
            exact, ours = arpabet(exact), [(without_stress([p])[0], s) for p, s in ours]
        else:
            exact, ours = ([(p.strip("ˈˌ"), s) for p, s in side] for side in (exact, ours))
        total += len(exact) - 1
        names = [phone for phone, _ in ours], [phone for phone, _ in exact]
        matcher = difflib.SequenceMatcher(None, *names, autojunk=False)
        for a, b, size in matcher.get_matching_blocks():
            # The first of a block has another neighbour, or none.
            found += [ours[a + i][1] - exact[b + i][1] for i in range(1, size)]
    values = np.array(found)
    return values[~np.isnan(values)], total


def measure(way: str, root: Path, out: Path, utterances: int, steps: int | None) -> dict:
    """One row."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    done = align_corpus(root, out, way=way, steps=steps, workers=1, progress=sys.stderr.isatty())
    spent, train_s = _cpu_seconds() - cpu, float("nan")
    if way == "learned":
        # Once more, with the trained aligner: what an utterance costs.
        train_s = time.perf_counter() - wall
        for path in (out / "TextGrid").glob("*.TextGrid"):
            path.unlink()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        done = align_corpus(root, out, way=way, steps=steps, workers=1, progress=False)
        spent = _cpu_seconds() - cpu
        train_s -= time.perf_counter() - wall
    error, total = errors(root, done.textgrids, way == "english")
    return {
        "way": way,
        "corpus": "demo en-us (synthetic)",
        "utterances": utterances,
        "aligned": done.report.aligned,
        "borders": total,
        "matched": len(error),
        "median_ms": round(float(np.median(np.abs(error))) * 1e3, 1),
        "mean_ms": round(float(np.abs(error).mean()) * 1e3, 1),
        "bias_ms": round(float(np.median(error)) * 1e3, 1),
        "over_50ms": round(float((np.abs(error) > 0.05).mean()), 4),
        "train_s": round(train_s, 1),
        "real_time_factor": round(spent / done.report.seconds, 4),
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "commit": commit(),
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print and append the rows."""
    parser = argparse.ArgumentParser(
        description="Accuracy and speed of the aligners on the synthetic corpus."
    )
    parser.add_argument("--ways", nargs="+", default=["english", "learned"])
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--steps", type=int, help="of the training of learned (default: its own)")
    parser.add_argument("--out", type=Path, default=RESULTS / "align_cpu.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "demo"
        write_demo_corpus(root, options.utterances, 0, "en-us", progress=False)
        for way in options.ways:
            row = measure(way, root, Path(scratch) / way, options.utterances, options.steps)
            print(", ".join(f"{name} {row[name]}" for name in COLUMNS[:12]), flush=True)
            fresh = not options.out.is_file()
            with options.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if fresh:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
