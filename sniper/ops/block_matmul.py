# SPDX-License-Identifier: Apache-2.0
"""The block-sparse product as `torch.library` custom ops: one a pass, so that autograd, compile and
fakes know them.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops import aside, dispatch, gradients
from sniper.ops.autocast import autocast_dtype
from sniper.ops.backend import sum_dtype
from sniper.ops.backends import TRITON, elementwise
from sniper.ops.dropout import draw_seed, relu_dropout_grad, relu_dropout_grad_bias
from sniper.ops.dropout import relu_dropout as relu_then_dropout
from sniper.ops.geometry import (
    LINEAR,
    Epilogue,
    Geometry,
    as_matrix,
    as_weight,
    check_floating,
    check_geometry,
    check_share,
    check_tensor,
)
from sniper.ops.layout import BlockLayout, find_layout, mark_copy, weight_mask
from sniper.ops.operation import operation
from sniper.ops.pruned import look_at_copy
from sniper.ops.sharded import check_whole
from sniper.ops.transforms import is_batched, leaves_the_process, transformed


def block_matmul(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: BlockLayout,
    geometry: Geometry = LINEAR,
    relu_dropout: float | None = None,
    handed_over: bool = False,
    after_relu: float | None = None,
) -> Tensor:
    """`y = x * W^T + b`, or `dropout(relu(y))`, over the active blocks of W, taps included.

    Differentiable in x, weight and bias, as often as one likes. Under `torch.func` and in forward
    mode torch's dense functions compute it.

    Args:
        x: `[B, T, C]`, any strides. Under autocast it and the weight are cast as `F.linear` would.
        weight: `[N, C]`, or `[N, C, taps]` with memory `[N, taps, C]`; what lies in pruned blocks
            does not count.
        bias: `[N]` or None.
        layout: the weight's active blocks.
        geometry: taps, dilation and padding.
        relu_dropout: None, or the share that dropout zeroes after ReLU, drawn anew at each call;
            fused into the product where our kernels run.
        handed_over: with `relu_dropout`, that y's one reader is a call with `after_relu`, which
            computes the gradient of ReLU and dropout in its own kernel; where `hands_over(x, p)`.
        after_relu: the `relu_dropout` of the call that made x and handed it over.

    Returns:
        `[B, T_out, N]`.

    Raises:
        ValueError: ranks, shapes, dtypes or devices that do not fit together, p outside [0, 1].
    """
    _check_kinds(x, weight, bias, layout, geometry, relu_dropout)
    recorded = leaves_the_process()
    plain = recorded or transformed()
    if plain and layout.is_copy and not recorded:
        look_at_copy(weight, layout)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), _cast_weight(weight, dtype, layout)
        # A GPU's kernels add the bias in float32, so that it need not be cast there and back.
        if bias is not None and not (x.is_cuda and bias.dtype == torch.float32):
            bias = bias.to(dtype)
    _check(x, weight, bias, layout, geometry, dtype)
    p = relu_dropout
    if plain:
        y = _by_torch(x, weight, bias, layout, geometry, recorded)
        return y if p is None else relu_then_dropout(y, p)
    padding = (geometry.dilation, geometry.pad_left, geometry.pad_right)
    # At p = 1 the scale is infinite; torch's own dropout defines that result.
    if p is not None and 0 <= p < 1 and elementwise.takes(x):
        # Without dropout nothing is drawn, or torch's generator would move on.
        seed = draw_seed(x.device) if p else None
        return _fwd(
            x, weight, bias, layout.handle, *padding, True, p, seed, handed_over, after_relu
        )
    y = _fwd(x, weight, bias, layout.handle, *padding, False, 0.0, None, False, after_relu)
    return y if p is None else relu_then_dropout(y, p)


def hands_over(x: Tensor, p: float) -> bool:
    """Whether a product of x that ends in ReLU and dropout may leave their gradient to the product
    that reads it: where both calls run as our operations, on a CPU in x's own dtype alone.
    """
    dtype = autocast_dtype(x)
    # What lies between the two has the dtype that autocast gives either's operands.
    known = elementwise.takes(x, dtype) if x.is_cuda else elementwise.takes(x) and dtype is None
    return known and p < 1 and not transformed()


def _cast_weight(weight: Tensor, dtype: torch.dtype, layout: BlockLayout) -> Tensor:
    copy = gradients.cast(weight, dtype)
    if copy is not weight and not torch.compiler.is_compiling() and layout.marked(weight):
        mark_copy(layout, copy)
    return copy


def _check_kinds(x, weight, bias, layout, geometry, relu_dropout) -> None:
    check_tensor("x", x)
    check_tensor("weight", weight)
    if bias is not None:
        check_tensor("bias", bias)
    check_whole("weight", weight)
    if not isinstance(layout, BlockLayout):
        raise ValueError(f"layout: expected a BlockLayout, got {layout!r}")
    check_geometry(geometry)
    if relu_dropout is not None:
        check_share("relu_dropout", relu_dropout)
    check_floating("x", x)
    taps, wanted = layout.shape[1], layout.weight_shape(weight.dim())
    if weight.shape != wanted or geometry.taps != taps:
        raise ValueError(
            f"weight: expected {list(wanted)} for {layout!r} and {taps} taps, "
            f"got {list(weight.shape)} and {geometry}"
        )
    if bias is not None and bias.shape != wanted[:1]:
        raise ValueError(f"bias: expected [{wanted[0]}], got {list(bias.shape)}")


def _by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: BlockLayout,
    geometry: Geometry,
    recorded: bool,
) -> Tensor:
    """The product by functions that every transform of torch, and every file of a graph, knows."""
    # What a copy has in its pruned blocks counts, and a recording may have nothing to look at.
    whole = layout.outgrown or (recorded and layout.is_copy)
    if not whole:
        mask = weight_mask(layout, weight.dim())
        if not torch.compiler.is_compiling() and is_batched(weight):
            # One layer stands for several, each with zeros where its own mask prunes.
            mask = mask | (weight.detach() != 0)
        # Not a product with the mask, which makes NaN of an infinite value in a pruned block.
        weight = torch.where(mask, weight, 0)
    if weight.dim() == 2:
        weight = weight.unsqueeze(2)
    bias = None if bias is None else bias.to(x.dtype)
    x = F.pad(x, (0, 0, geometry.pad_left, geometry.pad_right))
    return F.conv1d(x.mT, weight, bias, dilation=geometry.dilation).mT


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: BlockLayout,
    geometry: Geometry,
    autocast: torch.dtype | None,
) -> None:
    if x.dim() != 3 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected [B, T, {weight.shape[1]}], got {list(x.shape)}")
    _check_alike("weight", weight, x)
    if bias is not None:
        _check_alike("bias", bias, x, or_cast=autocast is not None)
    device, there = x.device, layout.block_mask.device
    # A meta tensor has shapes alone, which any device's layout can answer.
    if there != device and device.type != "meta":
        raise ValueError(f"layout: expected x's device {device}, got {there}; use layout.to")
    # A linear layer takes an input of 0 rows, as torch's does; a convolution does not.
    if geometry.out_length(x.shape[1]) < (0 if geometry.taps == 1 else 1):
        span = geometry.dilation * (geometry.taps - 1) + 1
        raise ValueError(
            f"x: expected at least {span} rows with padding, "
            f"got {x.shape[1]} + {geometry.pad_left} + {geometry.pad_right}"
        )


def _check_alike(name: str, t: Tensor, x: Tensor, or_cast: bool = False) -> None:
    if t.dtype != x.dtype and not or_cast:
        raise ValueError(f"{name}: expected x's dtype {x.dtype}, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name}: expected x's device {x.device}, got {t.device}")


def _geometry(weight: Tensor, dilation: int, pad_left: int, pad_right: int) -> Geometry:
    taps = weight.shape[2] if weight.dim() == 3 else 1
    return Geometry(taps, dilation, pad_left, pad_right)


@operation("sniper::block_fwd")
def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
    relu: bool,
    p: float,
    seed: Tensor | None,
    handed_over: bool = False,
    after_relu: float | None = None,
) -> Tensor:
    geometry = _geometry(weight, dilation, pad_left, pad_right)
    # A GPU's seed stays there: reading it would wait.
    number = 0 if seed is None else seed if seed.is_cuda else int(seed)
    epilogue = Epilogue(relu, p, number)
    args = (x, as_matrix(weight), bias, epilogue)
    # The layout comes as a number, since the schema of a custom op knows no objects of ours.
    found = find_layout(layout)
    if found.is_copy:
        look_at_copy(weight, found)
    return dispatch.choose("fwd", found, geometry, *args)()


@_fwd.register_fake
def _(x, weight, bias, layout, dilation, pad_left, pad_right, *_):
    length = _geometry(weight, dilation, pad_left, pad_right).out_length(x.shape[1])
    return x.new_empty(x.shape[0], length, weight.shape[0])


@operation("sniper::block_dgrad")
def _dgrad(
    dy: Tensor,
    weight: Tensor,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
    length: int,
    gate: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """dL/dx, or dL/dz for `gate = x = dropout(relu(z), p)`."""
    geometry = _geometry(weight, dilation, pad_left, pad_right)
    args = (dy, as_matrix(weight), length)
    passed = None if gate is None else (gate, p)
    return dispatch.choose("dgrad", find_layout(layout), geometry, *args, gate=passed)()


@_dgrad.register_fake
def _(dy, weight, layout, dilation, pad_left, pad_right, length, *_):
    return dy.new_empty(dy.shape[0], length, weight.shape[1])


@operation("sniper::block_wgrad")
def _wgrad(
    dy: Tensor,
    x: Tensor,
    taps: int,
    bias: bool,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
) -> tuple[Tensor, Tensor]:
    """dL/dW and dL/db, which is empty unless `bias`."""
    geometry = Geometry(taps, dilation, pad_left, pad_right)
    dw, db = dispatch.choose("wgrad", find_layout(layout), geometry, dy, x, bias)()
    # A custom op cannot return None for a tensor.
    return dw, dy.new_empty(0) if db is None else db


@_wgrad.register_fake
def _(dy, x, taps, bias, layout, dilation, pad_left, pad_right):
    n = dy.shape[-1]
    db = dy.new_empty(n, dtype=sum_dtype(dy)) if bias else dy.new_empty(0)
    return dy.new_empty(n, taps * x.shape[-1]), db


@operation("sniper::block_wgrad_add", mutates_args=("into",))
def _wgrad_add(
    into: Tensor,
    dy: Tensor,
    x: Tensor,
    taps: int,
    bias: bool,
    layout: int,
    dilation: int,
    pad_left: int,
    pad_right: int,
) -> Tensor:
    """Adds dL/dW to the active blocks of `into`; returns dL/db, which is empty unless `bias`."""
    geometry = Geometry(taps, dilation, pad_left, pad_right)
    args = (find_layout(layout), geometry, dy, x, bias)
    db = dispatch.choose("wgrad", *args, into=into)()[1]
    return dy.new_empty(0) if db is None else db


@_wgrad_add.register_fake
def _(into, dy, x, taps, bias, layout, dilation, pad_left, pad_right):
    return dy.new_empty(dy.shape[-1], dtype=sum_dtype(dy)) if bias else dy.new_empty(0)


def _save(ctx, inputs, output):
    x, weight, bias, handle, *geometry, ctx.relu, ctx.p, _, handed_over, ctx.after_relu = inputs
    ctx.geometry = geometry
    ctx.relu = ctx.relu and not handed_over
    # The module may be gone when its graph runs backward: the layout itself must stay until then.
    ctx.layout = find_layout(handle)
    ctx.source, ctx.unread = gradients.source_of(weight), aside.is_unread(bias)
    # y itself says what ReLU and dropout let through, so no mask is kept.
    ctx.save_for_backward(x, weight, output if ctx.relu else None)


class _ReadAgain(torch.autograd.Function):
    """`x = dropout(relu(z), p)` that was handed over, for a graph of gradients, whose gradient of x
    has to become that of z too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx: Tensor) -> tuple[Tensor, None]:
        return relu_dropout_grad(dx, ctx.saved_tensors[0].detach(), ctx.p), None


