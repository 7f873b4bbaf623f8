# SPDX-License-Identifier: Apache-2.0
"""The Triton executor: block-sparse products, dropout and ReLU gradients on NVIDIA GPUs from sm_80.

Plain functions on detached tensors, with the signatures of `sniper.ops.backends.cpu`. Every
argument is checked; the kernels trust it. Nothing waits for the GPU. Importable without Triton or a
GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import timings
from sniper.ops.backends.triton import launch
from sniper.ops.backends.triton.elementwise import (
    column_sums,
    dropout,
    dropout_args,
    relu_dropout_backward,
    relu_dropout_backward_bias,
)
from sniper.ops.backends.triton.launch import Plan, check, check_layout, descriptor, plan
from sniper.ops.checks import out_length
from sniper.ops.geometry import Geometry

__all__ = [
    "available",
    "column_sums",
    "dgrad",
    "dropout",
    "fwd",
    "relu_dropout_backward",
    "relu_dropout_backward_bias",
    "tune",
    "tuned",
    "wgrad",
    "wgrad_bias",
]

BLOCK_SIZES = configs.BLOCK_SIZES


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels take this dtype on this device; says once why a GPU does not do."""
    cuda = device.type == "cuda" and dtype in launch.DTYPES
    return cuda and launch.usable(device.index)


def fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: Any,
    geometry: Geometry,
    relu: bool = False,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """`y = dropout(relu(x * W^T + b))` over the active blocks and taps, summed in float32.

    float32 runs as tf32 where `torch.backends.cuda.matmul` allows it.

    Args:
        x: `[B, T, C]`; copied when its channels are not contiguous.
        weight: `[N, taps * C]`, zero in pruned blocks (they are not read).
        bias: `[N]` or None.
        layout: BlockLayout of the weight, on the same device.
        geometry: taps, dilation and padding.
        relu: whether to clamp at 0.
        dropout_p: share of y to zero; the rest is scaled by `1 / (1 - dropout_p)`.
        seed: with the shape of y, decides what `dropout_p` zeroes, the same as on the CPU: an int64
            scalar on the device, or a number, which costs a launch.

    Returns:
        `[B, T_out, N]`, contiguous.

    Raises:
        ValueError: a dtype, device, shape or layout that does not fit, or `dropout_p` outside
            [0, 1).
    """
    n, c = check_layout(layout, geometry, x.device)
    check("x", x, x, (None, None, c))
    check("weight", weight, x, (n, geometry.taps * c))
    if bias is not None:
        check("bias", bias, x, (n,))
        bias = bias.contiguous()
    y = x.new_empty(x.shape[0], out_length(geometry, x.shape[1]), n)
    epilogue = (bias, *dropout_args(dropout_p, seed, x.device), relu)
    return _product(
        plan("fwd", layout, geometry, x, weight), x, weight, y, layout, geometry, epilogue
    )


def dgrad(dy: Tensor, weight: Tensor, layout: Any, geometry: Geometry, length: int) -> Tensor:
    """dL/dx `[B, length, C]` for dy `[B, T_out, N]`, contiguous; arguments as in `fwd`."""
    n, c = check_layout(layout, geometry, dy.device)
    check("dy", dy, dy, (None, out_length(geometry, length), n))
    check("weight", weight, dy, (n, geometry.taps * c))
    dx = dy.new_empty(dy.shape[0], length, c)
    return _product(plan("dgrad", layout, geometry, dy, weight), dy, weight, dx, layout, geometry)


