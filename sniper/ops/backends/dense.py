# SPDX-License-Identifier: Apache-2.0
"""Torch's own matmul and convolution on the weight with zeros in its pruned blocks.

Rows `[B, T, C]` are, to a two-dimensional convolution over `[B, C, 1, T]`, an image of one line in
channels-last memory, and a weight kept as `[N, taps, C]` is its kernel in the same order. So cuDNN
takes and gives our tensors where they lie. A one-dimensional convolution would have rows made
contiguous channel by channel, and its result copied back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backends.elementwise import apply_epilogue, column_sums
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
        bias = None if bias is None else bias.to(x.dtype)
        if geometry.is_linear:
            y = F.linear(x, weight, bias)
        else:
            x, padding = _padded(x, geometry)
            kernel = _conv_weight(weight, geometry)
            if _channels_last(x):
                dilation = (1, geometry.dilation)
                y = F.conv2d(_image(x), _image_kernel(kernel), bias, 1, (0, padding), dilation)
                y = y.squeeze(2)
            else:
                y = F.conv1d(x.transpose(1, 2), kernel, bias, 1, padding, geometry.dilation)
            y = y.transpose(1, 2)
        return apply_epilogue(_fresh(y), epilogue)

    def dgrad(
        self, dy: Tensor, weight: Tensor, layout: BlockLayout, geometry: Geometry, length: int
    ) -> Tensor:
        weight = masked(weight, layout)
        if geometry.is_linear:
            return dy @ weight
        # The gradient needs x's shape and none of its values, so it gets memory that nobody fills.
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
        # Torch computes the whole gradient; what lies in pruned blocks must be as zero as in the
        # sparse one.
        dw = mask_blocks_(self.whole_wgrad(dy, x, geometry), layout)
        return dw, column_sums(dy) if with_bias else None

    def whole_wgrad(self, dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        """dL/dW `[N, taps * C]` of pruned blocks too."""
        n = dy.shape[-1]
        if geometry.is_linear:
            # All sequences as one: dW is a sum over every row of the batch, whichever sequence it
            # is in.
            return dy.reshape(-1, n).t() @ x.reshape(-1, x.shape[-1])
        weight = x.new_empty(n, geometry.taps * x.shape[-1])
        _, dw = _conv_backward(dy, x, weight, geometry, (False, True))
        assert dw is not None
        return _fresh(dw.permute(0, 2, 1).flatten(1))


DENSE = DenseBackend()


def _fresh(y: Tensor) -> Tensor:
    """Contiguous memory that is nobody else's: autograd forbids in-place work on a view that an op
    returned.
    """
    if not y._is_view() or not y.is_contiguous():
        return y.contiguous()
    if y.requires_grad or y._base is None or y._base.numel() != y.numel():
        return y.clone()
    # `y` covers all of a result that nobody else holds: its memory can stay, but autograd needs a
    # tensor that is no view of another.
    return y.new_empty(0).set_(y)  # pyright: ignore[reportArgumentType]


def _channels_last(x: Tensor) -> bool:
    """Whether convolutions run over an image of one line. On a CPU one dimension is as fast, and
    whoever has begun a run goes on with the same bits.
    """
    return x.is_cuda


def _image(x: Tensor) -> Tensor:
    """`[B, T, C]` -> `[B, C, 1, T]`, a view; of contiguous rows it is channels-last memory."""
    return x.transpose(1, 2).unsqueeze(2)


def _image_kernel(kernel: Tensor) -> Tensor:
    """`[N, C, taps]` -> `[N, C, 1, taps]`, a view; in our order of memory it is channels-last."""
    return kernel.unsqueeze(2)


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
    """dL/dx `[B, T, C]` and dL/dW `[N, C, taps]`, each if wanted; an operand that only an unwanted
    gradient needs counts by its shape alone.
    """
    length = x.shape[1]
    x, padding = _padded(x, geometry)
    kernel = _conv_weight(weight, geometry)
    if _channels_last(x):
        operands = (_image(dy), _image(x), _image_kernel(kernel))
        line = ([1, 1], [0, padding], [1, geometry.dilation], False, [0, 0])
    else:
        operands = (dy.transpose(1, 2), x.transpose(1, 2), kernel)
        line = ([1], [padding], [geometry.dilation], False, [0])
    # The operator itself: torch.nn.grad computes one gradient a call, and repeats the set-up for
    # each.
    backward = torch.ops.aten.convolution_backward
    dx, dw, _ = backward(*operands, None, *line, 1, [*wanted, False])
    if _channels_last(x):
        dx, dw = (None if t is None else t.squeeze(2) for t in (dx, dw))
    if dx is not None:
        # The gradients of rows that were padded by hand are cut off, since x does not have these
        # rows.
        skip = 0 if geometry.pad_left == geometry.pad_right else geometry.pad_left
        dx = dx.transpose(1, 2)[:, skip : skip + length]
    return dx, dw
