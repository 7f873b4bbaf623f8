# SPDX-License-Identifier: Apache-2.0
"""Kernel tests run on a GPU, or in Triton's interpreter when TRITON_INTERPRET=1 is set.

Everywhere else `test_interpreter.py` runs them in a process that has it set.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
# What torch asks for where it is to be deterministic: the tests' NaN-filled memory asks for that.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
PATHS = ["tma", "pointer"]
RUN_BY_HAND = {"test_compile.py", "test_configs.py", "test_interpreter.py"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(*cases): in place of the module's CASES")
    if INTERPRETED and not config.getoption("--all-kernels"):
        import quick_interpreter  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        kernel_test = item.path.parent == here and item.path.name not in RUN_BY_HAND
        if kernel_test and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: the module's CASES, or those that a test is marked with, and its MORE_CASES with
    --all-kernels; `dtype`: by name. A case has only the paths that take its values.
    """
    names, everything = metafunc.fixturenames, metafunc.config.getoption("--all-kernels")
    # The interpreter multiplies bfloat16 wrongly.
    dtypes = ["float32", "float16", *([] if INTERPRETED else ["bfloat16"])]
    if "case" in names:
        marked = metafunc.definition.get_closest_marker("cases")
        cases = list(marked.args if marked and not everything else metafunc.module.CASES)
        if everything:
            cases += [c for c in metafunc.module.MORE_CASES if c not in cases]
        triples = [
            (case, dtype, path)
            for i, case in enumerate(cases)
            for dtype, path in itertools.product(dtypes, PATHS)
            if path == "pointer" or (case.block >= 64 and dtype != "float32")
            # Slow: by pointers half precision in every third case.
            if path == "tma" or dtype == "float32" or i % 3 == 0 or everything or not INTERPRETED
        ]
        metafunc.parametrize(("case", "dtype", "path"), triples, ids=str, indirect=["path"])
        return
    if "dtype" in names:
        metafunc.parametrize("dtype", dtypes)
    marks = metafunc.definition.iter_markers("parametrize")
    if "path" in names and not any("path" in mark.args[0] for mark in marks):
        metafunc.parametrize("path", PATHS, indirect=True)


@pytest.fixture(autouse=True)
def kernels_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are the check; the one in a process of its own would come on top of each."""
    monkeypatch.setenv("SNIPER_SELF_CHECK", "skip")


@pytest.fixture
def device() -> str:
    """Where tensors lie."""
    return DEVICE


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels run: those of an sm_90, or those that an sm_80 has too."""
    from sniper.ops.backends.triton import launch

    params = request.node.callspec.params
    block = params["case"].block if "case" in params else params.get("block", 64)
    if request.param == "tma" and block < 64:
        pytest.skip("small blocks have one path")
    if request.param == "pointer":
        monkeypatch.setattr(launch, "arch", lambda device: 80)
    elif not INTERPRETED and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs a copy engine")
    return request.param


@pytest.fixture
def taken(path: str) -> str:
    """A dtype whose products the path's kernels take: in true float32 all go by pointers."""
    return "float16" if path == "tma" else "float32"
