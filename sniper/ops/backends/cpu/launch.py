# SPDX-License-Identifier: Apache-2.0
"""What the CPU backend needs around its calls: checks, memory, and how kernels are told of tensors.

Every argument is checked here; the kernels trust it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.geometry import Geometry, dropout_words
from sniper.ops.layout import BlockLayout

BLOCK_SIZES = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16)

# Bytes.
_OWN_MEMORY_FROM = 1 << 20
_HUGE_PAGES_FROM = 4 << 20


def check_tensor(name: str, t: Tensor, dim: int | None, dtype: torch.dtype | None = None) -> None:
    if not t.is_cpu:
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {t.device}")
    own = t.dtype
    if own not in DTYPES or t.layout != torch.strided:
        raise ValueError(
            f"{name}: expected a strided float32 or bfloat16 tensor, got {own} {t.layout}"
        )
    if dtype is not None and own != dtype:
        raise ValueError(f"{name}: expected {dtype} like the other operand, got {own}")
    if dim is not None and t.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimensions, got shape {list(t.shape)}")


def check_layout(layout: BlockLayout, geometry: Geometry) -> tuple[int, int]:
    """`(N, C)` of a layout that fits the geometry; reads its indices once a version."""
    (out_blocks, taps, in_blocks), known = layout.shape, layout.known
    if layout.block_size not in BLOCK_SIZES:
        raise ValueError(f"layout: expected a block size of {BLOCK_SIZES}, got {layout.block_size}")
    if taps != geometry.taps:
        raise ValueError(f"layout: expected the geometry's {geometry.taps} taps, got {taps}")
    # Reading all indices costs about as much as a small layer, so it is done once a version and not
    # once a call.
    if "read through" not in known:
        keys = _check_indices(layout, "", out_blocks, taps, in_blocks)
        keys_t = _check_indices(layout, "_t", in_blocks, taps, out_blocks)
        inner, tap, outer = _unravel(keys_t, taps, out_blocks)
        again = ((outer * taps + tap) * in_blocks + inner).sort().values
        # The backward pass reads the twin: with that of another mask gradients would be wrong
        # without an error.
        if not torch.equal(keys, again):
            raise ValueError("layout: expected the transposed twin to name the same blocks")
        known["read through"] = True
    return out_blocks * layout.block_size, in_blocks * layout.block_size


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """Uninitialised, on large pages: the page faults of fresh memory cost as much as filling it."""
    size = math.prod(shape) * dtype.itemsize
    if size < _OWN_MEMORY_FROM:
        return torch.empty(shape, dtype=dtype)
    # What torch asks malloc for leaves gaps that the next step's tensors do not fit into.
    t = torch.frombuffer(_C.cpu.Memory(size), dtype=dtype).view(shape)
    # Any range of 4 MiB holds a whole aligned page of 2 MiB; a smaller one may hold none.
    if t.nbytes >= _HUGE_PAGES_FROM:
        _C.cpu.advise_huge_pages(t.data_ptr(), t.nbytes)
    return t


def operand(t: Tensor) -> Tensor:
    """With contiguous channels, and in float32 where the CPU does not multiply t's dtype."""
    # Widened once here: a kernel that widened each value would do it again for every block that
    # reads it.
    if t.dtype == torch.bfloat16 and not _C.cpu.has_bfloat16():
        t = t.float()
    return t if t.dim() == 0 or t.stride(-1) == 1 else t.contiguous()


def kernels(t: Tensor) -> Any:
    return _C.cpu.bfloat16 if t.dtype == torch.bfloat16 else _C.cpu.float32


def kernel_shape(layout: BlockLayout, geometry: Geometry, x: Tensor, y: Tensor) -> _C.cpu.Shape:
    """For the kernels: sequences that lie end to end become one where every row is on its own."""
    batch, length_in, c = x.shape
    length_out = y.shape[1]
    if batch > 1 and geometry.is_linear:
        # Only the last tile of a sequence may lack rows, so one long sequence wastes least.
        if _end_to_end(x) and _end_to_end(y):
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


def _end_to_end(t: Tensor) -> bool:
    return t.stride(0) == t.shape[1] * t.stride(1)


def rows_of(t: Tensor) -> tuple[int, int, int]:
    return t.data_ptr(), t.stride(0), t.stride(1)


def index_of(layout: BlockLayout) -> tuple[int, int, int]:
    crow, col, order = layout.crow_indices, layout.col_indices, layout.row_order
    return crow.data_ptr(), col.data_ptr(), order.data_ptr()


def transposed_index_of(layout: BlockLayout) -> tuple[int, int, int]:
    crow, col, order = layout.crow_indices_t, layout.col_indices_t, layout.row_order_t
    return crow.data_ptr(), col.data_ptr(), order.data_ptr()


def dropout_arguments(p: float, seed: int) -> tuple[int, int, float]:
    """Seed, the least random word that keeps its element, and the scale."""
    return seed % 2**64, *dropout_words(p)


def _unravel(keys: Tensor, taps: int, inner: int) -> tuple[Tensor, Tensor, Tensor]:
    return keys // (taps * inner), keys // inner % taps, keys % inner


def _check_indices(layout: BlockLayout, twin: str, rows: int, taps: int, inner: int) -> Tensor:
    """Position of every block of one twin in its mask, flattened; ascending."""
    # A wrong index would write outside the tensor, which no error catches afterwards.
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
