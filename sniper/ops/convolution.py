# SPDX-License-Identifier: Apache-2.0
"""A convolution without a mask, by whichever is faster: torch, or our product of all blocks, which
takes three neighbouring taps at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from sniper.ops.autocast import autocast_dtype
from sniper.ops.block_matmul import block_matmul
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout
from sniper.ops.transforms import transformed

_BLOCKS = 64, 32, 16
_torchs = False


@contextlib.contextmanager
def torchs_convolutions() -> Iterator[None]:
    """Inside, `fuses_convolution` is false and `as_torch_has_it` copies: for results that must be
    torch's to the last bit, whatever is faster.
    """
    global _torchs
    before, _torchs = _torchs, True
    try:
        yield
    finally:
        _torchs = before


def as_torch_has_it(weight: Tensor) -> Tensor:
    """A weight `[N, C, taps]` in torch's order of memory where bits must be its own, since torch
    multiplies another order in other ways; else as it is.
    """
    return weight.contiguous() if _torchs else weight


def fuses_convolution(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` takes such tensors, and it is worth while to time both: for training
    alone, since a sentence that is spoken once is over before.

    Args:
        x, weight: as `convolution` takes them.
    """
    if _torchs or torch.compiler.is_compiling() or transformed() or not torch.is_grad_enabled():
        return False
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[2] < 3 or not weight.requires_grad:
        return False
    ours = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return ours and autocast_dtype(x) is None and _block(weight) is not None


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """`conv1d(x, weight, bias, padding=padding)`, channels last, where `fuses_convolution`.

    Args:
        x: `[B, T, C]`.
        weight: `[N, C, taps]`; in memory `[N, taps, C]`, or it is copied.
        bias: `[N]` or None.
        padding: rows of zeros before and after each sequence.

    Returns:
        `[B, T_out, N]`.

    Raises:
        ValueError: of `block_matmul`, or channels that no block size divides.
    """
    block = _block(weight)
    if block is None:
        raise ValueError(f"weight: expected channels in sixteens, got {list(weight.shape)}")
    n, c, taps = weight.shape
    layout = _all_blocks(n // block, taps, c // block, block)
    return block_matmul(x, weight, bias, layout, Geometry(taps, 1, padding, padding))


def _block(weight: Tensor) -> int | None:
    n, c, _ = weight.shape
    return next((b for b in _BLOCKS if n % b == c % b == 0), None)


@cache
def _all_blocks(*shape_and_size: int) -> BlockLayout:
    *shape, size = shape_and_size
    return BlockLayout(torch.ones(shape, dtype=torch.bool, device="cpu"), size)
