# SPDX-License-Identifier: Apache-2.0
"""The block-sparse product as `torch.library` custom ops: one a pass, so that autograd, compile and
fakes know them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops import executors
from sniper.ops.geometry import LINEAR, Geometry, as_matrix, as_weight, find_layout


def block_matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None, layout: int, geometry: Geometry = LINEAR
) -> Tensor:
    """`y = x * W^T + b` over the active blocks of W, taps included; differentiable once in x,
    weight and bias.

    Args:
        x: `[B, T, C]`, any strides. Under autocast it and the weight are cast as `F.linear` would.
        weight: `[N, C]`, or `[N, C, taps]` with memory `[N, taps, C]`; zero in pruned blocks.
        bias: `[N]` or None.
        layout: handle of the weight's layout.
        geometry: taps, dilation and padding.

    Returns:
        `[B, T_out, N]`.

    Raises:
        ValueError: ranks, shapes, dtypes or devices that do not fit together.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, weight, bias, geometry)
    return _fwd(x, weight, bias, layout, geometry.dilation, geometry.pad_left, geometry.pad_right)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    if x.dim() != 3 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected [B, T, {weight.shape[1]}], got {list(x.shape)}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and other.dtype != x.dtype:
            raise ValueError(f"{name}: expected x's dtype {x.dtype}, got {other.dtype}")
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected x's device {x.device}, got {other.device}")
    # A linear layer takes no rows, as torch's does.
    if geometry.out_length(x.shape[1]) < (0 if geometry.taps == 1 else 1):
        span = geometry.dilation * (geometry.taps - 1) + 1
        raise ValueError(
            f"x: expected at least {span} rows with padding, "
            f"got {x.shape[1]} + {geometry.pad_left} + {geometry.pad_right}"
        )


def _geometry(weight: Tensor, dilation: int, pad_left: int, pad_right: int) -> Geometry:
    taps = weight.shape[2] if weight.dim() == 3 else 1
    return Geometry(taps, dilation, pad_left, pad_right)


@torch.library.custom_op("sniper::block_fwd", mutates_args=())
def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
) -> Tensor:
    geometry = _geometry(weight, dilation, pad_left, pad_right)
    y = executors.run("fwd", find_layout(layout), geometry, x, as_matrix(weight), bias)
    return y.contiguous()


@_fwd.register_fake
def _(x, weight, bias, layout, dilation, pad_left, pad_right):
    length = _geometry(weight, dilation, pad_left, pad_right).out_length(x.shape[1])
    return x.new_empty(x.shape[0], length, weight.shape[0])


@torch.library.custom_op("sniper::block_dgrad", mutates_args=())
def _dgrad(
    dy: Tensor,
    weight: Tensor,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
    length: int,
) -> Tensor:
    geometry = _geometry(weight, dilation, pad_left, pad_right)
    dx = executors.run("dgrad", find_layout(layout), geometry, dy, as_matrix(weight), length)
    return dx.contiguous()


@_dgrad.register_fake
def _(dy, weight, layout, dilation, pad_left, pad_right, length):
    return dy.new_empty(dy.shape[0], length, weight.shape[1])


@torch.library.custom_op("sniper::block_wgrad", mutates_args=())
def _wgrad(
    dy: Tensor, x: Tensor, taps: int, layout: int, dilation: int, pad_left: int, pad_right: int
) -> Tensor:
    geometry = Geometry(taps, dilation, pad_left, pad_right)
    return executors.run("wgrad", find_layout(layout), geometry, dy, x)


@_wgrad.register_fake
def _(dy, x, taps, layout, dilation, pad_left, pad_right):
    return dy.new_empty(dy.shape[-1], taps * x.shape[-1])


def _save(ctx, inputs, output):
    x, weight, bias, layout, dilation, pad_left, pad_right = inputs
    ctx.save_for_backward(x, weight)
    ctx.layout = layout
    ctx.geometry = (dilation, pad_left, pad_right)


def _backward(ctx, dy):
    x, weight = ctx.saved_tensors
    need_x, need_w, need_b = ctx.needs_input_grad[:3]
    taps = weight.shape[2] if weight.dim() == 3 else 1
    dx = dw = db = None
    if need_x:
        dx = _dgrad(dy, weight, ctx.layout, *ctx.geometry, x.shape[1])
    if need_w:
        dw = as_weight(_wgrad(dy, x, taps, ctx.layout, *ctx.geometry), weight)
    if need_b:
        db = dy.sum((0, 1))
    return dx, dw, db, None, None, None, None


torch.library.register_autograd("sniper::block_fwd", _backward, setup_context=_save)
