# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's BatchNorm, with the tanh and dropout behind it, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import (
    ELEMENTWISE_BLOCK,
    TILE,
    countable,
    dropout_args,
)
from sniper.ops.backends.triton.elementwise import check as check_tensor
from sniper.ops.backends.triton.launch import kernels, matrix_shape, on, usable

# Chunks of rows whose sums a second kernel adds up: with 64 columns a program enough of them for a
# large GPU, at two reads of a row from the cache.
MOST_CHUNKS, LEAST_ROWS = 128, 64


def serves(x: Tensor) -> bool:
    """Whether these kernels may run on rows such as x's: that they fit, and passed their check."""
    if not usable(x) or not countable(x) or x.dim() == 0 or not x.numel():
        return False
    return selfcheck.trusted(x, ELEMENTWISE_BLOCK, selfcheck.BATCH_NORM)


def statistics(
    x: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor, Tensor] | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean and `1 / sqrt(variance + eps)` over all rows of `[..., C]`, float32 `[C]`.

    Args:
        x: at least one row.
        running: float32 `[C]` mean and variance, and the int64 count of batches; moved as
            `nn.BatchNorm1d` moves them, by `momentum`.

    Raises:
        ValueError: shapes, dtypes or devices that do not do, or no rows.
    """
    check_tensor("x", x, x, None)
    rows, columns = matrix_shape(x)
    if not rows:
        raise ValueError(f"x: expected at least one row, got shape {list(x.shape)}")
    x = x.contiguous()
    if running is not None:
        for name, t in zip(("running mean", "running variance"), running[:2], strict=True):
            if t.dtype != torch.float32 or not t.is_contiguous() or t.device != x.device:
                raise ValueError(
                    f"{name}: expected contiguous float32 on {x.device}, got {t.dtype}"
                )
            check_shape(name, t, (columns,))
    chunk, grid = _chunks(rows, columns)
    parts = x.new_empty(2, grid[0], columns, dtype=torch.float32)
    mean, rstd = (x.new_empty(columns, dtype=torch.float32) for _ in range(2))
    bm, bn, warps, _ = configs.NORM_SUMS
    with on(x.device):
        kernels().batch_norm_parts[grid](x, parts, rows, columns, chunk, **TILE)
        args = (parts, mean, rstd, *(running or (None, None, None)))
        args += (rows, columns, chunk, grid[0], eps, momentum)
        tile = {"BM": bm, "BN": bn, "num_warps": warps}
        kernels().batch_norm_statistics[(-(-columns // bn),)](*args, **tile)
    return mean, rstd


def batch_norm(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: int | Tensor,
) -> Tensor:
    """`dropout(tanh((x - mean) * rstd * weight + bias))` of `[..., C]`, the tanh if asked; dropout
    zeroes what `elementwise.dropout` of a tensor of this shape does. The arithmetic is float32.

    Raises:
        ValueError: shapes, dtypes or devices that do not do, or `p` outside [0, 1).
    """
    operands = _checked(x, mean, rstd, weight, bias)
    y = torch.empty_like(operands[0])
    seed_there, threshold, scale = dropout_args(p, seed, x.device)
    rows, columns = matrix_shape(x)
    if x.numel():
        args = (*operands, y, seed_there, rows, columns, threshold, scale)
        with on(x.device):
            kernels().batch_norm[_tiles(rows, columns)](*args, **TILE, TANH=tanh)
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    tanh: bool,
    p: float,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias of `batch_norm` with x's own statistics: through them too.

    dweight and dbias are float32 sums in an order that the shape decides.

    Raises:
        ValueError: as `batch_norm`.
    """
    operands = _checked(x, mean, rstd, weight, bias)
    check_tensor("dy", dy, x, tuple(x.shape))
    dy, dx = dy.contiguous(), torch.empty_like(operands[0])
    seed_there, threshold, scale = dropout_args(p, seed, x.device)
    rows, columns = matrix_shape(x)
    dweight, dbias = (x.new_zeros(columns, dtype=torch.float32) for _ in range(2))
    if not x.numel():
        return dx, dweight, dbias
    chunk, grid = _chunks(rows, columns)
    sums = x.new_empty(2, grid[0], columns, dtype=torch.float32)
    end = (threshold, scale)
    with on(x.device):
        args = (dy, *operands, sums, seed_there, rows, columns, chunk, *end)
        kernels().batch_norm_gradient_sums[grid](*args, **TILE, TANH=tanh)
        bm, bn, warps, _ = configs.NORM_SUMS
        args = (sums, dweight, dbias, grid[0], columns)
        kernels().norm_sums[(-(-columns // bn), 2)](*args, BM=bm, BN=bn, num_warps=warps)
        args = (dy, *operands, dweight, dbias, dx, seed_there, rows, columns, *end)
        kernels().batch_norm_backward[_tiles(rows, columns)](*args, **TILE, TANH=tanh)
    return dx, dweight, dbias


def _checked(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple:
    check_tensor("x", x, x, None)
    columns = x.shape[-1]
    for name, t in (("mean", mean), ("rstd", rstd), ("weight", weight), ("bias", bias)):
        check_tensor(name, t, weight if name == "bias" else t, (columns,))
        if t.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device}, got one on {t.device}")
    return (x.contiguous(), *(t.contiguous() for t in (mean, rstd, weight, bias)))


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE["BM"]), -(-columns // TILE["BN"])


def _chunks(rows: int, columns: int) -> tuple[int, tuple[int, int]]:
    """Rows that one program adds up, and the grid."""
    chunk = max(LEAST_ROWS, -(-rows // (MOST_CHUNKS * TILE["BM"])) * TILE["BM"])
    return chunk, (-(-rows // chunk), -(-columns // TILE["BN"]))
