# SPDX-License-Identifier: Apache-2.0
"""How exact the aligners are, and how fast: the synthetic corpus against its exact times.

    python bench/bench_align.py                      # both ways, 200 sentences
    python bench/bench_align.py --ways english --utterances 100
    python bench/bench_align.py --between a/TextGrid b/TextGrid --corpus "one voice, 0.34 h"

A border counts where the phones on both sides of it are those that were spoken. espeak-ng speaks a
sentence with weak forms that its words alone do not have, and `english` writes ARPAbet, so phones
are matched by the longest common blocks, in ARPAbet without stress for `english`. The last column
is CPU time of the alignment over the length of the audio, one process with one thread, reading and
resampling included; for `learned` without the training, whose wall-clock time is its own column.

On recordings nobody knows the exact times; `--between` holds two alignments of one corpus against
each other: where words begin and end, and where the phones that both found begin.
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
from sniper.tts.errors import require
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
        for a, b, size in _blocks(*names):
            # The first of a block has another neighbour, or none.
            found += [ours[a + i][1] - exact[b + i][1] for i in range(1, size)]
    values = np.array(found)
    return values[~np.isnan(values)], total


def word_borders(path: Path) -> list[tuple[str, float, float]]:
    """Words of a TextGrid with the seconds at which they begin and end."""
    grid = require("praatio.textgrid").openTextgrid(str(path), False, reportingMode="silence")
    return [(e[2].lower(), float(e[0]), float(e[1])) for e in grid.getTier("words").entries]


def between(first: Path, second: Path, corpus: str) -> dict:
    """One row: how far two folders of TextGrids are from each other.

    A border inside of a utterance's words counts where both have the same words around it.
    """
    words, phones, utterances = [], [], 0
    for path in sorted(first.rglob("*.TextGrid")):
        other = second / path.relative_to(first)
        if not other.is_file():
            continue
        utterances += 1
        sides = word_borders(path), word_borders(other)
        for a, b, size in _blocks([w for w, _, _ in sides[0]], [w for w, _, _ in sides[1]]):
            for i in range(size):
                pair = sides[0][a + i], sides[1][b + i]
                words += [pair[1][1] - pair[0][1], pair[1][2] - pair[0][2]]
        phones += phone_differences(path, other)
    if not words:
        raise SystemExit(f"{first} and {second} hold no TextGrids of the same words")
    apart, by_phone = np.abs(words), np.abs(phones)
    return {
        "first": first.parent.name,
        "second": second.parent.name,
        "corpus": corpus,
        "utterances": utterances,
        "word_borders": len(words),
        "median_ms": round(float(np.median(apart)) * 1e3, 1),
        "bias_ms": round(float(np.median(words)) * 1e3, 1),
        "within_50ms": round(float((apart <= 0.05).mean()), 4),
        "within_100ms": round(float((apart <= 0.1).mean()), 4),
        "phone_borders": len(phones),
        "phone_median_ms": round(float(np.median(by_phone)) * 1e3, 1),
        "phone_within_50ms": round(float((by_phone <= 0.05).mean()), 4),
        "versions": versions(),
        "commit": commit(),
    }


def phone_differences(first: Path, second: Path) -> list[float]:
    """Seconds between the borders of phones that two TextGrids share, in ARPAbet without stress."""
    sides = []
    for path in (first, second):
        alignment = read_textgrid(path)
        pairs = list(zip(alignment.phones, alignment.boundaries, strict=False))
        pairs = [(phone, float(start)) for phone, start in pairs if phone != PAUSE]
        if any(char.islower() or not char.isascii() for phone, _ in pairs for char in phone):
            sides.append(arpabet(pairs))
        else:
            sides.append([(without_stress([phone])[0], start) for phone, start in pairs])
    blocks = _blocks([phone for phone, _ in sides[0]], [phone for phone, _ in sides[1]])
    found = [sides[1][b + i][1] - sides[0][a + i][1] for a, b, n in blocks for i in range(1, n)]
    return [value for value in found if not np.isnan(value)]


def _blocks(first: list[str], second: list[str]):
    return difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()


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
    parser.add_argument(
        "--between", nargs=2, type=Path, metavar="FOLDER", help="two folders of TextGrids instead"
    )
    parser.add_argument("--corpus", default="", help="what --between was of, for its row")
    parser.add_argument(
        "--out", type=Path, help="default: align_cpu.csv or align_between.csv in bench/results"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.between:
        one, other = options.between
        row = between(one, other, options.corpus)
        print(", ".join(f"{name} {value}" for name, value in row.items()))
        append(options.out or RESULTS / "align_between.csv", row)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "demo"
        write_demo_corpus(root, options.utterances, 0, "en-us", progress=False)
        for way in options.ways:
            row = measure(way, root, Path(scratch) / way, options.utterances, options.steps)
            print(", ".join(f"{name} {row[name]}" for name in COLUMNS[:12]), flush=True)
            append(options.out or RESULTS / "align_cpu.csv", row)


def append(path: Path, row: dict) -> None:
    """Append a row to a .csv file, which is begun with the names of its columns."""
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
