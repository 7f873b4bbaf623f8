# SPDX-License-Identifier: Apache-2.0
"""The CUDA sources: by the compiler that they are for, and run on the CPU with something broken."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_shim.build import GRID
from cuda_shim.mutate import REDUNDANT, mutants, survives

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
@pytest.mark.parametrize("source", sorted(p.name for p in (CSRC / "cuda").glob("*.cu")))
def test_cuda_compiles_without_spilling(source, tmp_path, request):
    wanted = (80, 90, 100) if request.config.getoption("--all-kernels") else (90,)
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted]
    command = [NVCC, "-std=c++17", f"-I{CSRC}", "-DSNIPER_WITH_CUDA", *archs, "-Xptxas=-v"]
    # Machine code alone: what runs on the host is checked on the way, but not compiled, which takes
    # longer than all else.
    command += ["-fatbin", str(CSRC / "cuda" / source), "-o", str(tmp_path / "out.fatbin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spills and set(spills) == {"0"}
    assert "warning" not in done.stderr


def test_the_shims_grid_is_a_smaller_one():
    assert GRID[0] in (CSRC / "cuda/mask_search.cuh").read_text()


def test_nothing_to_do_launches_nothing(cuda_shim):
    """An empty grid is an error of CUDA's."""
    before = cuda_shim.launches()
    cuda_shim.fixed_masks_cuda((0, 0, 0), 0, 0, (0, 1, 1.0, True), *[0] * 7)
    cuda_shim.fixed_masks_cuda((0, 0, 3), 9, 3, (0, 0, 1.0, True), *[0] * 7)
    cuda_shim.following_masks_cuda((0, 0, 0), 0, 0, (0, 0, 1), *[0] * 5)
    cuda_shim.following_masks_cuda((0, 0, 3), 9, 3, (0, 0, 0), *[0] * 5)
    cuda_shim.pool_saliency_cuda((0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 4, 2), 0, 0)
    cuda_shim.update_layers_cuda((0, 0, cuda_shim.layer_update_bytes), 0, 0, 0)
    cuda_shim.pack_bits_cuda(0, 0, 0, 0)
    cuda_shim.unpack_bits_cuda(0, 0, 0, 0)
    assert cuda_shim.launches() == before


def test_the_list_of_changes_is_up_to_date():
    """What `make mutate` runs whole: each explained survivor is still one of the changes."""
    listed = {(m.file, m.change, m.code) for m in mutants()}
    assert set(REDUNDANT) <= listed
    assert len(listed) >= 60


SAMPLE = [
    ("mask_rebuild.cu", "no barrier"),  # between rounds of 256 row lengths
    ("mask_search.cuh", "no barrier"),
    ("mask_following.cu", "one too far"),
    ("mask_bits.cu", "no early return"),
]


@pytest.mark.parametrize(("file", "change"), SAMPLE)
def test_a_broken_kernel_is_caught(file, change, cuda_shim):
    wanted = (m for m in mutants() if (m.file, m.change) == (file, change) and not m.reason)
    assert not survives(next(wanted))
