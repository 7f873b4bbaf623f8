# SPDX-License-Identifier: Apache-2.0
"""Learning rates that were tried with the arms of a matrix: a table, and which of them is chosen.

    python bench/learning.py train demo --prepared data/demo --out parts-half \\
        --override train.lr=0.5 --seeds 0
    python bench/learning_rates.py --parts parts parts-half parts-twice --out rates.csv

A rate is chosen on every other held-out sentence (the second, the fourth and so on), and the table
says what the remaining ones would have chosen, so that nobody has to trust a rate on the sentences
that spoke for it. Half of a corpus's sentences and one seed say little: a rate other than the
preset's is chosen only where its loss is lower by more than the scatter of seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMNS: tuple[str, ...] = (
    "matrix",
    "arm",
    "seed",
    "rate",
    "device",
    "loss",
    "loss_odd",
    "loss_even",
    "distortion",
)
PRESET = 1.0  # the rate, as a multiple of what the presets have


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", type=Path, required=True, help="of learning.py train")
    parser.add_argument("--out", type=Path, required=True, help="CSV, a row a run")
    parser.add_argument("--seed", type=int, default=0, help="that chooses")
    parser.add_argument("--scatter", type=float, default=0.03, help="of the loss, between seeds")
    options = parser.parse_args(arguments)
    rows = read(path for folder in options.parts for path in sorted(folder.glob("*.json")))
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
    rates = sorted({row["rate"] for row in rows})
    print("| | " + " | ".join(f"{rate:g}" for rate in rates) + " | chosen | by the others |")
    print("|---" * (len(rates) + 3) + "|")
    for (matrix, arm), tried in by_arm(rows, options.seed).items():
        found = [f"{tried[r]['loss_odd']:.3f}" if r in tried else "–" for r in rates]
        picks = [f"{chosen(tried, by, options.scatter):g}" for by in ("loss_odd", "loss_even")]
        print("| " + " | ".join([f"{matrix} {arm}", *found, *picks]) + " |")
    return 0


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """A row a run, by matrix, arm, seed and rate.

    Raises:
        SystemExit: a run that is there twice.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for path in paths:
        part = json.loads(path.read_text(encoding="utf-8"))
        if "history" not in part:
            continue  # what was heard lies beside the runs
        found = part["metrics"]["final"]
        row = {"matrix": Path(part["matrix"]).stem, "arm": part["arm"], "seed": part["seed"]}
        key = (*row.values(), rate := part["config"]["train"]["lr"])
        if key in rows:
            raise SystemExit(f"--parts: expected every run once, got {path.name} twice, at {rate}")
        rows[key] = {
            **row,
            "rate": rate,
            "device": part["device"],
            "loss": part["history"][-1]["valid"]["total"],
            "loss_odd": statistics.fmean(found["loss"][1::2]),
            "loss_even": statistics.fmean(found["loss"][::2]),
            "distortion": statistics.fmean(found["mcd"]),
        }
    return [rows[key] for key in sorted(rows)]


def by_arm(rows: list[dict[str, Any]], seed: int) -> dict[tuple, dict[float, dict[str, Any]]]:
    """Rows of one seed by matrix and arm, then by rate; arms that had the preset's rate alone are
    left out.
    """
    found: dict[tuple, dict[float, dict[str, Any]]] = {}
    for row in rows:
        if row["seed"] == seed:
            found.setdefault((row["matrix"], row["arm"]), {})[row["rate"]] = row
    return {arm: tried for arm, tried in found.items() if PRESET in tried and len(tried) > 1}


def chosen(tried: dict[float, dict[str, Any]], by: str, scatter: float) -> float:
    """The rate with the lowest loss, if it is lower than the preset's by more than `scatter`."""
    best = min(tried, key=lambda rate: tried[rate][by])
    return best if tried[PRESET][by] - tried[best][by] > scatter else PRESET


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
