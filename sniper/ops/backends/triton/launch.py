# SPDX-License-Identifier: Apache-2.0
"""What the Triton backend needs around its launches: checks, device facts, descriptors."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows of the largest tile: within a tile kernels count in 32 bits, up to it in 64.
LARGEST_TILE = max(
    c.tokens for table in (configs.PRODUCT, configs.WGRAD) for cs in table.values() for c in cs
)
# What a weight gradient fills: programs per multiprocessor, if each has that many tiles to add.
# Two, of one, two and four, were fastest on an H200: what more splits write has to be read again.
WAVES, SPLIT_TILES = 2, 8


class Kernel:
    """One of Triton's functions, launched as theirs are, with `configs.OPTIONS` too."""

    def __init__(self, function: Any):
        self._function = function

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return partial(self._function[grid], **configs.OPTIONS)


@cache
def kernels() -> SimpleNamespace:
    """Every kernel by name; loads Triton."""
    # Inside the function: without a GPU nobody has to have Triton.
    from triton import KernelInterface

    from sniper.kernels import (
        adam,
        attention,
        attention_backward,
        batch_norm,
        elementwise,
        loss,
        norm,
        product,
        regulator,
        wgrad,
    )

    modules = (adam, attention, attention_backward, batch_norm, elementwise, loss, norm, product)
    modules += (regulator, wgrad)
    found = {k: v for module in modules for k, v in vars(module).items()}
    return SimpleNamespace(
        **{k: Kernel(v) for k, v in found.items() if isinstance(v, KernelInterface)}
    )


@cache
def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on CPU tensors too (TRITON_INTERPRET=1)."""
    from triton import knobs

    return knobs.runtime.interpret


def usable(x: Tensor) -> bool:
    """Whether kernels could run on this tensor, if they pass their check; says once why not."""
    return x.device.type == "cuda" and x.dtype in DTYPES and why_not(x.device.index) is None


@cache
def why_not(index: int | None) -> str | None:
    """What a GPU lacks to run the kernels, or None; the first time it warns."""
    major, minor = torch.cuda.get_device_capability(index)
    missing = None
    if torch.version.hip is not None:
        missing = "this torch is built for ROCm, and the kernels are for NVIDIA GPUs"
    # Looked for, not imported: importing it takes a second that a CPU run need not spend.
    elif importlib.util.find_spec("triton") is None:
        missing = "Triton is not installed"
    elif major < 8:
        missing = f"{torch.cuda.get_device_name(index)} is sm_{major}{minor}, older than sm_80"
    if missing:
        warnings.warn(f"block-sparse layers run dense: {missing}", stacklevel=2)
    return missing


@cache
def arch(device: torch.device) -> int:
    """Compute capability, as 90; the interpreter plays an sm_90."""
    if device.type != "cuda":
        return 90
    return configs.arch_of(torch.cuda.get_device_capability(device))


@cache
def has_wgmma(device: torch.device) -> bool:
    """Whether tensor cores read shared memory while a program goes on, as an sm_90's do."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def shared_memory(device: torch.device) -> int:
    """Bytes that one program may take: what the GPU says of itself, or is known of its kind."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        own = getattr(properties, "shared_memory_per_block_optin", None)
        if own is not None:
            return own
    # Older versions of torch do not tell the limit that a program may opt in to.
    return configs.shared_memory(arch(device))


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; few in the interpreter, where programs run one after the other."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def kind(t: Tensor) -> str:
    """How the tensor cores take a tensor's values: `half`, `tf32` or, without them, `fp32`."""
    if t.dtype != torch.float32:
        return "half"
    return selfcheck.precision()


def precision(t: Tensor) -> str:
    """Triton's name for it; says nothing of two-byte values."""
    return "ieee" if kind(t) == "fp32" else "tf32"


def check(
    name: str,
    t: Tensor,
    like: Tensor,
    shape: tuple[int | None, ...] | None,
    or_float32: bool = False,
) -> None:
    """Refuses tensors that kernels cannot take, or that lie or count otherwise than `like`."""
    if t is not like and t.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got one on {t.device}")
    if not t.is_cuda and not interpreted():
        raise ValueError(f"{name}: expected a tensor on a GPU, got one on {t.device}")
    dtype = t.dtype
    if dtype not in DTYPES or t.layout != torch.strided:
        raise ValueError(
            f"{name}: expected a strided float32, bfloat16 or float16 tensor, "
            f"got {dtype} {t.layout}"
        )
    if dtype != like.dtype and not (or_float32 and dtype == torch.float32):
        raise ValueError(f"{name}: expected {like.dtype} as the other operand, got {dtype}")
    if not countable(t):
        raise ValueError(f"{name}: expected fewer than 2^31 rows, got shape {list(t.shape)}")
    if shape is not None:
        check_shape(name, t, shape)


