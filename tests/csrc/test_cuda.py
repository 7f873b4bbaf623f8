# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources, by the compiler that they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
@pytest.mark.parametrize("source", sorted(p.name for p in (CSRC / "cuda").glob("*.cu")))
def test_cuda_compiles_without_spilling(source, tmp_path):
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    command = [NVCC, "-std=c++17", f"-I{CSRC}", "-DSNIPER_WITH_CUDA", *archs, "-Xptxas=-v"]
    command += ["-c", str(CSRC / "cuda" / source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spills and set(spills) == {"0"}
    assert "warning" not in done.stderr
