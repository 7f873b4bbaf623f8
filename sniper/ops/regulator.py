# SPDX-License-Identifier: Apache-2.0
"""The length regulator on a GPU: one kernel forward, and one for the gradient.

Torch's own functions compute it where no kernel is trusted, on a CPU, under `torch.compile` and
inside function transforms: `sniper.tts.model.variance.regulate_length` chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.backends.triton import regulator as triton
from sniper.ops.backends.triton.launch import DTYPES
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed


def fuses_repeat(x: Tensor, durations: Tensor) -> bool:
    """Whether `repeat_tokens` takes such tensors: our kernels may run, and nothing around needs
    torch's.

    Args:
        x, durations: as `repeat_tokens` takes them.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    # A subclass may know torch's functions and not this one.
    if type(x) is not Tensor or type(durations) is not Tensor or x.device != durations.device:
        return False
    if x.dtype not in DTYPES or durations.dtype != torch.int64 or durations.shape != x.shape[:2]:
        return False
    return x.dim() == 3 and triton.serves(x)


@operation("sniper::repeat_tokens")
def repeat_tokens(x: Tensor, durations: Tensor, length: int) -> Tensor:
    """`y[b, t] = x[b, token at frame t]`, where `fuses_repeat` says so.

    Differentiable in x, as often as one likes. The gradient adds up a token's frames in their
    order, in float32: the same bits at each run.

    Args:
        x: `[B, L, C]`.
        durations: int64 `[B, L]`, frames, 0 or more.
        length: frames of the result; longer sequences are cut.

    Returns:
        `[B, length, C]`, 0 past a sequence's last frame.
    """
    return triton.repeat_tokens(x, durations, length)


@repeat_tokens.register_fake
def _(x, durations, length):
    return x.new_empty(x.shape[0], length, x.shape[2])


@operation("sniper::repeat_tokens_backward")
def _sums(dy: Tensor, durations: Tensor) -> Tensor:
    return triton.repeat_tokens_backward(dy, durations)


@_sums.register_fake
def _(dy, durations):
    return dy.new_empty(*durations.shape, dy.shape[2])


def _save(ctx, inputs, output):
    _, durations, ctx.length = inputs
    ctx.save_for_backward(durations)


def _backward(ctx, dy):
    return _sums(dy, *ctx.saved_tensors), None, None


# Each is the other's gradient: both are linear.
def _save_sums(ctx, inputs, output):
    dy, durations = inputs
    ctx.length = dy.shape[1]
    ctx.save_for_backward(durations)


def _backward_of_sums(ctx, ddx):
    return repeat_tokens(ddx, *ctx.saved_tensors, ctx.length), None


repeat_tokens.register_autograd(_backward, setup_context=_save)
_sums.register_autograd(_backward_of_sums, setup_context=_save_sums)
