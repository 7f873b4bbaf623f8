# SPDX-License-Identifier: Apache-2.0
"""A matrix that takes seconds, and what a finished one is to the tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sniper.compare.arms import Matrix, load_matrix
from sniper.compare.matrix import Run, plan

MATRIX = {
    "title": "A <small> matrix",
    "config": "base.yaml",
    "settings": {"train": {"epochs": 3, "batches_per_epoch": 12}},
    "seeds": [0, 1],
    "arms": [
        {"name": "block", "label": "SNIPER 60→0 %", "note": "ours"},
        {"name": "dense", "sparsity": {"schedule": {0: 0.0}}},
        {"name": "broken", "train": {"lr": 1e30}},
    ],
    "reference": "dense",
}


@dataclass(frozen=True)
class Compared:
    """A finished matrix.

    Args:
        file: the matrix' YAML.
        out: folder of everything.
        said: what the last call printed.
        stopped: what the first said on standard error when it was stopped.
        left: epochs that dense, seed 0, had when its parent was killed, and when it had ended.
    """

    file: Path
    out: Path
    said: str
    stopped: str
    left: tuple[int, int]

    @property
    def matrix(self) -> Matrix:
        return load_matrix(str(self.file))

    @property
    def runs(self) -> list[Run]:
        return plan(self.matrix, self.out, threads=1)

    def run(self, arm: str, seed: int = 0) -> Run:
        return next(r for r in self.runs if (r.arm.name, r.seed) == (arm, seed))

    def options(self, *more: str) -> list[str]:
        """Arguments of the command."""
        return ["--config", str(self.file), "--output", str(self.out), "--threads", "1", *more]


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Waits for something that must come, on a busy machine later."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def run(rates: list[float], seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A run in a report, epochs of 1,000 frames each; losses fall from 1."""
    seconds, total = [], 0.0
    for rate in rates:
        total += 1000 / rate
        seconds.append(total)
    result = {"seed": seed, "status": "trained", "message": "", "seconds": seconds}
    result |= {"epoch": list(range(1, len(rates) + 1)), "frames_per_second": rates}
    result |= {"loss": [1 / (i + 1) for i in range(len(rates))], "sparsity": [0.0] * len(rates)}
    return result | changes


def arm(name: str, *runs: dict[str, Any]) -> dict[str, Any]:
    """An arm of one stage in a report, which reached a loss 1.5 times sooner."""
    epochs = len(runs[0]["epoch"]) if runs else 0
    reached = {"fraction": 1.0, "loss": 0.5, "reference_seconds": 9.0, "reached": 1, "seeds": 1}
    reached |= {"speedup": 1.5, "speedup_sd": None, "speedup_with_extra": 1.4}
    stage = {"sparsity": 0.0, "density": 1.0, "first": 0, "epochs": epochs}
    return {
        "name": name,
        "label": name,
        "runs": list(runs),
        "stages": [stage] if epochs else [],
        "time_to_loss": [reached] if epochs else [],
    }
