# SPDX-License-Identifier: Apache-2.0
"""Bool tensors as bits, for checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sniper.ops import extension


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
    home = _home("pack_bits", mask.device)
    # A view with gaps would be packed with what lies between.
    values = mask.to(home).contiguous()
    bits = torch.empty((values.numel() + 7) // 8, dtype=torch.uint8, device=home)
    extension.call("pack_bits", home, values.data_ptr(), values.numel(), bits.data_ptr())
    return bits.to(mask.device)


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
    home = _home("unpack_bits", bits.device)
    packed = bits.to(home).contiguous()
    mask = torch.empty(shape, dtype=torch.bool, device=home)
    extension.call("unpack_bits", home, packed.data_ptr(), n, mask.data_ptr())
    return mask.to(bits.device)


def _home(name: str, device: torch.device) -> torch.device:
    """Where the extension takes a tensor of `device`."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a tensor on cpu or cuda, got {device}")
    return extension.home(device)
