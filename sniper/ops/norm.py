# SPDX-License-Identifier: Apache-2.0
"""LayerNorm, and what a Transformer calls Add & Norm, as one kernel.

Torch's own functions compute them where no kernel is trusted, and under `torch.compile`, which
fuses such chains itself. On a CPU also where no gradient is wanted, so that what a model says does
not depend on our kernels to the last bit, and in other dtypes than float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops import aside
from sniper.ops.autocast import autocast_dtype
from sniper.ops.backends import elementwise
from sniper.ops.backends.cpu import norm as cpu
from sniper.ops.backends.triton import norm as triton
from sniper.ops.backends.triton.launch import DTYPES
from sniper.ops.dropout import draw_seed
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed


def fuses_norm(x: Tensor, weight: Tensor, branch: Tensor | None = None, more: bool = False) -> bool:
    """Whether `add_norm` takes such tensors: our kernels may run, and nothing around needs torch's.

    Args:
        x, branch: as `add_norm` takes them.
        weight: of the norm.
        more: whether there is a ReLU before the norm or dropout behind it, which the CPU's kernel
            does not have.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    tensors = [t for t in (branch, x, weight) if t is not None]
    if any(t.dtype not in DTYPES or t.device != x.device for t in tensors):
        return False
    if branch is not None and branch.shape != x.shape or weight.shape != x.shape[-1:]:
        return False
    # Without autocast torch refuses a norm whose parameters have another dtype.
    if weight.dtype != x.dtype and autocast_dtype(x) is None:
        return False
    if triton.serves(tensors[0]):
        return True
    wanted = torch.is_grad_enabled() and autocast_dtype(x) is None and not more
    return wanted and cpu.takes(*tensors)


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float = 0.0,
    for_product: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """`s = x + dropout(branch)` and `layer_norm(s)`, or without a branch x and
    `dropout(layer_norm(x))`, where `fuses_norm` says so.

    Differentiable in x, branch, weight and bias, as often as one likes; backward is one kernel too.

    Args:
        x: `[..., C]`.
        branch: of x's shape; None: there is none, and it is the result that is dropped.
        weight, bias: `[C]`.
        p: share that is zeroed, in [0, 1), drawn anew at each call.
        for_product: give the normalised rows in the dtype that autocast multiplies in; else as
            torch does, in float32 under autocast.
        relu: without a branch: normalise `relu(x)`.

    Returns:
        s and the normalised rows, of x's shape.
    """
    dtype = autocast_dtype(x)
    if dtype is None:
        dtype = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    elif not for_product:
        dtype = torch.float32
    # Without dropout nothing is drawn, or torch's generator would move on.
    seed = draw_seed(x.device) if p else None
    s, y, _, _ = _add_norm(x, branch, weight, bias, eps, p, seed, dtype, relu)
    return x if branch is None else s, y


def _on_cpu(more: bool, dtype: torch.dtype, x: Tensor, *others: Tensor | None) -> bool:
    """Whether the CPU's kernel computes it; Triton's interpreter, where it serves, comes first.

    Args:
        more: as of `fuses_norm`.
        dtype: of the result.
    """
    tensors = [t for t in others if t is not None]
    known = not more and dtype == torch.float32 and cpu.takes(x, *tensors)
    return known and not triton.serves(x)


