# SPDX-License-Identifier: Apache-2.0
"""One small matrix, trained once for all tests here, killed on the way and taken up again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from speech import command, tiny

from sniper import checkpoint
from sniper.compare.__main__ import main
from sniper.compare.arms import Matrix, load_matrix
from sniper.compare.matrix import Run, plan
from sniper.config import dump

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
        said: what the second call printed.
        left: epochs that the first run had when its parent was killed, and after it had ended.
    """

    file: Path
    out: Path
    said: str
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


@pytest.fixture(scope="session")
def matrix_file(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix of three arms and two seeds on the small corpus."""
    folder = tmp_path_factory.mktemp("matrix")
    base = tiny(demo_corpus, folder / "unused")
    (folder / "base.yaml").write_text(dump(base), encoding="utf-8")
    (folder / "small.yaml").write_text(yaml.safe_dump(MATRIX, allow_unicode=True), "utf-8")
    return folder / "small.yaml"


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def compared(
    matrix_file: Path, tmp_path_factory: pytest.TempPathFactory, choices_of_its_own: None
) -> Compared:
    """Begun, killed with -9 in its first run, and done by the same command."""
    out = tmp_path_factory.mktemp("compared")
    options = Compared(matrix_file, out, "", (0, 0)).options()
    first = out / "runs" / "block" / "seed-0"
    process = command("compare", *options)
    try:
        until(lambda: checkpoint.exists(first))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    killed = plan(load_matrix(str(matrix_file)), out, threads=1)[0]
    before = killed.epochs_done()
    import fcntl

    with (first / ".lock").open() as lock:  # the orphan saves and ends by itself
        fcntl.flock(lock, fcntl.LOCK_EX)
    after = killed.epochs_done()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert main([*options, "--jobs", "2"]) == 0
    return Compared(matrix_file, out, "\n".join(said), (before, after))
