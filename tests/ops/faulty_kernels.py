# SPDX-License-Identifier: Apache-2.0
"""The real cases over kernels with faults on purpose, for `test_selfcheck.py`: each launch goes to
Triton's interpreter, with four kernels exchanged.
"""

from __future__ import annotations

import time

import quick_interpreter  # noqa: F401
import triton
import triton.language as tl

from sniper.ops import selfcheck, selfcheck_cases
from sniper.ops.backends.triton import launch

LEFT_OUT = {selfcheck.BATCH_NORM}


class Launcher:
    """Stands for a kernel, and does something else than launch it as asked."""

    def __init__(self, kernel, launched):
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid):
        return lambda *args, **options: self.launched(self.kernel[grid], args, options)


def one_value_off(out):
    """What a race leaves: a single entry of one block is not what it should be."""

    def launched(run, args, options):
        run(*args, **options)
        args[out][0, 3, 5] += args[out].abs().max() / 8

    return launched


@triton.jit
def cannot_be_compiled(pointer, N: tl.constexpr):
    tl.static_assert(N == 0, "shared memory, required: 300000, limit: 232448")
    tl.store(pointer, N)


def refused(run, args, options):
    cannot_be_compiled[(1,)](args[0], N=1)


def never_ends(run, args, options):
    time.sleep(600)


def families(dtype, block_size, device):
    real = launch.kernels()
    real.product_pointer = Launcher(real.product_pointer, one_value_off(out=2))
    real.add_norm_backward = Launcher(real.add_norm_backward, one_value_off(out=6))
    real.relu_dropout_backward = Launcher(real.relu_dropout_backward, refused)
    real.wgrad_pointer = Launcher(real.wgrad_pointer, never_ends)
    checks = selfcheck_cases.families(dtype, block_size, device)
    # Two whole ones are enough beside those with a fault.
    return {name: check for name, check in checks.items() if name not in LEFT_OUT}
