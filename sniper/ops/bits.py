# SPDX-License-Identifier: Apache-2.0
"""Bool tensors as bits, for checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sniper import _C


def pack_bits(mask: Tensor) -> Tensor:
    """Eight values a byte, the first in the lowest bit.

    Args:
        mask: bool, any shape, on a CPU or a CUDA device.

    Returns:
        uint8 `[ceil(numel / 8)]` on the same device; unused bits of the last byte are 0.

    Raises:
        ValueError: `mask` is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, got {mask.dtype}")
    values = mask.contiguous()
    bits = torch.empty((values.numel() + 7) // 8, dtype=torch.uint8, device=values.device)
    _call("pack_bits", values.data_ptr(), values.numel(), bits.data_ptr(), device=values.device)
    return bits


def unpack_bits(bits: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` packed.

    Raises:
        ValueError: `bits` is not uint8, or not as long as `shape` needs.
    """
    n = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != (n + 7) // 8:
        raise ValueError(
            f"bits: expected uint8 [{(n + 7) // 8}] for shape {tuple(shape)}, "
            f"got {bits.dtype} {list(bits.shape)}"
        )
    bits = bits.contiguous()
    mask = torch.empty(shape, dtype=torch.bool, device=bits.device)
    _call("unpack_bits", bits.data_ptr(), n, mask.data_ptr(), device=bits.device)
    return mask


def _call(name: str, *args: int, device: torch.device) -> None:
    if device.type == "cpu":
        getattr(_C, name)(*args)
    elif device.type == "cuda" and _C.with_cuda:
        with torch.cuda.device(device):
            getattr(_C, f"{name}_cuda")(*args, torch.cuda.current_stream(device).cuda_stream)
    else:
        built = "cpu and cuda" if _C.with_cuda else "cpu (built without CUDA)"
        raise ValueError(f"{name}: expected a tensor on {built}, got {device}")
