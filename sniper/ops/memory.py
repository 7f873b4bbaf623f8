# SPDX-License-Identifier: Apache-2.0
"""What the process does with memory that tensors have left."""

from __future__ import annotations

from sniper import _C


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
