# SPDX-License-Identifier: Apache-2.0
"""LayerNorm on the CPU, with a residual and its dropout, and their gradient, one visit each."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, dropout_arguments, empty


def takes(*tensors: Tensor) -> bool:
    """Whether these kernels take such rows, branch and weights."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and (
        tensors[0].dim() > 0 and tensors[0].shape[-1] > 0
    )


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    seed: int,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`s = x + dropout(branch)` and LayerNorm of its rows; without a branch that of x.

    Dropout zeroes what `elementwise.dropout(branch, p, seed)` does.

    Args:
        x: float32 `[..., C]`.
        branch: of x's shape; or None.
        weight, bias: `[C]`.

    Returns:
        s, or None without a branch; the normalised rows; and `[rows]` mean and 1 / standard
        deviation.

    Raises:
        ValueError: not float32 on the CPU, shapes that do not fit, or `p` outside [0, 1).
    """
    columns = _check(x)
    for name, t, shape in (("branch", branch, x.shape), ("weight", weight, (columns,))):
        if t is not None:
            check_tensor(name, t, None, torch.float32)
            check_shape(name, t, tuple(shape))
    check_tensor("bias", bias, None, torch.float32)
    check_shape("bias", bias, (columns,))
    x, branch = x.contiguous(), None if branch is None else branch.contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    s = None if branch is None else empty(torch.float32, *x.shape)
    y = empty(torch.float32, *x.shape)
    rows = x.numel() // columns
    mean, rstd = torch.empty(rows), torch.empty(rows)
    tensors = (x, branch, weight, bias, s, y, mean, rstd)
    addresses = (0 if t is None else t.data_ptr() for t in tensors)
    _C.cpu.add_norm(
        *addresses, rows, columns, eps, dropout_arguments(p, seed), torch.get_num_threads()
    )
    return s, y, mean, rstd


def add_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    with_branch: bool,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of `add_norm`; dweight and dbias are sums in an order that the shape decides.

    Args:
        dy: of the normalised rows.
        ds: of s, where it is used otherwise too; or None.
        s, mean, rstd: what was normalised (x without a branch), and its statistics.
        with_branch: whether there was one.

    Returns:
        dx, dbranch (None without a branch), dweight, dbias.

    Raises:
        ValueError: as there.
    """
    columns = _check(s)
    rows = s.numel() // columns
    shapes = {"mean": (mean, (rows,)), "rstd": (rstd, (rows,)), "weight": (weight, (columns,))}
    shapes |= {"dy": (dy, s.shape)} | ({} if ds is None else {"ds": (ds, s.shape)})
    for name, (t, shape) in shapes.items():
        check_tensor(name, t, None, torch.float32)
        check_shape(name, t, tuple(shape))
    dy, ds, s = dy.contiguous(), None if ds is None else ds.contiguous(), s.contiguous()
    mean, rstd, weight = mean.contiguous(), rstd.contiguous(), weight.contiguous()
    dx = empty(torch.float32, *s.shape)
    dbranch = empty(torch.float32, *s.shape) if with_branch else None
    dweight, dbias = torch.empty(columns), torch.empty(columns)
    tensors = (dy, ds, s, mean, rstd, weight, dx, dbranch, dweight, dbias)
    addresses = (0 if t is None else t.data_ptr() for t in tensors)
    _C.cpu.add_norm_backward(
        *addresses, rows, columns, dropout_arguments(p, seed), torch.get_num_threads()
    )
    return dx, dbranch, dweight, dbias


def _check(x: Tensor) -> int:
    """The columns of rows that the kernels take."""
    check_tensor("x", x, None, torch.float32)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: expected rows of at least one column, got shape {list(x.shape)}")
    return x.shape[-1]
