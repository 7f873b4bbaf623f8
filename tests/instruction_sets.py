# SPDX-License-Identifier: Apache-2.0
"""Which of the CPU kernels' instruction sets this machine has."""

from __future__ import annotations

import contextlib

from sniper import _C


def instruction_sets() -> list[str]:
    names = []
    for name in ("avx512", "avx2", "portable"):
        with contextlib.suppress(ValueError):
            _C.cpu.set_instruction_set(name)
            names.append(name)
    _C.cpu.set_instruction_set("")
    return names
