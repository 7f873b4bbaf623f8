# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's dropout, gradient of ReLU and dropout, and sums of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.backend import sum_dtype
from sniper.ops.backends.triton.launch import check as check_tensor
from sniper.ops.backends.triton.launch import countable as rows_countable
from sniper.ops.backends.triton.launch import kernels, matrix_shape, on
from sniper.ops.geometry import dropout_words

# Elementwise kernels know no blocks; they are checked along with the products of this size.
ELEMENTWISE_BLOCK = 64
TILE = {"BM": 32, "BN": 64}
# Columns lie along the grid's second side, which CUDA limits.
MOST_COLUMNS = 65535 * TILE["BN"]


def countable(x: Tensor) -> bool:
    """Whether a grid of these kernels reaches all of a tensor's rows and columns."""
    return rows_countable(x) and matrix_shape(x)[1] <= MOST_COLUMNS


def check(name: str, t: Tensor, like: Tensor, shape: tuple[int | None, ...] | None) -> None:
    """`launch.check`, and that the grid reaches all columns."""
    check_tensor(name, t, like, shape)
    if not countable(t):
        raise ValueError(
            f"{name}: expected at most {MOST_COLUMNS} columns, got shape {list(t.shape)}"
        )


def dropout(x: Tensor, p: float, seed: int | Tensor, relu: bool = False) -> Tensor:
    """`x * keep / (1 - p)`, of `relu(x)` if asked; `keep` depends on `seed` and the shape alone.

    The gradient is the same function of dy. Zeroes what `fwd(..., dropout_p=p, seed=seed)` zeroes
    in a y of this shape, and what the CPU's does.

    Raises:
        ValueError: a dtype or device that does not do, or `p` outside [0, 1).
    """
    check("x", x, x, None)
    x = x.contiguous()
    y = torch.empty_like(x)
    seed_there, threshold, scale = dropout_args(p, seed, x.device)
    if x.numel():
        tokens, columns = matrix_shape(x)
        args = (x, y, seed_there, tokens, columns, threshold, scale)
        with on(x.device):
            kernels().dropout[_grid(tokens, columns, TILE["BM"])](*args, **TILE, RELU=relu)
    return y


def relu_dropout_backward(dy: Tensor, y: Tensor, dropout_p: float = 0.0) -> Tensor:
    """dL/dz of `y = dropout(relu(z))`: `dy / (1 - dropout_p)` where y > 0, else 0; needs no mask.

    Raises:
        ValueError: dy and y differ in shape, or `dropout_p` outside [0, 1).
    """
    return _relu_backward(dy, y, dropout_p, chunk=None)[0]


def relu_dropout_backward_bias(
    dy: Tensor, y: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`relu_dropout_backward`, and its sum over all rows, dL/db `[N]`, in one pass over dy."""
    tokens, _ = matrix_shape(dy)
    dz, sums = _relu_backward(dy, y, dropout_p, _chunk(tokens))
    assert sums is not None  # it was given a chunk
    return dz, _sum_rows(sums, len(sums) or 1, sum_dtype(dy))[0]


def column_sums(x: Tensor) -> Tensor:
    """`[..., N]` -> `[N]`: sums over all rows in float32, in an order that the shape decides."""
    check("x", x, x, None)
    tokens, columns = matrix_shape(x)
    # In two steps whose order the shape alone decides: atomic additions would give other bits at
    # each run.
    sums = _sum_rows(x.contiguous().view(tokens, columns), _chunk(tokens), torch.float32)
    return _sum_rows(sums, len(sums), sum_dtype(x))[0]


def dropout_args(
    p: float, seed: int | Tensor, device: torch.device
) -> tuple[Tensor | None, int, float]:
    """Seed on the device (None: keep all), the least word that keeps, scale."""
    threshold, scale = dropout_words(p)
    if not p:
        return None, 0, 1.0
    if not isinstance(seed, Tensor):
        # A tensor in either case, or a recorded graph would replay one mask for ever.
        seed = torch.full((), _signed(seed), dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
        raise ValueError(
            f"seed: expected an int64 scalar on {device}, "
            f"got {seed.dtype} {list(seed.shape)} on {seed.device}"
        )
    return seed, threshold, scale


def _signed(seed: int) -> int:
    # An int64 of the same bits, as the CPU's kernels take them.
    return (seed + 2**63) % 2**64 - 2**63


def _relu_backward(
    dy: Tensor, y: Tensor, p: float, chunk: int | None
) -> tuple[Tensor, Tensor | None]:
    """dz, and the sums of every `chunk` rows of it."""
    check("y", y, dy, None)
    check("dy", dy, dy, tuple(y.shape))
    scale = dropout_words(p)[1]
    dy, y = dy.contiguous(), y.contiguous()
    dz = torch.empty_like(dy)
    tokens, columns = matrix_shape(dy)
    grid = _grid(tokens, columns, chunk or TILE["BM"])
    sums = None
    if chunk is not None:
        sums = dy.new_empty(grid[0], columns, dtype=torch.float32)
    if dy.numel():
        args = (dy, y, dz, sums, tokens, columns, chunk or TILE["BM"], scale)
        with on(dy.device):
            kernels().relu_dropout_backward[grid](*args, **TILE)
    return dz, sums


def _sum_rows(x: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """`[M, N]` -> `[ceil(M / chunk), N]`, one row of zeros for M = 0."""
    tokens, columns = x.shape
    grid = (max(-(-tokens // max(chunk, 1)), 1), -(-columns // TILE["BN"]))
    sums = x.new_empty(grid[0], columns, dtype=dtype)
    if columns:
        with on(x.device):
            kernels().column_sums[grid](x, sums, tokens, columns, max(chunk, 1), **TILE)
    return sums


def _chunk(tokens: int) -> int:
    """Rows that one program adds up."""
    # At most 64 sums, which one program adds in the second step; at least 256 rows each, or writing
    # sums would cost as much as reading rows.
    return max(256, -(-tokens // (64 * TILE["BM"])) * TILE["BM"])


def _grid(tokens: int, columns: int, rows: int) -> tuple[int, int]:
    return -(-tokens // rows), -(-columns // TILE["BN"])