def countable(t: Tensor) -> bool:
    """Whether its rows have numbers of 32 bits; of elements there may be more."""
    count = t.numel()
    return count < 2**31 or count < 2**31 * max(t.shape[-1:], default=1)


def check_layout(layout: BlockLayout, geometry: Geometry, device: torch.device) -> tuple[int, int]:
    """`(N, C)` of a layout that fits; what its indices say is not read: that would wait."""
    rows, taps, inner = layout.shape
    if layout.block_size not in configs.BLOCK_SIZES:
        raise ValueError(
            f"layout: expected a block size of {configs.BLOCK_SIZES}, got {layout.block_size}"
        )
    if taps != geometry.taps:
        raise ValueError(f"layout: expected the geometry's {geometry.taps} taps, got {taps}")
    # Its tensors stay as long as its version: a look at each takes longer than all else here.
    known = layout.known
    if known.get("looked through on") != device:
        _check_tensors(layout, device)
        known["looked through on"] = device
    return rows * layout.block_size, inner * layout.block_size


def _check_tensors(layout: BlockLayout, device: torch.device) -> None:
    rows, taps, inner = layout.shape
    # Offsets into a weight are 32-bit numbers in the kernels, and 64-bit ones cost registers.
    full = rows * taps * inner
    if full * layout.block_size**2 >= 2**31:
        raise ValueError(f"layout: expected fewer than 2^31 weights, got {layout!r}")
    sizes = {
        "crow_indices": rows + 1,
        "col_indices": full,
        "row_indices": full,
        "row_order": rows,
        "crow_indices_t": inner + 1,
        "col_indices_t": full,
        "row_order_t": inner,
    }
    for name, size in sizes.items():
        t = getattr(layout, name)
        if t.dtype != torch.int32 or t.shape != (size,) or t.device != device:
            raise ValueError(
                f"layout.{name}: expected int32 [{size}] on {device}, "
                f"got {t.dtype} {list(t.shape)} on {t.device}"
            )


def split_tiles(device: torch.device, programs: int, tiles: int) -> int:
    """Token tiles of one split of a weight gradient that has `programs` programs without splits."""
    # Splits only as far as multiprocessors are idle: each split writes sums that another kernel has
    # to read.
    wanted = -(-WAVES * multiprocessors(device) // programs)
    return -(-tiles // max(1, min(wanted, tiles // SPLIT_TILES)))


def descriptor(t: Tensor, tile: list[int]) -> Any:
    """What the copy engine needs to know of a tensor: zeros outside it."""
    return _descriptors()(t, list(t.shape), list(t.stride()), tile)


@cache
def _descriptors() -> Callable[..., Any]:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor


def rows_contiguous(t: Tensor, span: int = 0) -> Tensor:
    """Itself where its last dimension is dense and offsets within a tile fit 32 bits, else a copy.

    Args:
        t: `[..., rows, channels]`.
        span: rows that are reached from a row of a tile.
    """
    if t.stride(-1) == 1 and (LARGEST_TILE + span) * t.stride(-2) + t.shape[-1] < 2**31:
        return t
    # Not contiguous(), which keeps a row's stride where there is one row.
    return t.clone(memory_format=torch.contiguous_format)


def flat(geometry: Geometry, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Sequences that lie end to end are one where rows are alone: fewer tiles end in nothing."""
    # With taps a row at the end of one sequence would read the beginning of the next.
    if not geometry.is_linear or tensors[0].shape[0] == 1:
        return tensors
    for t in tensors:
        if t.stride(0) != t.shape[1] * t.stride(1):
            return tensors
    return tuple([t.view(1, -1, t.shape[2]) for t in tensors])


def matrix_shape(x: Tensor) -> tuple[int, int]:
    """Rows and columns of `[..., N]`."""
    columns = x.shape[-1] if x.dim() else 1
    return x.numel() // max(columns, 1), columns
