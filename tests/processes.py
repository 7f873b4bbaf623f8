# SPDX-License-Identifier: Apache-2.0
"""Processes that begin with all imports done, which takes each of them seconds otherwise."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch

# Forks a process that has imported, once for all tests, what these name and done nothing else.
FORK = multiprocessing.get_context("forkserver")
# The last is what the first optimizer would import, for seconds.
FORK.set_forkserver_preload(
    ["pytest", "sniper.train", "sniper.training.run", "sniper.training.report", "torch._dynamo"]
)


def spawn(work: Callable[..., None], size: int, *args: Any) -> None:
    """Runs `work(rank, *args)` in so many processes, in this one's environment."""
    torch.multiprocessing.start_processes(
        _begin, (work, dict(os.environ), args), nprocs=size, start_method="forkserver"
    )


def _begin(rank: int, work: Callable[..., None], environment: dict[str, str], args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(rank, *args)
