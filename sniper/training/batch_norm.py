# SPDX-License-Identifier: Apache-2.0
"""BatchNorm over a batch that several ranks share: statistics of all of it, not of each part.

torch's `SyncBatchNorm` needs a GPU, and every rank to have some of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sniper.ops.backends.cpu import batch_norm as kernels
from sniper.sparsity.distributed import lost_if_fails

_apart = False


@contextlib.contextmanager
def statistics_apart() -> Iterator[None]:
    """Inside, a rank takes the statistics of its own part: for what it runs while others do not."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


class SharedBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` that, while it is trained, normalises by the mean and variance of all ranks'
    inputs together, in float32; the same state by the same names.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, T]` or `[B, C]` normalised, in the dtype of x."""
        if not self.training or _apart:
            return super().forward(x)
        rows = x.mT if x.dim() == 3 else x
        ours = kernels.takes(rows, self.weight, self.bias)
        normalise, given = (_NormaliseRows, rows) if ours else (_Normalise, x)
        y, mean, variance, count = normalise.apply(given, self.weight, self.bias, self.eps)
        self._track(mean, variance, count)
        return y.mT if ours and x.dim() == 3 else y

    def absent(self, device: torch.device) -> None:
        """A forward of the others, on a rank that has no input."""
        nothing = torch.zeros(3, self.num_features, device=device)
        self._track(*_combine(_gather(nothing)))

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # None is the mean of all batches, as in torch.
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def share_batch_norms(model: nn.Module) -> None:
    """Has every BatchNorm1d of a model normalise over all ranks, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SharedBatchNorm1d


def absent_loss(model: nn.Module) -> Tensor:
    """A loss of 0 for a rank that has no part of a batch; takes part in what the others' forward
    and backward exchange.

    The layers must be called in the order in which the model holds them, once each.
    """
    norms = [m for m in model.modules() if isinstance(m, SharedBatchNorm1d)]
    return _Absent.apply(next(model.parameters()), norms if model.training else [])


def _gather(mine: Tensor) -> Tensor:
    """`[ranks, 3, C]` of each rank's mean, sum of squared distances and count."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    with lost_if_fails():
        dist.all_gather(parts, mine)
    return torch.stack(parts)


def _combine(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count of everything, `[C]` each.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances (1979): no sum of squares, which would cancel.
    """
    means, squares, counts = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    square = (squares + counts * (means - mean).square()).sum(0)
    return mean, square / count, count


def _sum(values: Tensor) -> Tensor:
    with lost_if_fails():
        dist.all_reduce(values)
    return values


def _shares(sums: Tensor, count: Tensor) -> Tensor:
    """`[2, C]` means over all ranks' rows, of this rank's sums."""
    # Not in place: the sums are gradients of this rank too, which are added up with all others.
    return _sum(sums.clone()) / count


class _NormaliseRows(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps) * weight + bias` of rows `[..., C]`, statistics over all
    ranks, by the CPU's kernels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple:
        x = x.contiguous()  # once, for all three visits
        mean, squares = kernels.moments(x)
        own = torch.stack([mean, squares, torch.full_like(mean, x.numel() // x.shape[-1])])
        mean, variance, count = _combine(_gather(own))
        rstd = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, rstd, weight, bias, count)
        ctx.mark_non_differentiable(mean, variance, count)
        y = kernels.batch_norm(x, mean, rstd, weight, bias, False, 0.0, 0)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, mean, rstd, weight, bias, count = ctx.saved_tensors
        rest = (False, 0.0, 0)  # no tanh, no dropout and so no seed
        dz, dweight, dbias = kernels.gradient(grads[0], x, mean, rstd, weight, bias, *rest)
        shares = _shares(torch.stack([dweight, dbias]), count)
        return kernels.to_input(dz, x, mean, rstd, weight, shares), dweight, dbias, None


class _Normalise(torch.autograd.Function):
    """The same of `[B, C, T]` or `[B, C]`, in torch, on any device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple:
        wide = x.float()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        n = x.numel() // x.shape[1]
        mean = wide.mean(dims)
        # In two passes: over these dimensions torch.var_mean takes five times as long on a CPU.
        squares = (wide - mean.view(shape)).square().sum(dims)
        own = torch.stack([mean, squares, torch.full_like(mean, n)])
        mean, variance, count = _combine(_gather(own))
        scale = (variance + eps).rsqrt()
        normal = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale, weight, count)
        ctx.dims, ctx.shape, ctx.dtype = dims, shape, x.dtype
        y = normal * weight.view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        normal, scale, weight, count = ctx.saved_tensors
        dy = grads[0].float()
        dbias, dweight = dy.sum(ctx.dims), (dy * normal).sum(ctx.dims)
        along, mean = _shares(torch.stack([dweight, dbias]), count).unbind()
        shape = ctx.shape
        dx = dy - mean.view(shape) - normal * along.view(shape)
        dx = dx * (scale * weight).view(shape)
        return dx.to(ctx.dtype), dweight, dbias, None


class _Absent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, norms: list[SharedBatchNorm1d]) -> Tensor:
        ctx.norms, ctx.device = norms, anchor.device
        for norm in norms:
            norm.absent(anchor.device)
        return torch.zeros((), device=anchor.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        for norm in reversed(ctx.norms):
            _sum(torch.zeros(2, norm.num_features, device=ctx.device))
        return None, None
