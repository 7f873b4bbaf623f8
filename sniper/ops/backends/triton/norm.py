# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's LayerNorm, with the residual and its dropout, and their gradient."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import aside, selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK, dropout_args
from sniper.ops.backends.triton.launch import check as check_tensor
from sniper.ops.backends.triton.launch import countable, kernels, matrix_shape, on, usable

# Partial sums of the gradients of weight and bias: as many programs of one warp as the 132
# multiprocessors of a large GPU hold at once, and no more, since another kernel reads what they
# write.
MOST_CHUNKS = 1536


def serves(x: Tensor) -> bool:
    """Whether these kernels may run on rows such as x's: that they fit, and passed their check."""
    if not usable(x) or not _fits(x):
        return False
    return selfcheck.trusted(x, ELEMENTWISE_BLOCK, selfcheck.NORM)


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float,
    seed: int | Tensor,
    dtype: torch.dtype,
    relu: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`s = x + dropout(branch)` and LayerNorm of its rows; without a branch dropout of LayerNorm of
    x, or of `relu(x)` if asked.

    Dropout zeroes what `elementwise.dropout(branch, p, seed)` does. The arithmetic is float32.

    Args:
        x: `[..., C]`, float32, bfloat16 or float16.
        branch: of x's shape, of any of these dtypes; or None.
        weight, bias: `[C]`.
        dtype: of the normalised rows.

    Returns:
        s in the wider of both dtypes, or None without a branch; the normalised rows; and float32
        `[rows]` mean and 1 / standard deviation.

    Raises:
        ValueError: shapes, dtypes or devices that do not do, or `p` outside [0, 1).
    """
    s_dtype = _check(x, branch, weight, bias)
    x, branch = x.contiguous(), None if branch is None else branch.contiguous()
    seed_there, threshold, scale = dropout_args(p, seed, x.device)
    s = None if branch is None else torch.empty_like(x, dtype=s_dtype)
    y = torch.empty_like(x, dtype=dtype)
    rows, columns = matrix_shape(x)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if rows:
        bm, bn, warps, _ = configs.norm(columns)
        args = (x, branch, weight.contiguous(), bias.contiguous(), s, y, mean, rstd, seed_there)
        args += (rows, columns, eps, threshold, scale)
        with on(x.device):
            tile = {"BM": bm, "BN": bn, "num_warps": warps}
            kernels().add_norm[(-(-rows // bm),)](*args, **tile, RELU=relu)
    return s, y, mean, rstd


def add_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    p: float = 0.0,
    seed: int | Tensor = 0,
    most_chunks: int = MOST_CHUNKS,
    relu: bool = False,
    unread: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of `add_norm`, in one visit, and one of the partial sums.

    Args:
        dy: of the normalised rows.
        ds: of s, where it is used otherwise too; or None.
        s, mean, rstd: what was normalised (x without a branch), and its statistics.
        dtype, branch_dtype: of x and branch; None without a branch.
        most_chunks: programs that share the rows, and partial sums that they leave.
        relu: whether s, which is x then, was normalised after a ReLU.
        unread: nothing reads dweight and dbias before the pass's end (`sniper.ops.aside`).

    Returns:
        dx, dbranch (None without a branch), dweight, dbias. The latter two are sums in an order
        that the shape decides.

    Raises:
        ValueError: shapes, dtypes or devices that do not do, or `p` outside [0, 1).
    """
    for name, t in (("dy", dy), ("ds", ds), ("s", s)):
        if t is not None:
            check_tensor(name, t, t, None)
            check_shape(name, t, tuple(s.shape))
    rows, columns = matrix_shape(s)
    dy, s, ds = dy.contiguous(), s.contiguous(), None if ds is None else ds.contiguous()
    seed_there, threshold, scale = dropout_args(p, seed, s.device)
    dx = torch.empty_like(s, dtype=dtype)
    dbranch = None if branch_dtype is None else torch.empty_like(s, dtype=branch_dtype)
    dweight, dbias = (torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in "wb")
    bm, bn, warps, _ = configs.norm_backward(columns)
    chunk = bm * max(1, -(-rows // (bm * most_chunks)))
    chunks = -(-rows // chunk)
    sums = s.new_empty(2, chunks, columns, dtype=torch.float32)
    args = (dy, ds, s, mean, rstd, weight.contiguous(), dx, dbranch, sums, seed_there)
    args += (rows, columns, chunk, threshold, scale)
    with on(s.device):
        if rows:
            tile = {"BM": bm, "BN": bn, "num_warps": warps}
            kernels().add_norm_backward[(chunks,)](*args, **tile, RELU=relu)
    add = partial(_add_sums, sums, dweight, dbias)
    _ = aside.run(add, (sums,)) if unread else add()
    return dx, dbranch, dweight, dbias


def _add_sums(sums: Tensor, dweight: Tensor, dbias: Tensor) -> None:
    _, chunks, columns = sums.shape
    bm, bn, warps, _ = configs.NORM_SUMS
    with on(sums.device):
        args = (sums, dweight, dbias, chunks, columns)
        kernels().norm_sums[-(-columns // bn), 2](*args, BM=bm, BN=bn, num_warps=warps)


def _fits(x: Tensor) -> bool:
    return countable(x) and x.dim() > 0 and 0 < x.shape[-1] <= configs.MOST_NORM_COLUMNS


def _check(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor) -> torch.dtype:
    """Refuses what the kernels cannot take; returns the dtype of s."""
    check_tensor("x", x, x, None)
    if not _fits(x):
        raise ValueError(
            f"x: expected rows of 1 to {configs.MOST_NORM_COLUMNS} columns, "
            f"got shape {list(x.shape)}"
        )
    for name, t in (("weight", weight), ("bias", bias)):
        check_tensor(name, t, weight, (x.shape[-1],))
    others = {"weight": weight} | ({} if branch is None else {"branch": branch})
    for name, t in others.items():
        check_tensor(name, t, t, None)
        if t.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device}, got one on {t.device}")
    if branch is None:
        return x.dtype
    check_shape("branch", branch, tuple(x.shape))
    return torch.promote_types(x.dtype, branch.dtype)
