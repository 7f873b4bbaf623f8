# SPDX-License-Identifier: Apache-2.0
"""What every kernel is held against: one gather, one einsum, any dtype and device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.geometry import Geometry


def fwd(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Any, geometry: Geometry) -> Tensor:
    """`y[b, t, n] = bias[n] + sum over taps, c of W[n, tap, c] * x[b, t + tap * dilation -
    pad_left, c]`.
    """
    y = torch.einsum("btkc,nkc->btn", _windows(x, geometry), _masked(weight, layout))
    return y if bias is None else y + bias


def dgrad(dy: Tensor, weight: Tensor, layout: Any, geometry: Geometry, length: int) -> Tensor:
    """dL/dx `[B, length, C]`, the adjoint of `fwd` in x."""
    parts = torch.einsum("btn,nkc->btkc", dy, _masked(weight, layout))
    span = length + geometry.pad_left + geometry.pad_right
    dx = dy.new_zeros(dy.shape[0], span, parts.shape[-1])
    for tap in range(geometry.taps):
        start = tap * geometry.dilation
        dx[:, start : start + dy.shape[1]] += parts[:, :, tap]
    return dx[:, geometry.pad_left : geometry.pad_left + length]


def wgrad(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> Tensor:
    """dL/dW `[N, taps * C]`, zero in pruned blocks."""
    dw = torch.einsum("btn,btkc->nkc", dy, _windows(x, geometry))
    return _masked(dw.reshape(dw.shape[0], -1), layout).reshape(dw.shape[0], -1)


def _masked(matrix: Tensor, layout: Any) -> Tensor:
    rows, taps, cols = layout.shape
    weight = matrix.reshape(matrix.shape[0], taps, cols * layout.block_size)
    return torch.where(layout.element_mask(), weight, torch.zeros_like(weight))


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    """`[B, T_out, taps, C]`."""
    padded = F.pad(x, (0, 0, geometry.pad_left, geometry.pad_right))
    out = geometry.out_length(x.shape[1])
    starts = [tap * geometry.dilation for tap in range(geometry.taps)]
    return torch.stack([padded[:, s : s + out] for s in starts], dim=2)