@operation("sniper::add_norm")
def _add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    seed: Tensor | None,
    dtype: torch.dtype,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s (empty without a branch), the normalised rows, and their mean and 1 / deviation."""
    number = 0 if seed is None else seed
    more = relu or (branch is None and p > 0)
    if _on_cpu(more, dtype, x, branch, weight, bias):
        s, y, mean, rstd = cpu.add_norm(x, branch, weight, bias, eps, p, int(number))
    else:
        s, y, mean, rstd = triton.add_norm(x, branch, weight, bias, eps, p, number, dtype, relu)
    # A custom op cannot return None for a tensor.
    return x.new_empty(0) if s is None else s, y, mean, rstd


@_add_norm.register_fake
def _(x, branch, weight, bias, eps, p, seed, dtype, relu):
    s = x.new_empty(0)
    if branch is not None:
        s = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
    mean, rstd = (x.new_empty(x.shape[:-1].numel(), dtype=torch.float32) for _ in range(2))
    return s, x.new_empty(x.shape, dtype=dtype), mean, rstd


@operation("sniper::add_norm_backward")
def _add_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    p: float,
    seed: Tensor | None,
    relu: bool,
    unread: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dbranch (empty without a branch), dweight, dbias; `unread` as `aside.is_unread` of weight
    and bias.
    """
    number = 0 if seed is None else seed
    more = relu or (branch_dtype is None and p > 0)
    if _on_cpu(more, dtype, dy, ds, s, weight):
        dx, dbranch, dweight, dbias = cpu.add_norm_backward(
            dy, ds, s, mean, rstd, weight, branch_dtype is not None, p, int(number)
        )
    else:
        args = (dy, ds, s, mean, rstd, weight, dtype, branch_dtype, p, number)
        dx, dbranch, dweight, dbias = triton.add_norm_backward(*args, relu=relu, unread=unread)
    return dx, dy.new_empty(0) if dbranch is None else dbranch, dweight, dbias


@_add_norm_backward.register_fake
def _(dy, ds, s, mean, rstd, weight, dtype, branch_dtype, p, seed, relu, unread):
    dbranch = dy.new_empty(0)
    if branch_dtype is not None:
        dbranch = s.new_empty(s.shape, dtype=branch_dtype)
    dweight, dbias = (weight.new_empty(weight.shape) for _ in range(2))
    return s.new_empty(s.shape, dtype=dtype), dbranch, dweight, dbias


def _save(ctx, inputs, output):
    x, branch, weight, bias, ctx.eps, ctx.p, seed, _, ctx.relu = inputs
    s, _, mean, rstd = output
    ctx.dtype, ctx.branch_dtype = x.dtype, None if branch is None else branch.dtype
    ctx.save_for_backward(x if branch is None else s, mean, rstd, weight, bias, seed)
    # A gradient that nobody asked for is None, not zeros that a kernel would have to read.
    ctx.set_materialize_grads(False)


def _backward(ctx, ds, dy, _dmean, _drstd):
    s, mean, rstd, weight, bias, seed = ctx.saved_tensors
    if ctx.branch_dtype is None:
        ds = None
    if dy is None:
        dy = torch.zeros_like(s)
    args = (dy, ds, s, mean, rstd, weight, ctx.dtype, ctx.branch_dtype, ctx.p, seed, ctx.relu)
    # Grad mode is on here only where somebody wants gradients of gradients.
    if torch.is_grad_enabled():
        dx, dbranch, dweight, dbias = _differentiable_backward(*args, bias)
    else:
        unread = aside.is_unread(weight) and aside.is_unread(bias)
        dx, dbranch, dweight, dbias = _add_norm_backward(*args, unread)
    return dx, None if ctx.branch_dtype is None else dbranch, dweight, dbias, *[None] * 5


def _differentiable_backward(
    dy, ds, s, mean, rstd, weight, dtype, branch_dtype, p, seed, relu, bias
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """`_add_norm_backward` by torch's functions, which have derivatives of their own."""
    rows = (*s.shape[:-1], 1)
    if branch_dtype is None and seed is not None:
        dy = dy.float() * elementwise.dropout(torch.ones_like(dy, dtype=torch.float32), p, seed)
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.float(),
        s.float().relu() if relu else s.float(),
        list(weight.shape),
        mean.detach().view(rows),
        rstd.detach().view(rows),
        weight.float(),
        bias.float(),
        [True, True, True],
    )
    dx = dx * (s > 0) if relu else dx
    dx = dx if ds is None else dx + ds.float()
    dbranch = None
    if branch_dtype is not None:
        dbranch = dx
        if seed is not None:
            dbranch = dx * elementwise.dropout(torch.ones_like(dx), p, seed)
        dbranch = dbranch.to(branch_dtype)
    return dx.to(dtype), dbranch, dweight.to(weight.dtype), dbias.to(bias.dtype)


_add_norm.register_autograd(_backward, setup_context=_save)
