# SPDX-License-Identifier: Apache-2.0
"""BatchNorm of rows on the CPU, with the tanh and dropout behind it, and its gradient.

Sums over rows have an order that the shape alone decides: the same bits for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, dropout_arguments, empty


def takes(*tensors: Tensor) -> bool:
    """Whether these kernels take such rows and weights: float32 on the CPU, not empty."""
    known = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return known and tensors[0].dim() > 0 and tensors[0].numel() > 0


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squared distances to it, over all rows of `[..., C]`; `[C]` each.

    Raises:
        ValueError: not float32 on the CPU, or no rows.
    """
    check_tensor("x", x, None, torch.float32)
    if not takes(x):
        raise ValueError(f"x: expected at least one row, got shape {list(x.shape)}")
    x = x.contiguous()
    mean, squares = torch.empty(x.shape[-1]), torch.empty(x.shape[-1])
    size, threads = _size(x), torch.get_num_threads()
    _C.cpu.batch_moments(x.data_ptr(), size, mean.data_ptr(), squares.data_ptr(), threads)
    return mean, squares


def statistics(
    x: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor, Tensor] | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean and `1 / sqrt(variance + eps)` over all rows of `[..., C]`, `[C]` each.

    Args:
        running: mean and variance `[C]`, and the count of batches; moved as `nn.BatchNorm1d` moves
            them, by `momentum`.

    Raises:
        ValueError: as `moments`.
    """
    mean, squares = moments(x)
    rows = x.numel() // x.shape[-1]
    if running is not None:
        kept_mean, kept_variance, count = running
        kept_mean.lerp_(mean, momentum)
        kept_variance.lerp_(squares / max(rows - 1, 1), momentum)
        count += 1
    return mean, (squares / rows + eps).rsqrt_()


def batch_norm(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: int,
) -> Tensor:
    """`dropout(tanh((x - mean) * rstd * weight + bias))` of `[..., C]`, the tanh if asked; dropout
    zeroes what `elementwise.dropout` of a tensor of this shape does.

    Raises:
        ValueError: not float32 on the CPU, shapes that do not fit, or `p` outside [0, 1).
    """
    operands = _checked(x, mean, rstd, weight, bias)
    y = empty(torch.float32, *x.shape)
    ends = (tanh, dropout_arguments(p, seed), y.data_ptr(), torch.get_num_threads())
    _C.cpu.batch_norm(_addresses(operands), _size(x), *ends)
    return y


def gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dz, dweight and dbias of `batch_norm`, z being what the tanh is of: `to_input` turns dz into
    dx, when it is known what of it the statistics take.

    Raises:
        ValueError: as `batch_norm`.
    """
    operands = _checked(x, mean, rstd, weight, bias)
    check_tensor("dy", dy, None, torch.float32)
    check_shape("dy", dy, tuple(x.shape))
    dy, dz = dy.contiguous(), empty(torch.float32, *x.shape)
    dweight, dbias = torch.empty(x.shape[-1]), torch.empty(x.shape[-1])
    outputs = (t.data_ptr() for t in (dy, dz, dweight, dbias))
    ends = (dropout_arguments(p, seed), *outputs, torch.get_num_threads())
    _C.cpu.batch_norm_gradient(_addresses(operands), _size(x), tanh, *ends)
    return dz, dweight, dbias


def to_input(
    dz: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, shares: Tensor
) -> Tensor:
    """dx, in the memory of dz.

    Args:
        dz: of `gradient`.
        shares: `[2, C]`: the means of `dz * (x - mean) * rstd` and of dz over all rows that the
            statistics are of.

    Raises:
        ValueError: as `batch_norm`.
    """
    operands = _checked(x, mean, rstd, weight, weight)
    for name, t, shape in (("dz", dz, x.shape), ("shares", shares, (2, x.shape[-1]))):
        check_tensor(name, t, None, torch.float32)
        check_shape(name, t, tuple(shape))
    shares = shares.contiguous()
    ends = (shares.data_ptr(), dz.data_ptr(), torch.get_num_threads())
    _C.cpu.batch_norm_input(_addresses(operands), _size(x), *ends)
    return dz


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias of `batch_norm` with x's own statistics: through them too.

    Raises:
        ValueError: as `batch_norm`.
    """
    dz, dweight, dbias = gradient(dy, x, mean, rstd, weight, bias, tanh, p, seed)
    shares = torch.stack([dweight, dbias]) / (x.numel() // x.shape[-1])
    return to_input(dz, x, mean, rstd, weight, shares), dweight, dbias


def _checked(x: Tensor, *columns: Tensor) -> list[Tensor]:
    """All of them contiguous, the last four float32 `[C]`."""
    check_tensor("x", x, None, torch.float32)
    if not takes(x):
        raise ValueError(f"x: expected at least one row, got shape {list(x.shape)}")
    for name, t in zip(("mean", "rstd", "weight", "bias"), columns, strict=True):
        check_tensor(name, t, None, torch.float32)
        check_shape(name, t, (x.shape[-1],))
    return [t.contiguous() for t in (x, *columns)]


def _addresses(operands: list[Tensor]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in operands)


def _size(x: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return x.numel() // x.shape[-1], x.shape[-1]
