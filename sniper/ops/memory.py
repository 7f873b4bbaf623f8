# SPDX-License-Identifier: Apache-2.0
"""What the process does with memory that tensors have left."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from sniper import _C

# Under it a mapping of its own costs more than the pages that it may spare.
_SMALL = 1 << 16


def keep_freed_memory() -> bool:
    """Has the process keep freed memory of the CPU for its next tensors, from now on.

    A training step frees what the next one asks for again, and by default malloc gives large blocks
    back to the system: at the size of the SNIPER paper's model that is some 30,000 page faults a
    step, and every other large output of a sparse layer waits for them. Kept, the process stays as
    large as its largest step.

    It holds for the whole process and everything in it, so it is for programs, not for libraries:
    `python -m sniper.train` calls it.

    Returns:
        Whether this system's malloc (glibc's) could be told.
    """
    return _C.cpu.keep_freed_memory()


def give_back_freed_memory() -> None:
    """Gives the system what tensors have left, once: for work that needs much more memory than what
    follows it. Does nothing where malloc is not glibc's.
    """
    _C.cpu.give_back_freed_memory()


def untouched_zeros_like(tensor: Tensor) -> Tensor:
    """Zeros that cost memory only from the first write to each page on, for what stays mostly zero
    and stays for many steps: gradients and moments of pruned weights.

    They lie outside malloc's heap, and so leave no gaps there between what comes and goes with
    every step.

    Args:
        tensor: dense, its dimensions in any order. Not on a CPU, or small: as `torch.zeros_like`.

    Returns:
        Of its shape, dtype and memory order.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size < _SMALL or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros_like(tensor)
    # Private, or a process that is forked would write to its parent's.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride())
