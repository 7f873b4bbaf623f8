# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's sum of a sequence and its positions, with dropout, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import TILE, check, dropout_args
from sniper.ops.backends.triton.launch import kernels, matrix_shape, on
from sniper.ops.backends.triton.products import TRITON


def serves(x: Tensor) -> bool:
    """Whether these kernels may run on sequences such as x: they are checked with the elementwise
    ones.
    """
    return x.numel() > 0 and TRITON.serves(x)


def add_positions(
    x: Tensor,
    encoding: Tensor,
    alpha: Tensor | None,
    factor: float,
    p: float,
    seed: int | Tensor,
) -> Tensor:
    """`dropout(factor * x + alpha * encoding)` of `[B, T, C]`, in float32, rounded once.

    Args:
        encoding: `[T, C]`, of x's dtype or float32.
        alpha: a scalar of encoding's dtype; None: 1.
        p, seed: of the dropout, which zeroes what `elementwise.dropout` of such a tensor does.

    Returns:
        `[B, T, C]`, of encoding's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not do, or `p` outside [0, 1).
    """
    encoding = _checked(x, encoding)
    if alpha is not None:
        check("alpha", alpha, encoding, ())
    y = torch.empty(x.shape, dtype=encoding.dtype, device=x.device)
    seed_there, threshold, scale = dropout_args(p, seed, x.device)
    rows, columns = matrix_shape(x)
    if x.numel():
        sizes = (rows, x.shape[1], columns, factor, threshold, scale)
        with on(x.device):
            args = (x.contiguous(), encoding, alpha, y, seed_there, *sizes)
            kernels().add_positions[_tiles(rows, columns)](*args, **TILE)
    return y


def add_positions_backward(
    dy: Tensor,
    encoding: Tensor,
    dtype: torch.dtype,
    scaled: bool,
    factor: float,
    p: float,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor | None]:
    """dx of `add_positions`, of x's dtype, and dalpha, float32, if `scaled`: a sum in an order that
    the shape decides.

    Raises:
        ValueError: as `add_positions`.
    """
    encoding = _checked(dy, encoding)
    dx = torch.empty(dy.shape, dtype=dtype, device=dy.device)
    seed_there, threshold, scale = dropout_args(p, seed, dy.device)
    rows, columns = matrix_shape(dy)
    grid = _tiles(rows, columns)
    parts = dy.new_empty(grid, dtype=torch.float32) if scaled else None
    if dy.numel():
        sizes = (rows, dy.shape[1], columns, factor, threshold, scale)
        with on(dy.device):
            args = (dy.contiguous(), encoding, dx, parts, seed_there, *sizes)
            kernels().add_positions_backward[grid](*args, **TILE)
    return dx, None if parts is None else parts.sum()


def _checked(x: Tensor, encoding: Tensor) -> Tensor:
    check("x", x, x, (None, None, None))
    check("encoding", encoding, encoding, None)
    check_shape("encoding", encoding, tuple(x.shape[1:]))
    if encoding.device != x.device or encoding.dtype not in (x.dtype, torch.float32):
        raise ValueError(
            f"encoding: expected {x.dtype} or float32 on {x.device}, "
            f"got {encoding.dtype} on {encoding.device}"
        )
    return encoding.contiguous()


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE["BM"]), -(-columns // TILE["BN"])