def wgrad(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> Tensor:
    """dL/dW `[N, taps * C]`, exactly 0 in pruned blocks; arguments as in `fwd` and `dgrad`.

    The tokens are split among programs whose sums are added in a fixed order: equal inputs give
    equal bits.
    """
    n, c = check_layout(layout, geometry, x.device)
    check("x", x, x, (None, None, c))
    check("dy", dy, x, (x.shape[0], out_length(geometry, x.shape[1]), n))
    dw = x.new_zeros(n, geometry.taps * c)
    return _wgrad(plan("wgrad", layout, geometry, dy, x), dy, x, dw, layout, geometry)


def wgrad_bias(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """`wgrad` and dL/db `[N]`."""
    return wgrad(dy, x, layout, geometry), column_sums(dy)


def tune(which: str, layout: Any, geometry: Geometry, *args: Any) -> str:
    """Times every shipped configuration of a pass on these tensors; later calls use the fastest.

    The times are kept on disk by shape, dtype, density in tenths and device.

    Args:
        which: `fwd`, `dgrad` or `wgrad`.
        args: x, weight, bias; dy, weight, length; or dy, x.

    Returns:
        What was chosen, in words.
    """
    calls = {}
    for candidate in launch.plans(which, layout, *args[:2]):
        calls[launch.plan_name(candidate)] = lambda c=candidate: _with_plan(
            c, which, args, layout, geometry
        )
    if not tuned(which, layout, geometry, args[0]):
        timings.outdate()  # until now the table's configuration ran
    return timings.fastest(launch.tuning_key(which, layout, geometry, args[0]), calls)


def tuned(which: str, layout: Any, geometry: Geometry, x: Tensor) -> bool:
    """Whether `tune` has times for a pass on tensors such as its first, x or dy."""
    return timings.known(launch.tuning_key(which, layout, geometry, x)) is not None


def _with_plan(chosen: Plan, which: str, args: tuple, layout: Any, geometry: Geometry) -> Tensor:
    """Runs a pass on one configuration."""
    run, tensors = {"fwd": (fwd, 3), "dgrad": (dgrad, 2), "wgrad": (wgrad, 2)}[which]
    launch.forced_plan = chosen
    try:
        return run(*args[:tensors], layout, geometry, *args[tensors:])
    finally:
        launch.forced_plan = None


def _product(
    chosen: Plan,
    src: Tensor,
    weight: Tensor,
    out: Tensor,
    layout: Any,
    geometry: Geometry,
    epilogue: tuple | None = None,
) -> Tensor:
    """The forward pass, or without `epilogue` the input gradient; returns `out`, shape and all."""
    if not out.numel():
        return out
    (path, config), block = chosen, layout.block_size
    transposed, twin, sign = (False, "", 1) if epilogue else (True, "_t", -1)
    bias, seed, threshold, scale, relu = epilogue or (None, None, 0, 1.0, False)
    src, weight = launch.rows_contiguous(src), launch.rows_contiguous(weight)
    src, rows_out = launch.flat(geometry, src, out)
    batch, length = rows_out.shape[:2]
    rows, inner = rows_out.shape[2] // block, src.shape[2] // block
    length_tiles = -(-length // config.tokens)
    tiles = batch * length_tiles
    if path == "tma":
        kernel = launch.kernels().product_tma
        tile = [config.width, block] if transposed else [block, config.width]
        operands = (
            descriptor(src, [1, config.tokens, config.width]),
            descriptor(weight, tile),
        )
        strides = ()
    else:
        kernel, operands = launch.kernels().product_pointer, (src, weight)
        strides = (src.shape[1], src.stride(0), src.stride(1), weight.stride(0))
    with launch.on(src.device):
        kernel[(rows * tiles,)](
            *operands,
            rows_out,
            bias,
            seed,
            *(getattr(layout, f"{n}{twin}") for n in ("crow_indices", "col_indices", "row_order")),
            *(length, length_tiles, tiles, rows, inner),
            *(-sign * geometry.pad_left, sign * geometry.dilation),
            *(threshold, scale),
            *strides,
            B=block,
            BT=config.tokens,
            BK=config.width,
            GROUP=configs.GROUP,
            TRANSPOSED=transposed,
            RELU=relu,
            PRECISION=launch.precision(src),
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def _wgrad(
    chosen: Plan, dy: Tensor, x: Tensor, dw: Tensor, layout: Any, geometry: Geometry
) -> Tensor:
    """Fills the active blocks of `dw`, which is zero, and returns it."""
    (path, config), block, entries = chosen, layout.block_size, layout.nnz
    if not entries or not dy.numel() or not x.numel():
        return dw
    rows, taps, inner = layout.shape
    dy, x = (launch.rows_contiguous(t) for t in (dy, x))
    dy, x = launch.flat(geometry, dy, x)
    length_tiles = -(-dy.shape[1] // config.tokens)
    tiles = dy.shape[0] * length_tiles
    chunks = -(-taps * inner // config.width)
    split_tiles = launch.split_tiles(x.device, -(-entries // config.width), tiles)
    splits = -(-tiles // split_tiles)
    partial = x.new_empty(splits, entries, block, block, dtype=torch.float32)
    kernels, strides = launch.kernels(), ()
    if path == "tma":
        kernel, tile = kernels.wgrad_tma, [1, config.tokens, block]
        operands = (descriptor(dy, tile), descriptor(x, tile))
    else:
        kernel, operands = kernels.wgrad_pointer, (dy, x)
        strides = (dy.shape[1], x.shape[1], dy.stride(0), dy.stride(1), x.stride(0), x.stride(1))
    with launch.on(x.device):
        kernel[(rows * chunks * splits,)](
            *operands,
            partial,
            *(layout.crow_indices, layout.col_indices, layout.row_order),
            *(rows, chunks, inner, entries, length_tiles, tiles, split_tiles),
            *(-geometry.pad_left, geometry.dilation),
            *strides,
            B=block,
            BT=config.tokens,
            G=config.width,
            PRECISION=launch.precision(x),
            num_warps=config.warps,
            num_stages=config.stages,
        )
        kernels.wgrad_reduce[(entries, block // 16)](
            *(partial, dw, layout.row_indices, layout.col_indices, entries, splits, dw.shape[1]),
            B=block,
            BN=16,
        )
    return dw
