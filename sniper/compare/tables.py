# SPDX-License-Identifier: Apache-2.0
"""The results as files that other programs read.

results.json   what the report shows, but for the sound
results.csv    one line a run
epochs.csv     one line an epoch of a run: loss terms, seconds, frames/s
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sniper.compare import bootstrap, files, rates, timing
from sniper.compare.matrix import Run
from sniper.compare.results import CHECKPOINTS, read_run, shown


def write_tables(data: dict[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Writes results.json, results.csv and epochs.csv."""
    files.write_json(folder / "results.json", data)
    per_run, per_epoch = [], []
    for run in runs:
        found = read_run(run)
        head = {"arm": run.arm.name, "seed": run.seed}
        per_run.append({**head, **_line(found)})
        for row in found["history"]:
            keys = ("sparsity", "density", "frames", "seconds", "frames_per_second")
            terms = {f"{part}_{k}": v for part in ("train", "valid") for k, v in row[part].items()}
            line = {"epoch": row["epoch"] + 1, **{k: row[k] for k in keys}, **terms}
            per_epoch.append({**head, **{k: _short(v) for k, v in line.items()}})
    files.write_text(folder / "results.csv", _csv(per_run))
    files.write_text(folder / "epochs.csv", _csv(per_epoch))


def _line(run: dict[str, Any]) -> dict[str, Any]:
    history = run["history"]
    line: dict[str, Any] = {"status": run["status"], "epochs": len(history)}
    spent = timing.accounts(history, run["score_seconds"])
    line |= {f"{name}_seconds": value for name, value in spent.items()}
    if history:
        losses = timing.losses(history)
        line |= {"valid_final": float(losses[-1]), "valid_best": float(losses.min())}
        line["best_epoch"] = int(losses.argmin()) + 1
        # A run that is not finished has rates too: those of its epochs so far.
        own = {**shown(run), "status": "trained"}
        as_arm = {"name": "", "stages": timing.stages(history), "runs": [own]}
        line["rate_spread"] = rates.judge(as_arm, as_arm).spread
    if run["evaluation"]:
        for which in CHECKPOINTS:
            for metric, values in run["evaluation"]["checkpoints"][which]["metrics"].items():
                mean = bootstrap.summarize({0: np.array(values, dtype=float)}).mean
                line[f"{metric}_{which}"] = mean
    return {key: _short(value) for key, value in line.items()}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    # An empty cell is what spreadsheets and pandas read as missing.
    return "" if value is None else value


def _csv(rows: list[dict[str, Any]]) -> str:
    # Runs that have not been measured lack columns that others have.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
