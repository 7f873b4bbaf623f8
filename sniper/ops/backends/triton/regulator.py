# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's length regulator and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK
from sniper.ops.backends.triton.launch import check as check_tensor
from sniper.ops.backends.triton.launch import kernels, on, usable

# Frames, channels and tokens that a program takes at once.
TILE = {"BM": configs.REPEAT.tokens, "BN": configs.REPEAT.width, "BL": configs.REPEAT_TOKENS}
TILE_BACKWARD = TILE | {"BM": configs.REPEAT_BACKWARD.tokens, "BN": configs.REPEAT_BACKWARD.width}
# Sequences lie along the grid's second side, which CUDA limits.
MOST_SEQUENCES = 65535


def serves(x: Tensor) -> bool:
    """Whether these kernels may run on tokens such as x: that they fit, and passed their check."""
    if not usable(x) or not x.numel() or len(x) > MOST_SEQUENCES:
        return False
    return selfcheck.trusted(x, ELEMENTWISE_BLOCK, selfcheck.REGULATOR)


def repeat_tokens(x: Tensor, durations: Tensor, length: int) -> Tensor:
    """`[B, L, C]` -> `[B, length, C]`: token i for `durations[b, i]` frames, then zeros.

    Args:
        durations: int64 `[B, L]`, 0 or more, less than 2^31 in a row.
        length: what comes behind it is cut.

    Raises:
        ValueError: shapes, dtypes or devices that do not do.
    """
    check_tensor("x", x, x, (None, None, None))
    (batch, tokens, columns), durations = x.shape, _checked(durations, x)
    y = x.new_empty(batch, length, columns)
    if y.numel():
        grid = (-(-length // TILE["BM"]), batch)
        args = (x.contiguous(), durations, y, length, tokens, columns)
        with on(x.device):
            kernels().repeat_tokens[grid](*args, **TILE, num_warps=configs.REPEAT.warps)
    return y


def repeat_tokens_backward(dy: Tensor, durations: Tensor) -> Tensor:
    """dx of `repeat_tokens`: sums in float32, in the order of frames, in dy's dtype.

    Raises:
        ValueError: as `repeat_tokens`.
    """
    check_tensor("dy", dy, dy, (None, None, None))
    (batch, length, columns), durations = dy.shape, _checked(durations, dy)
    tokens = durations.shape[1]
    dx = dy.new_empty(batch, tokens, columns)
    if dx.numel():
        args = (dy.contiguous(), durations, dx, length, tokens, columns)
        warps = configs.REPEAT_BACKWARD.warps
        with on(dy.device):
            grid = (tokens, batch)
            kernels().repeat_tokens_backward[grid](*args, **TILE_BACKWARD, num_warps=warps)
    return dx


def _checked(durations: Tensor, x: Tensor) -> Tensor:
    if durations.dtype != torch.int64 or durations.device != x.device:
        raise ValueError(
            f"durations: expected int64 on {x.device}, got {durations.dtype} on {durations.device}"
        )
    check_shape("durations", durations, (len(x), None))
    return durations.contiguous()
