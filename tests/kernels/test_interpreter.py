# SPDX-License-Identifier: Apache-2.0
"""Runs this folder's kernel tests in Triton's interpreter, which needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A process for each would load torch and Triton eleven times; one for all would keep one core.
FILES = {
    "products": ("test_product.py", "test_wgrad.py", "test_wiring.py"),
    "others": (
        "test_adam_kernels.py",
        "test_attention_kernels.py",
        "test_batch_norm_kernels.py",
        "test_elementwise.py",
        "test_loss_kernels.py",
        "test_norm.py",
        "test_positions_kernels.py",
        "test_regulator_kernels.py",
    ),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
@pytest.mark.parametrize("group", FILES)
def test_kernels_in_the_interpreter(group, request):
    pytest.importorskip("triton")
    flags = ["--all-kernels"] if request.config.getoption("--all-kernels") else []
    files = [str(HERE / file) for file in FILES[group]]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, *flags],
        # Plugins that nothing there uses take seconds to load.
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_no_file_is_forgotten():
    apart = {"test_compile.py", "test_configs.py", Path(__file__).name}
    there = {path.name for path in HERE.glob("test_*.py")} - apart
    assert there == {name for files in FILES.values() for name in files}
