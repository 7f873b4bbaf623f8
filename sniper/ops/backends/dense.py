# SPDX-License-Identifier: Apache-2.0
"""The dense executor: torch's own matmul and convolution on the zero-filled weight.

Right because pruned weights are zero; only the weight gradient needs the mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.geometry import Geometry


def fwd(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Any, geometry: Geometry) -> Tensor:
    """`y = x * W^T + b` over the taps: `[B, T, C]` -> `[B, T_out, N]`."""
    if geometry.taps == 1 and not (geometry.pad_left or geometry.pad_right):
        return F.linear(x, weight.view(weight.shape[0], -1), bias)
    x, padding = _padded(x, geometry)
    y = F.conv1d(
        x.transpose(1, 2), _conv_weight(weight, geometry), bias, 1, padding, geometry.dilation
    )
    return y.transpose(1, 2)


def dgrad(dy: Tensor, weight: Tensor, layout: Any, geometry: Geometry, length: int) -> Tensor:
    """dL/dx `[B, length, C]`."""
    if geometry.taps == 1 and not (geometry.pad_left or geometry.pad_right):
        return dy @ weight
    shape = (dy.shape[0], length, weight.shape[1] // geometry.taps)
    dx, _ = _conv_backward(dy, dy.new_empty(shape), weight, geometry, (True, False))
    return dx


def wgrad(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> Tensor:
    """dL/dW `[N, taps * C]`, exactly zero in pruned blocks."""
    n = dy.shape[-1]
    if geometry.taps == 1 and not (geometry.pad_left or geometry.pad_right):
        dw = dy.reshape(-1, n).t() @ x.reshape(-1, x.shape[-1])
    else:
        weight = x.new_empty(n, geometry.taps * x.shape[-1])
        _, dw = _conv_backward(dy, x, weight, geometry, (False, True))
        dw = dw.permute(0, 2, 1).reshape(n, -1)
    return mask_blocks_(dw, layout)


def mask_blocks_(matrix: Tensor, layout: Any) -> Tensor:
    """Zeroes the pruned blocks of `[N, taps * C]`, in place."""
    rows, taps, cols = layout.shape
    blocks = matrix.view(rows, layout.block_size, taps, cols, layout.block_size)
    # masked_fill, not a product: an infinite gradient in a pruned block must not become NaN.
    blocks.masked_fill_(~layout.block_mask[:, None, :, :, None], 0)
    return matrix


def _conv_weight(weight: Tensor, geometry: Geometry) -> Tensor:
    return weight.view(weight.shape[0], geometry.taps, -1).permute(0, 2, 1)


def _padded(x: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
    """Input and symmetric padding; unequal sides are padded by hand."""
    if geometry.pad_left == geometry.pad_right:
        return x, geometry.pad_left
    return F.pad(x, (0, 0, geometry.pad_left, geometry.pad_right)), 0


def _conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    length = x.shape[1]
    x, padding = _padded(x, geometry)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.transpose(1, 2),
        x.transpose(1, 2),
        _conv_weight(weight, geometry),
        None,
        [1],
        [padding],
        [geometry.dilation],
        False,
        [0],
        1,
        [*wanted, False],
    )
    if dx is not None:
        skip = 0 if geometry.pad_left == geometry.pad_right else geometry.pad_left
        dx = dx.transpose(1, 2)[:, skip : skip + length]
    return dx, dw
