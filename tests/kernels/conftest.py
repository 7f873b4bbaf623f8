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
RUN_BY_HAND = {"test_compile.py", "test_configs.py", "test_interpreter.py"}


def pytest_configure(config: pytest.Config) -> None:
    if INTERPRETED and not config.getoption("--all-kernels"):
        import quick_interpreter  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        kernel_test = item.path.parent == here and item.path.name not in RUN_BY_HAND
        if kernel_test and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: the module's CASES, and its MORE_CASES with --all-kernels; `dtype`: by name."""
    names, everything = metafunc.fixturenames, metafunc.config.getoption("--all-kernels")
    # The interpreter multiplies bfloat16 wrongly.
    dtypes = ["float32", "float16", *([] if INTERPRETED else ["bfloat16"])]
    if "case" in names:
        cases = list(metafunc.module.CASES)
        if everything:
            cases += [c for c in metafunc.module.MORE_CASES if c not in cases]
        pairs = list(itertools.product(cases, dtypes))
        if INTERPRETED and not everything:  # slow: half precision in every third case
            pairs = [(c, d) for i, c in enumerate(cases) for d in dtypes[: 2 if i % 3 == 0 else 1]]
        metafunc.parametrize(("case", "dtype"), pairs, ids=str)
    elif "dtype" in names:
        metafunc.parametrize("dtype", dtypes)


@pytest.fixture(autouse=True)
def kernels_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are the check; the one in a process of its own would come on top of each."""
    monkeypatch.setenv("SNIPER_SELF_CHECK", "skip")


@pytest.fixture
def device() -> str:
    """Where tensors lie."""
    return DEVICE


@pytest.fixture(params=["tma", "pointer"])
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
