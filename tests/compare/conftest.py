# SPDX-License-Identifier: Apache-2.0
"""One small matrix, trained once for all tests here, stopped and killed on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from comparing import MATRIX, Compared, until
from speech import command, tiny

from sniper.compare import recognition
from sniper.compare.__main__ import main
from sniper.training import checkpoint
from sniper.training.config import dump
from sniper.tts.locks import only_one


@pytest.fixture(scope="session")
def matrix_file(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix of three arms and two seeds on the small corpus."""
    folder = tmp_path_factory.mktemp("matrix")
    base = tiny(demo_corpus, folder / "unused")
    (folder / "base.yaml").write_text(dump(base), encoding="utf-8")
    (folder / "small.yaml").write_text(yaml.safe_dump(MATRIX, allow_unicode=True), "utf-8")
    return folder / "small.yaml"


@contextlib.contextmanager
def _quickly_heard() -> Iterator[ModuleType]:
    folder = Path(__file__).with_name("listener")
    spec = importlib.util.spec_from_file_location("listener", folder / "pocketsphinx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    decoder = module.Decoder(module.Config(cmn="batch"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "_decoder", lambda: decoder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield module


@pytest.fixture
def listener() -> Iterator[ModuleType]:
    """One for the recogniser that takes no time, here and in processes that are started."""
    with _quickly_heard() as module:
        yield module


@pytest.fixture(scope="session")
def compared(
    matrix_file: Path, tmp_path_factory: pytest.TempPathFactory, choices_of_its_own: None
) -> Iterator[Compared]:
    with _quickly_heard():
        made = _compare(matrix_file, tmp_path_factory.mktemp("compared"))
    yield made


def _compare(matrix_file: Path, out: Path) -> Compared:
    """Stopped by Ctrl-C in its first run, killed with -9 in its second, then done."""
    empty = Compared(matrix_file, out, "", "", (0, 0))
    options = empty.options()
    process = command("compare", *options)
    try:
        until(lambda: checkpoint.exists(empty.run("block").folder))
    finally:
        os.kill(process.pid, signal.SIGINT)
        stopped = process.communicate(timeout=300)[1]
    assert process.returncode == 130, stopped
    process = command("compare", *options)
    killed = empty.run("dense")
    try:
        until(lambda: checkpoint.exists(killed.folder))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = killed.epochs_done()
    with only_one(killed.folder, wait=300):  # the orphan saves and ends by itself
        pass
    after = killed.epochs_done()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*options, "--jobs", "2"]) == 0
    return Compared(matrix_file, out, said.getvalue(), stopped, (before, after))


@pytest.fixture(autouse=True)
def all_on_one_thread(one_thread: None) -> None:
    """Every test of this folder."""
