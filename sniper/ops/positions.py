# SPDX-License-Identifier: Apache-2.0
"""A sequence, its positions and dropout in one visit each way, on a GPU.

Torch's own functions compute it where no kernel is trusted, on a CPU, under `torch.compile` and
inside function transforms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sniper.ops.backends import elementwise
from sniper.ops.backends.triton import positions as triton
from sniper.ops.backends.triton.launch import DTYPES
from sniper.ops.dropout import draw_seed
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed


def fuses_positions(x: Tensor, encoding: Tensor, alpha: Tensor | None) -> bool:
    """Whether `add_positions` takes such tensors: our kernels may run, and nothing around needs
    torch's.

    Args:
        x, encoding, alpha: as `add_positions` takes them.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    # A subclass may know torch's functions and not this one.
    given = [t for t in (x, encoding, alpha) if t is not None]
    if any(type(t) not in (Tensor, nn.Parameter) or t.device != x.device for t in given):
        return False
    if x.dtype not in DTYPES or encoding.dtype not in (x.dtype, torch.float32):
        return False
    if alpha is not None and (alpha.dtype != encoding.dtype or alpha.dim()):
        return False
    return x.dim() == 3 and encoding.shape == x.shape[1:] and triton.serves(x)


def add_positions(
    x: Tensor, encoding: Tensor, alpha: Tensor | None, factor: float = 1.0, p: float = 0.0
) -> Tensor:
    """`dropout(factor * x + alpha * encoding)`, where `fuses_positions` says so.

    Differentiable in x and alpha, as often as one likes.

    Args:
        x: `[B, T, C]`.
        encoding: `[T, C]`, of x's dtype or float32, without a gradient.
        alpha: a scalar of encoding's dtype; None: 1.
        p: share that is zeroed, in [0, 1), drawn anew at each call.

    Returns:
        `[B, T, C]`, of encoding's dtype, as torch has it.
    """
    # Without dropout nothing is drawn, or torch's generator would move on.
    return _added(x, encoding, alpha, factor, p, draw_seed(x.device) if p else None)


@operation("sniper::add_positions")
def _added(
    x: Tensor,
    encoding: Tensor,
    alpha: Tensor | None,
    factor: float,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    return triton.add_positions(x, encoding, alpha, factor, p, 0 if seed is None else seed)


@_added.register_fake
def _(x, encoding, alpha, factor, p, seed):
    return x.new_empty(x.shape, dtype=encoding.dtype)


@operation("sniper::add_positions_backward")
def _gradients(
    dy: Tensor,
    encoding: Tensor,
    dtype: torch.dtype,
    scaled: bool,
    factor: float,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """dx and dalpha, empty where it is not `scaled`."""
    number = 0 if seed is None else seed
    dx, dalpha = triton.add_positions_backward(dy, encoding, dtype, scaled, factor, p, number)
    # A custom op cannot return None for a tensor.
    return dx, encoding.new_empty(0) if dalpha is None else dalpha.to(encoding.dtype)


@_gradients.register_fake
def _(dy, encoding, dtype, scaled, factor, p, seed):
    return dy.new_empty(dy.shape, dtype=dtype), encoding.new_empty(() if scaled else 0)


def _save(ctx, inputs, output):
    x, encoding, alpha, ctx.factor, ctx.p, seed = inputs
    ctx.dtype, ctx.scaled = x.dtype, alpha is not None
    ctx.save_for_backward(encoding, seed)


def _backward(ctx, dy):
    encoding, seed = ctx.saved_tensors
    # Grad mode is on here only where somebody wants gradients of gradients.
    if torch.is_grad_enabled():
        kept = dy.float()
        if seed is not None:
            kept = kept * elementwise.dropout(torch.ones_like(kept), ctx.p, seed)
        dx, dalpha = (kept * ctx.factor).to(ctx.dtype), (kept * encoding).sum().to(encoding.dtype)
    else:
        args = (dy, encoding, ctx.dtype, ctx.scaled, ctx.factor, ctx.p, seed)
        dx, dalpha = _gradients(*args)
    return dx, None, dalpha if ctx.scaled else None, None, None, None


_added.register_autograd(_backward, setup_context=_save)
