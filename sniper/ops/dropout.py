# SPDX-License-Identifier: Apache-2.0
"""Dropout from a counter: the mask is a function of a seed and a position, so nothing is stored.

On the CPU our kernels run on all threads, on a GPU in one pass with ReLU; elsewhere torch's own
dropout does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backend import sum_dtype
from sniper.ops.backends import elementwise
from sniper.ops.backends.cpu import elementwise as cpu
from sniper.ops.backends.triton import elementwise as triton
from sniper.ops.geometry import check_floating, check_share, check_tensor
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`x * keep / (1 - p)`, with keep drawn anew at each call from torch's generator.

    Args:
        x: any shape.
        p: share that is zeroed, in [0, 1].
        training: False returns x.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: x is no tensor, or not of floating-point numbers where something is dropped, or
            p outside [0, 1].
    """
    _check(x, p)
    if not training or p == 0:
        return x
    check_floating("x", x)
    # p = 1 has no finite scale; torch defines the result as zeros.
    if p == 1 or not elementwise.takes_on_cpu(x) or transformed():
        return F.dropout(x, p)
    return _dropout(x, p, draw_seed())


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`dropout(relu(x), p)` in one pass, and one in backward.

    Args:
        x: any shape.
        p: share that is zeroed, in [0, 1].
        training: False drops nothing.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: x is no tensor, or not of floating-point numbers, or p outside [0, 1].
    """
    _check(x, p)
    check_floating("x", x)
    p = p if training else 0.0
    if p == 1 or not elementwise.takes(x) or transformed():
        return F.dropout(F.relu(x), p)
    seed = draw_seed(x.device) if p else torch.zeros((), dtype=torch.int64, device=x.device)
    return _relu_dropout(x, p, seed)


def _check(x: Tensor, p: float) -> None:
    check_tensor("x", x)
    check_share("dropout", p)


# Seeds that are drawn and not given out yet, while `seeds_together` is in force; else None.
_drawn: list[Tensor] | None = None
_SEEDS = 64


@contextlib.contextmanager
def seeds_together() -> Iterator[None]:
    """Inside, seeds on a GPU are drawn many at a time, in one launch. The rest is dropped at the
    end: the generator alone says what comes next, as whoever resumes a run needs it.
    """
    global _drawn
    before, _drawn = _drawn, []
    try:
        yield
    finally:
        _drawn = before


def draw_seed(device: torch.device | str = "cpu") -> Tensor:
    """A seed from torch's generator, so that `torch.manual_seed` rules all draws."""
    device = torch.device(device)
    # A tensor, not a number: a compiled or captured graph must draw it at each call.
    if _drawn is None or device.type == "cpu" or torch.compiler.is_compiling():
        return torch.randint(2**62, (), dtype=torch.int64, device=device)
    return _next_seed(_drawn, device)


def _next_seed(drawn: list[Tensor], device: torch.device) -> Tensor:
    # One device a step; another one's are drawn anew.
    if not drawn or drawn[-1].device != device:
        # 16 bytes apart: kernels are made for addresses that are a multiple of that.
        seeds = torch.randint(2**62, (_SEEDS, 2), dtype=torch.int64, device=device)
        drawn[:] = seeds[:, 0].unbind()
    return drawn.pop()


@operation("sniper::dropout")
def _dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    return cpu.dropout(x, p, int(seed))


@_dropout.register_fake
def _(x, p, seed):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_seed(ctx, inputs, output):
    _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _dropout_backward(ctx, dy):
    return _dropout(dy, ctx.p, ctx.saved_tensors[0]), None, None


_dropout.register_autograd(_dropout_backward, setup_context=_save_seed)


@operation("sniper::relu_dropout")
def _relu_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    return elementwise.dropout(x, p, seed, relu=True)


@_relu_dropout.register_fake
def _(x, p, seed):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operation("sniper::relu_dropout_backward")
def relu_dropout_grad(dy: Tensor, y: Tensor, p: float) -> Tensor:
    return elementwise.relu_dropout_backward(dy, y, p)


@relu_dropout_grad.register_fake
def _(dy, y, p):
    return torch.empty_like(dy, memory_format=torch.contiguous_format)


@operation("sniper::relu_dropout_backward_bias")
def relu_dropout_grad_bias(dy: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`relu_dropout_grad` and its sum over all rows; on a GPU, where it is one pass."""
    return triton.relu_dropout_backward_bias(dy, y, p)


@relu_dropout_grad_bias.register_fake
def _(dy, y, p):
    dz = torch.empty_like(dy, memory_format=torch.contiguous_format)
    return dz, dy.new_empty(dy.shape[-1], dtype=sum_dtype(dy))


def _save_output(ctx, inputs, output):
    ctx.p = inputs[1]
    ctx.save_for_backward(output)


def _relu_dropout_backward(ctx, dy):
    # y > 0 tells both what ReLU let through and what dropout kept.
    return relu_dropout_grad(dy, ctx.saved_tensors[0], ctx.p), None, None


_relu_dropout.register_autograd(_relu_dropout_backward, setup_context=_save_output)


def _save_y(ctx, inputs, output):
    _, y, ctx.p = inputs
    ctx.save_for_backward(y)


def _second_backward(ctx, ddz, ddb=None):
    # The gradient is linear in dy and depends on y by its sign alone, so y has no gradient.
    ddz = ddz if ddb is None else ddz + ddb
    return relu_dropout_grad(ddz, ctx.saved_tensors[0], ctx.p), None, None


for _each in (relu_dropout_grad, relu_dropout_grad_bias):
    _each.register_autograd(_second_backward, setup_context=_save_y)
