# SPDX-License-Identifier: Apache-2.0
"""A convolution with one filter a channel, along time: y = bias + sum_k w[:, k] x[t + k - pad].

Torch's CPU kernels for it take ten times what it computes. Ours take float32 on a CPU; whoever has
something else calls torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.autocast import autocast_dtype
from sniper.ops.backends.cpu import depthwise as cpu
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed


def fuses_depthwise(x: Tensor, weight: Tensor) -> bool:
    """Whether `depthwise` takes such tensors, and nothing around needs torch's.

    Args:
        x, weight: as `depthwise` takes them.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[1] != 1 or len(weight) != x.shape[1]:
        return False
    return cpu.takes(x, weight) and autocast_dtype(x) is None


@operation("sniper::depthwise")
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    """`conv1d(pad(x, (left, right)), weight, bias, groups=C)`, where `fuses_depthwise` says so.

    Differentiable in x, weight and bias, as often as one likes.

    Args:
        x: `[B, C, T]`, copied if it is not contiguous.
        weight: `[C, 1, taps]`.
        bias: `[C]`.
        left, right: zeros before and after.

    Returns:
        `[B, C, T + left + right - taps + 1]`, contiguous.

    Raises:
        ValueError: not float32 on the CPU, or shorter than the filter.
    """
    return cpu.depthwise(x, weight, bias, left, right)


@depthwise.register_fake
def _(x, weight, bias, left, right):
    return x.new_empty(*x.shape[:2], x.shape[2] + left + right - weight.shape[2] + 1)


@operation("sniper::depthwise_backward")
def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, left: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where none is needed."""
    return cpu.depthwise_backward(dy, x, weight, left, needs)


@_gradients.register_fake
def _(dy, x, weight, left, needs):
    shapes = (x.shape, weight.shape, weight.shape[:1])
    dx, dw, db = (x.new_empty(s if n else 0) for s, n in zip(shapes, needs, strict=True))
    return dx, dw, db


def _save(ctx, inputs, output):
    x, weight, bias, ctx.left, ctx.right = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    # Grad mode is on here only where somebody wants gradients of gradients.
    if torch.is_grad_enabled():
        y = F.conv1d(F.pad(x, (ctx.left, ctx.right)), weight, bias, groups=len(weight))
        wanted = [t for t, need in zip((x, weight, bias), needs, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
        return *[next(found) if need else None for need in needs], None, None
    found = _gradients(dy, x, weight, ctx.left, needs)
    return *[g if need else None for g, need in zip(found, needs, strict=True)], None, None


depthwise.register_autograd(_backward, setup_context=_save)