def _backward(ctx, dy):
    x, weight, y = ctx.saved_tensors
    need_x, need_w, need_b = ctx.needs_input_grad[:3]
    handle = ctx.layout.handle
    dx = dw = db = None
    if weight.dim() == 2 and dy.stride(-1) != 1:
        dy = dy.contiguous()  # here once, not in each pass
    # A GPU's kernel for ReLU's gradient sums its result in the same visit, where the weight's
    # gradient does not, which does it for less.
    along = need_w and dy.is_cuda and TRITON.sums_along(dy, ctx.layout.block_size)
    if ctx.relu and need_b and not along and TRITON.serves(dy):
        dy, db = relu_dropout_grad_bias(dy, y, ctx.p)
    elif ctx.relu:
        dy = relu_dropout_grad(dy, y, ctx.p)
    if need_x:
        gate = () if ctx.after_relu is None else (x.detach(), ctx.after_relu)
        dx = _dgrad(dy, weight, handle, *ctx.geometry, x.shape[1], *gate)
    if need_w:
        # Grad mode is on here only where somebody wants gradients of gradients.
        if ctx.after_relu is not None and torch.is_grad_enabled():
            x = _ReadAgain.apply(x, ctx.after_relu)
        summed = need_b and db is None
        # Straight to .grad where that is safe: autograd would read and write the pruned blocks too.
        into = gradients.place_of(ctx.source, not ctx.layout.is_full)
        args = (dy, x, _taps(weight), summed, handle, *ctx.geometry)
        if into is None:
            dw, sums = _wgrad(*args)
            dw = as_weight(dw, weight)
        else:
            add = partial(_wgrad_add, into, *args)
            sums = aside.run(add, (dy, x)) if ctx.unread or not summed else add()
        db = sums if summed else db
    elif need_b and db is None:
        db = elementwise.column_sums(dy)
    return dx, dw, db, *[None] * 9


