# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: the same seeds, two threads, no luck with uninitialised memory."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim.fixture import cuda_shim, running  # noqa: F401
from instruction_sets import instruction_sets

from sniper import _C

# Tests start hundreds of processes. Each would compile the package anew where none may be written,
# and beside another of pytest's wait for a second core by spinning, longer than it computes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes about a minute or more, the longest first. It begins first, so that no process is left
# with one of them at the end, while the other has nothing to do.
LONG = (
    "tests/compare/",
    "tests/kernels/test_interpreter.py",
    "tests/training/test_trainer.py",
    "tests/ops/test_selfcheck.py",
    "tests/training/test_ranks.py",
    "tests/test_bench.py",
    "tests/integrations/test_huggingface.py",
    "tests/csrc/test_cuda.py",
    "tests/test_packaging.py",
    "tests/campaign/test_ranks_apart.py",
    "tests/test_train.py",
    "tests/test_synthesize.py",
    "tests/test_examples.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-kernels", action="store_true", help="every Triton kernel and case, not a sample"
    )
    parser.addoption(
        "--campaign", action="store_true", help="every case of tests/campaign, not a sample"
    )


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's, which is there for `make test`
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests are one process', and those of the comparison too: making what they look at,
    six runs that are trained and measured, takes longer than all of them. The interpreter's tests
    are not one process': they are few, and each is long.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "test_interpreter.py::" in nodeid:
                return nodeid
            folder = "tests/compare/"
            return folder if nodeid.startswith(folder) else super()._split_scope(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            # xdist begins with the files of many tests, which says nothing of how long they take.
            for scope in (s for start in LONG for s in self.workqueue if s.startswith(start)):
                self.workqueue.move_to_end(scope, last=False)
                break
            super()._assign_work_unit(node)

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True, scope="session")
def choices_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured while tests run does not decide what the user's runs execute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNIPER_CACHE_DIR", str(tmp_path_factory.mktemp("choices")))
        yield


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers whatever ran before, on two threads, or one of two processes each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(seeded: None) -> None:
    """Faster for small models."""
    torch.set_num_threads(1)


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """Uninitialised memory holds NaN: an element that nobody writes cannot look right by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty and its kin return
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with the names of modules: who imports them next runs them anew, until the test ends.

    A package holds each of its modules as an attribute too, which the import sets to the new one:
    after the test it is what it was, as the entry in `sys.modules` is.
    """

    def forget(*names: str) -> None:
        for name in names:
            package, _, attribute = name.rpartition(".")
            if hasattr(holder := sys.modules.get(package), attribute):
                monkeypatch.setattr(holder, attribute, getattr(holder, attribute))
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)

    return forget


@pytest.fixture(params=instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, which the CPU kernels then use."""
    _C.cpu.set_instruction_set(request.param)
    yield request.param
    _C.cpu.set_instruction_set("")


@pytest.fixture(params=["cpu", "shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the extension computes: each test that takes this runs once for each, and with the CUDA
    sources run on the CPU.
    """
    if request.param != "shim":
        yield request.param
        return
    with running(request.getfixturevalue("cuda_shim")):
        yield "cpu"


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of two dozen sentences by espeak-ng; to be read only."""
    from speech import make_corpus

    return make_corpus(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session")
def speakers_corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three speakers; to be read only."""
    from speech import make_speakers

    return make_speakers(demo_corpus, tmp_path_factory.mktemp("speakers"))


@pytest.fixture(scope="session")
def trained_run(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, trained from sparse to dense; to be read only."""
    from speech import fit, tiny

    folder = tmp_path_factory.mktemp("trained")
    fit(tiny(demo_corpus, folder, train={"epochs": 3}))
    return folder
