# SPDX-License-Identifier: Apache-2.0
"""A matrix that takes seconds, and what a finished one is to the tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sniper.compare.arms import Matrix, load_matrix
from sniper.compare.matrix import Run, plan

MATRIX = {
    "title": "A <small> matrix",
    "config": "base.yaml",
    "settings": {"train": {"epochs": 3, "batches_per_epoch": 24}},
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


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