_fwd.register_autograd(_backward, setup_context=_save)


# The three passes are each other's derivatives: `dgrad` is linear in dy and weight, `wgrad` in dy
# and x, so gradients of gradients need no further kernels.


def _save_dgrad(ctx, inputs, output):
    dy, weight, handle, *ctx.geometry, _, gate, ctx.p = inputs
    ctx.layout = find_layout(handle)
    ctx.save_for_backward(dy, weight, gate)


def _dgrad_backward(ctx, ddx):
    dy, weight, gate = ctx.saved_tensors
    handle = ctx.layout.handle
    ddy = dw = None
    if gate is not None:
        # Linear in dy; of the gate only the sign counts, which has no gradient.
        ddx = relu_dropout_grad(ddx, gate, ctx.p)
    if ctx.needs_input_grad[0]:
        ddy = _fwd(ddx, weight, None, handle, *ctx.geometry, False, 0.0, None)
    if ctx.needs_input_grad[1]:
        dw = _wgrad(dy, ddx, _taps(weight), False, handle, *ctx.geometry)[0]
        dw = as_weight(dw, weight)
    return ddy, dw, *[None] * 7


_dgrad.register_autograd(_dgrad_backward, setup_context=_save_dgrad)


def _save_wgrad(ctx, inputs, output):
    dy, x, ctx.taps, ctx.bias, handle, *ctx.geometry = inputs
    ctx.layout = find_layout(handle)
    ctx.save_for_backward(dy, x)


def _wgrad_backward(ctx, ddw, ddb):
    dy, x = ctx.saved_tensors
    handle, channels = ctx.layout.handle, x.shape[-1]
    weight = ddw if ctx.taps == 1 else ddw.unflatten(1, (ctx.taps, channels)).permute(0, 2, 1)
    ddy = dx = None
    if ctx.needs_input_grad[0]:
        bias = ddb if ctx.bias else None
        ddy = _fwd(x, weight, bias, handle, *ctx.geometry, False, 0.0, None)
    if ctx.needs_input_grad[1]:
        dx = _dgrad(dy, weight, handle, *ctx.geometry, x.shape[1])
    return ddy, dx, *[None] * 6


_wgrad.register_autograd(_wgrad_backward, setup_context=_save_wgrad)


def _taps(weight: Tensor) -> int:
    return weight.shape[2] if weight.dim() == 3 else 1
