# SPDX-License-Identifier: Apache-2.0
"""The CPU executor: block-sparse products, dropout and ReLU gradients in C++ on torch's threads.

Plain functions on detached tensors. Every argument is checked here; the kernels trust it.
SNIPER_CPU=avx512|avx2|portable forces an instruction set.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.checks import check_shape, out_length
from sniper.ops.geometry import Geometry

BLOCK_SIZES = (16, 32, 64, 128)

_HUGE_PAGES_FROM = 4 << 20  # bytes

# Layouts whose indices were read through, with the version that was read.
_checked: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def available(dtype: torch.dtype) -> bool:
    """Whether the kernels take this dtype: float32, and bfloat16 (through float32 where the CPU has
    no AVX512_BF16).
    """
    return dtype in (torch.float32, torch.bfloat16)


def fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: Any,
    geometry: Geometry,
    relu: bool = False,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """`y = dropout(relu(x * W^T + b))` over the active blocks and taps.

    Args:
        x: `[B, T, C]`; copied when its channels are not contiguous.
        weight: `[N, taps * C]`, zero in pruned blocks (they are not read).
        bias: `[N]` or None.
        layout: BlockLayout of the weight.
        geometry: taps, dilation and padding.
        relu: whether to clamp at 0.
        dropout_p: share of y to zero; the rest is scaled by `1 / (1 - dropout_p)`.
        seed: with the shape of y, decides what `dropout_p` zeroes.

    Returns:
        `[B, T_out, N]`, contiguous.

    Raises:
        ValueError: a dtype, device, shape or layout that does not fit, or `dropout_p` outside
            [0, 1).
    """
    _check_tensor("x", x, 3)
    _check_tensor("weight", weight, 2, x.dtype)
    n, c = _check_layout(layout, geometry)
    check_shape("x", x, (None, None, c))
    check_shape("weight", weight, (n, geometry.taps * c))
    if bias is not None:
        _check_tensor("bias", bias, 1, x.dtype)
        check_shape("bias", bias, (n,))
        bias = bias.float().contiguous()
    dtype, x, weight = x.dtype, _operand(x), _operand(weight)
    y = _empty(x.dtype, x.shape[0], out_length(geometry, x.shape[1]), n)
    _kernels(x).forward(
        _shape(layout, geometry, x, y),
        _index(layout),
        _rows(x),
        (weight.data_ptr(), weight.stride(0)),
        0 if bias is None else bias.data_ptr(),
        relu,
        dropout_words(dropout_p, seed),
        _rows(y),
        torch.get_num_threads(),
    )
    return y.to(dtype)


def dgrad(dy: Tensor, weight: Tensor, layout: Any, geometry: Geometry, length: int) -> Tensor:
    """dL/dx `[B, length, C]` for dy `[B, T_out, N]`, contiguous; arguments as in `fwd`."""
    _check_tensor("dy", dy, 3)
    _check_tensor("weight", weight, 2, dy.dtype)
    n, c = _check_layout(layout, geometry)
    check_shape("dy", dy, (None, out_length(geometry, length), n))
    check_shape("weight", weight, (n, geometry.taps * c))
    dtype, dy, weight = dy.dtype, _operand(dy), _operand(weight)
    dx = _empty(dy.dtype, dy.shape[0], length, c)
    _kernels(dy).input_grad(
        _shape(layout, geometry, dx, dy),
        _index_t(layout),
        _rows(dy),
        (weight.data_ptr(), weight.stride(0)),
        _rows(dx),
        torch.get_num_threads(),
    )
    return dx.to(dtype)


def wgrad(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> Tensor:
    """dL/dW `[N, taps * C]`, exactly 0 in pruned blocks; arguments as in `fwd` and `dgrad`."""
    return _wgrad(dy, x, layout, geometry, with_bias=False)[0]


def wgrad_bias(dy: Tensor, x: Tensor, layout: Any, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """`wgrad` and dL/db `[N]` in one pass over dy."""
    return _wgrad(dy, x, layout, geometry, with_bias=True)


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """`x * keep / (1 - p)`; `keep` depends on `seed` and the shape of x alone.

    The gradient is the same function of dy. Zeroes what `fwd(..., dropout_p=p, seed=seed)` does
    in a y of this shape.

    Raises:
        ValueError: not a float tensor on the CPU, or `p` outside [0, 1).
    """
    _check_tensor("x", x, None)
    words = dropout_words(p, seed)
    dtype, x = x.dtype, _operand(x.contiguous())
    y = _empty(x.dtype, *x.shape)
    columns = x.shape[-1] if x.dim() else 1
    if x.numel():
        args = (x.data_ptr(), y.data_ptr(), x.numel() // columns, columns, words)
        _kernels(x).dropout(*args, torch.get_num_threads())
    return y.to(dtype)


def relu_dropout_backward(dy: Tensor, y: Tensor, dropout_p: float = 0.0) -> Tensor:
    """dL/dz of `y = dropout(relu(z))`: `dy / (1 - dropout_p)` where y > 0, else 0; needs no mask.

    Raises:
        ValueError: dy and y differ in shape, or `dropout_p` outside [0, 1).
    """
    _check_tensor("dy", dy, None)
    _check_tensor("y", y, None, dy.dtype)
    check_shape("dy", dy, tuple(y.shape))
    dtype, dy, y = dy.dtype, _operand(dy.contiguous()), _operand(y.contiguous())
    dz = _empty(dy.dtype, *dy.shape)
    scale = dropout_words(dropout_p, 0)[2]
    args = (dy.data_ptr(), y.data_ptr(), dz.data_ptr(), dy.numel(), scale)
    _kernels(dy).relu_backward(*args, torch.get_num_threads())
    return dz.to(dtype)


def _wgrad(
    dy: Tensor, x: Tensor, layout: Any, geometry: Geometry, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    _check_tensor("dy", dy, 3)
    _check_tensor("x", x, 3, dy.dtype)
    n, c = _check_layout(layout, geometry)
    check_shape("x", x, (None, None, c))
    check_shape("dy", dy, (x.shape[0], out_length(geometry, x.shape[1]), n))
    dtype, dy, x = dy.dtype, _operand(dy), _operand(x)
    dw = _empty(torch.float32, n, geometry.taps * c)
    db = _empty(torch.float32, n) if with_bias else None
    _kernels(x).weight_grad(
        _shape(layout, geometry, x, dy),
        _index(layout),
        _index_t(layout),
        _rows(dy),
        _rows(x),
        dw.data_ptr(),
        db.data_ptr() if with_bias else 0,
        torch.get_num_threads(),
    )
    return dw.to(dtype), db.to(dtype) if with_bias else None


def _shape(layout: Any, geometry: Geometry, x: Tensor, y: Tensor) -> _C.cpu.Shape:
    """For the kernels: sequences that lie end to end become one where every row is on its own."""
    batch, length_in, c = x.shape
    length_out = y.shape[1]
    if geometry.taps == 1 and not geometry.pad_left and not geometry.pad_right:
        if all(t.stride(0) == t.shape[1] * t.stride(1) for t in (x, y)):
            batch, length_in, length_out = 1, batch * length_in, batch * length_out
    return _C.cpu.Shape(
        batch,
        length_in,
        length_out,
        c,
        y.shape[2],
        geometry.taps,
        geometry.dilation,
        geometry.pad_left,
        layout.block_size,
    )


def _rows(t: Tensor) -> tuple[int, int, int]:
    return t.data_ptr(), t.stride(0), t.stride(1)


def _index(layout: Any) -> tuple[int, int, int]:
    tensors = (layout.crow_indices, layout.col_indices, layout.row_order)
    return tuple(t.data_ptr() for t in tensors)


def _index_t(layout: Any) -> tuple[int, int, int]:
    tensors = (layout.crow_indices_t, layout.col_indices_t, layout.row_order_t)
    return tuple(t.data_ptr() for t in tensors)


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """Uninitialised, on large pages: the page faults of fresh memory cost as much as filling it."""
    t = torch.empty(shape, dtype=dtype)
    if t.nbytes >= _HUGE_PAGES_FROM:
        _C.cpu.advise_huge_pages(t.data_ptr(), t.nbytes)
    return t


def _operand(t: Tensor) -> Tensor:
    """With contiguous channels, and in float32 where the CPU does not multiply t's dtype."""
    if t.dtype == torch.bfloat16 and not _C.cpu.has_bfloat16():
        t = t.float()
    return t if t.dim() == 0 or t.stride(-1) == 1 else t.contiguous()


