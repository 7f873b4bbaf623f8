# SPDX-License-Identifier: Apache-2.0
"""Freed memory is found again: by the page faults of a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

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
