# SPDX-License-Identifier: Apache-2.0
"""Four ways to compute one thing: `reference` and `dense` in torch, `cpu` in C++, `triton`."""

from sniper.ops.backends.cpu.products import CPU
from sniper.ops.backends.dense import DENSE
from sniper.ops.backends.reference import REFERENCE
from sniper.ops.backends.triton.products import TRITON

# One object each: a backend has no state, so there is nothing to make anew.
__all__ = ["CPU", "DENSE", "REFERENCE", "TRITON"]
