# SPDX-License-Identifier: Apache-2.0
"""Freed memory is found again: by the page faults of a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sniper.ops.backends.cpu.launch import empty
from sniper.ops.memory import untouched_zeros_like

PROGRAM = """
import json, resource, sys, torch
from sniper.ops import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == "kept" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):  # several at a time, as a step has them
        four = [torch.ones(6 * 2**20) for _ in range(4)]
        del four
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(json.dumps([told, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_the_next_tensors_cost_no_page_faults():
    def run(how: str) -> tuple[bool | None, int]:
        # Left alone, malloc learns the sizes that it sees, and what it returns is a matter of luck.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, "-c", PROGRAM, how]
        return json.loads(subprocess.run(command, capture_output=True, check=True, env=env).stdout)

    told, kept = run("kept")
    assert told is True
    _, freed = run("freed")
    assert kept < 100 < 1000 < freed


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_zeros_take_memory_where_they_are_written():
    weight = torch.empty(2048, 8, 1024).permute(0, 2, 1)
    before = resident()
    zeros = untouched_zeros_like(weight)
    zeros[3] = 1.0
    # Of 64 MiB; what else the process does takes some, too.
    assert resident() - before < 1 << 24 < 1 << 26 == zeros.untyped_storage().nbytes()
    assert zeros.shape == weight.shape and zeros.stride() == weight.stride()
    assert zeros.sum() == 8192 and (zeros[3] == 1).all()
    small = untouched_zeros_like(weight[0, :, 0])
    assert not small.any() and small.shape == (1024,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_zeros_are_not_shared_with_a_child():
    zeros = untouched_zeros_like(torch.empty(1 << 16))
    child = os.fork()
    if child == 0:
        zeros.numpy()[:] = 1.0  # no threads: a fork has none of torch's
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not zeros.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_lie_on_cache_lines_and_keep_their_memory(dtype):
    several = [empty(dtype, 3, 1 << 18).fill_(i) for i in range(4)]
    assert all(t.data_ptr() % 64 == 0 and t.shape == (3, 1 << 18) for t in several)
    assert all((t == i).all() for i, t in enumerate(several))
