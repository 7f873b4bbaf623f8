# SPDX-License-Identifier: Apache-2.0
"""BatchNorm of a training batch with the tanh and dropout behind it, in few visits.

Torch's own functions compute them where no kernel is trusted and under `torch.compile`, as for
`sniper.ops.norm`; on a CPU also where no gradient is wanted and in other dtypes than float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.autocast import autocast_dtype
from sniper.ops.backends import elementwise
from sniper.ops.backends.cpu import batch_norm as cpu
from sniper.ops.backends.triton import batch_norm as triton
from sniper.ops.backends.triton.launch import DTYPES
from sniper.ops.dropout import draw_seed
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed

Running = tuple[Tensor, Tensor, Tensor]


def fuses_batch_norm(x: Tensor, weight: Tensor) -> bool:
    """Whether `batch_norm` takes such tensors: our kernels may run, and nothing around needs
    torch's.

    Args:
        x, weight: as `batch_norm` takes them.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    if x.dtype not in DTYPES or weight.dtype != torch.float32 or weight.device != x.device:
        return False
    if weight.shape != x.shape[-1:]:
        return False
    if triton.serves(x):
        return True
    return torch.is_grad_enabled() and autocast_dtype(x) is None and cpu.takes(x, weight)


def _on_cpu(x: Tensor) -> bool:
    """Whether the CPU's kernels compute it; Triton's interpreter, where it serves, comes first."""
    return cpu.takes(x) and not triton.serves(x)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Running | None,
    momentum: float,
    eps: float,
    tanh: bool = False,
    p: float = 0.0,
) -> Tensor:
    """`dropout(tanh(batch_norm(x)))` with x's own statistics, where `fuses_batch_norm` says so.

    Differentiable in x, weight and bias, as often as one likes.

    Args:
        x: `[..., C]`, statistics over all rows.
        weight, bias: `[C]`.
        running: mean, variance and count of batches, as `nn.BatchNorm1d` keeps and moves them.
        momentum, eps: as of `nn.BatchNorm1d`.
        tanh: whether there is one.
        p: share that is zeroed, in [0, 1), drawn anew at each call.

    Returns:
        A tensor of x's shape and dtype.
    """
    mean, rstd = _statistics(x.detach(), *(running or (None, None, None)), momentum, eps)
    seed = draw_seed(x.device) if p else None
    return _normalised(x, mean, rstd, weight, bias, eps, tanh, p, seed)


@operation(
    "sniper::batch_norm_statistics",
    mutates_args=("running_mean", "running_var", "tracked"),
)
def _statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    tracked: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of the rows; moves what is kept. Apart from what is differentiable,
    since an op that writes to its arguments cannot be.
    """
    running = None
    if running_mean is not None and running_var is not None and tracked is not None:
        running = running_mean, running_var, tracked
    return (cpu if _on_cpu(x) else triton).statistics(x, eps, running, momentum)


@_statistics.register_fake
def _(x, running_mean, running_var, tracked, momentum, eps):
    mean, rstd = (x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2))
    return mean, rstd


@operation("sniper::batch_norm")
def _normalised(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    tanh: bool,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    number = 0 if seed is None else seed
    if _on_cpu(x):
        return cpu.batch_norm(x, mean, rstd, weight, bias, tanh, p, int(number))
    return triton.batch_norm(x, mean, rstd, weight, bias, tanh, p, number)


@_normalised.register_fake
def _(x, mean, rstd, weight, bias, eps, tanh, p, seed):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operation("sniper::batch_norm_backward")
def _gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    number = 0 if seed is None else seed
    if _on_cpu(x):
        return cpu.batch_norm_backward(dy, x, mean, rstd, weight, bias, tanh, p, int(number))
    return triton.batch_norm_backward(dy, x, mean, rstd, weight, bias, tanh, p, number)


@_gradients.register_fake
def _(dy, x, mean, rstd, weight, bias, tanh, p, seed):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dweight, dbias = (x.new_empty(x.shape[-1], dtype=torch.float32) for _ in range(2))
    return dx, dweight, dbias


def _save(ctx, inputs, output):
    x, mean, rstd, weight, bias, ctx.eps, ctx.tanh, ctx.p, seed = inputs
    ctx.save_for_backward(x, mean, rstd, weight, bias, seed)


def _backward(ctx, dy):
    x, mean, rstd, weight, bias, seed = ctx.saved_tensors
    # Grad mode is on here only where somebody wants gradients of gradients.
    if torch.is_grad_enabled():
        gradients = _differentiable(dy, x, weight, bias, ctx.eps, ctx.tanh, ctx.p, seed)
    else:
        gradients = _gradients(dy, x, mean, rstd, weight, bias, ctx.tanh, ctx.p, seed)
    dx, dweight, dbias = gradients
    return dx, None, None, dweight, dbias, *[None] * 4


def _differentiable(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    tanh: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """`_gradients` by torch's functions, which have derivatives of their own."""
    rows = x.reshape(-1, x.shape[-1]).float()
    y = F.batch_norm(rows, None, None, weight, bias, training=True, eps=eps).view(x.shape)
    y = y.tanh() if tanh else y
    if seed is not None:
        y = y * elementwise.dropout(torch.ones_like(y), p, seed)
    given = x, weight, bias
    wanted = [t for t in given if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy.float(), create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in given)


_normalised.register_autograd(_backward, setup_context=_save)
