# SPDX-License-Identifier: Apache-2.0
"""Torch's own matmul and convolution on the weight with zeros in its pruned blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backends.elementwise import apply_epilogue
from sniper.ops.geometry import NO_EPILOGUE, Epilogue, Geometry
from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import mask_blocks_, masked


@dataclass(frozen=True)
class DenseBackend:
    """Dense products of any dtype on any device; see `sniper.ops.backend.Backend`."""

    name: str = "dense"
    fuses_epilogue: bool = False
    fuses_bias_grad: bool = False

    def takes(self, which: str, x: Tensor, layout: BlockLayout) -> bool:
        return True

    def fwd(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: BlockLayout,
        geometry: Geometry,
        epilogue: Epilogue = NO_EPILOGUE,
    ) -> Tensor:
        weight = masked(weight, layout)
        if geometry.is_linear:
            y = F.linear(x, weight, bias)
        else:
            rows, padding = _padded(x, geometry)
            kernel = _conv_weight(weight, geometry)
            y = F.conv1d(rows.transpose(1, 2), kernel, bias, 1, padding, geometry.dilation)
            y = y.transpose(1, 2)
        return apply_epilogue(_fresh(y), epilogue)

    def dgrad(
        self, dy: Tensor, weight: Tensor, layout: BlockLayout, geometry: Geometry, length: int
    ) -> Tensor:
        weight = masked(weight, layout)
        if geometry.is_linear:
            return dy @ weight
        shape = (dy.shape[0], length, weight.shape[1] // geometry.taps)
        dx, _ = _conv_backward(dy, dy.new_empty(shape), weight, geometry, (True, False))
        assert dx is not None
        return _fresh(dx)

    def wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        with_bias: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        n = dy.shape[-1]
        if geometry.is_linear:
            dw = dy.reshape(-1, n).t() @ x.reshape(-1, x.shape[-1])
        else:
            weight = x.new_empty(n, geometry.taps * x.shape[-1])
            _, dw = _conv_backward(dy, x, weight, geometry, (False, True))
            assert dw is not None
            dw = _fresh(dw.permute(0, 2, 1)).view(n, -1)
        return mask_blocks_(dw, layout), dy.sum((0, 1)) if with_bias else None


DENSE = DenseBackend()


def _fresh(y: Tensor) -> Tensor:
    """Contiguous memory that is nobody else's: autograd forbids in-place work on a view that an op
    returned.
    """
    y = y.contiguous()
    return y.clone() if y._is_view() else y


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