def _kernels(t: Tensor) -> Any:
    return _C.cpu.bfloat16 if t.dtype == torch.bfloat16 else _C.cpu.float32


def dropout_words(p: float, seed: int) -> tuple[int, int, float]:
    """Seed, the least random 32-bit word that keeps its element, and the scale."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: expected p in [0, 1), got {p}")
    return seed % 2**64, min(round(p * 2**32), 2**32 - 1), 1 / (1 - p)


def _check_tensor(name: str, t: Tensor, dim: int | None, dtype: torch.dtype | None = None) -> None:
    if t.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {t.device}")
    if not available(t.dtype) or t.layout != torch.strided:
        raise ValueError(
            f"{name}: expected a strided float32 or bfloat16 tensor, got {t.dtype} {t.layout}"
        )
    if dtype is not None and t.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} like the other operand, got {t.dtype}")
    if dim is not None and t.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimensions, got shape {list(t.shape)}")


def _check_layout(layout: Any, geometry: Geometry) -> tuple[int, int]:
    """`(N, C)` of a layout that fits the geometry; reads its indices once a version."""
    out_blocks, taps, in_blocks = layout.shape
    if layout.block_size not in BLOCK_SIZES:
        raise ValueError(f"layout: expected a block size of {BLOCK_SIZES}, got {layout.block_size}")
    if taps != geometry.taps:
        raise ValueError(f"layout: expected the geometry's {geometry.taps} taps, got {taps}")
    if _checked.get(layout) != layout.version:
        keys = _check_indices(layout, "", out_blocks, taps, in_blocks)
        keys_t = _check_indices(layout, "_t", in_blocks, taps, out_blocks)
        inner, tap, outer = _unravel(keys_t, taps, out_blocks)
        again = ((outer * taps + tap) * in_blocks + inner).sort().values
        if not torch.equal(keys, again):
            raise ValueError("layout: expected the transposed twin to name the same blocks")
        _checked[layout] = layout.version
    return out_blocks * layout.block_size, in_blocks * layout.block_size


def _unravel(keys: Tensor, taps: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    return keys // (taps * inner), keys // inner % taps, keys % inner


def _check_indices(layout: Any, twin: str, rows: int, taps: int, inner: int) -> Tensor:
    """Position of every block of one twin in its mask, flattened; ascending."""
    names = (f"crow_indices{twin}", f"col_indices{twin}", f"row_order{twin}")
    crow, col, order = (getattr(layout, name) for name in names)
    sizes = (rows + 1, rows * taps * inner, rows)
    for name, t, size in zip(names, (crow, col, order), sizes, strict=True):
        fits = t.dtype == torch.int32 and t.device.type == "cpu" and t.is_contiguous()
        if not fits or t.shape != (size,):
            got = f"{t.dtype} {list(t.shape)} on {t.device}"
            raise ValueError(f"layout.{name}: expected int32 [{size}] on the CPU, got {got}")
    counts = crow.diff()
    if crow[0] != 0 or (counts < 0).any() or crow[-1] > col.numel():
        raise ValueError(f"layout.{names[0]}: expected an ascent from 0 to at most {col.numel()}")
    used = col[: int(crow[-1])].long()
    if ((used < 0) | (used >= taps * inner)).any():
        raise ValueError(f"layout.{names[1]}: expected columns in [0, {taps * inner})")
    if not torch.equal(order.sort().values, torch.arange(rows, dtype=torch.int32)):
        raise ValueError(f"layout.{names[2]}: expected every block row once")
    keys = torch.arange(rows).repeat_interleave(counts.long()) * (taps * inner) + used
    if (keys.diff() <= 0).any():
        raise ValueError(f"layout.{names[1]}: expected ascending columns in every row")
    return keys
