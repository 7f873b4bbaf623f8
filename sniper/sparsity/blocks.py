# SPDX-License-Identifier: Apache-2.0
"""Weights cut into blocks: which ones can be, what a block's saliency is, and a block mask per
weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.layers.masked import check_block_size
from sniper.ops import extension


def pool(weight: Tensor, gradient: Tensor, block_size: int) -> Tensor:
    """Block saliencies `sum |weight * gradient|`, without a tensor of the weight's size.

    Args:
        weight: `[N, K]` or `[N, C, taps]` in any memory order; N and K (or C) divide by the block.
        gradient: of the same shape, summed over the scoring batches.
        block_size: edge of a block.

    Returns:
        `[N/b, K/b]` or `[N/b, taps, C/b]`, of the weight's dtype. In float32 each block is added up
        in one fixed order, the same on every device and for any number of threads.

    Raises:
        ValueError: shapes that differ, or that blocks do not divide.
    """
    if gradient.shape != weight.shape:
        raise ValueError(
            f"gradient: expected shape {tuple(weight.shape)}, got {tuple(gradient.shape)}"
        )
    # The extension knows float32 alone. Half precision is rare here, because scoring happens once
    # and on the parameters themselves, so a second kernel would not pay.
    alike = weight.device == gradient.device and weight.dtype == gradient.dtype == torch.float32
    if not alike or weight.dim() not in (2, 3):
        return pool_reference(weight, gradient, block_size)
    b, (n, c, *taps) = check_block_size(block_size), weight.shape
    if n % b or c % b:
        raise ValueError(f"block_size: expected a divisor of {(n, c)}, got {b}")
    home = extension.home(weight.device)
    w, g = weight.detach().to(home), gradient.detach().to(home)
    # The layout's order, taps in the middle: the kernels visit the blocks of a row tap by tap.
    scores = torch.empty((n // b, *taps, c // b), dtype=torch.float32, device=home)
    shape = (n // b, taps[0] if taps else 1, c // b, b)
    extension.call("pool_saliency", home, _strided(w), _strided(g), shape, scores.data_ptr())
    return scores.to(weight.device)


def pool_reference(weight: Tensor, gradient: Tensor, block_size: int) -> Tensor:
    """`pool` in plain torch."""
    return pool_blocks({"weight": (weight * gradient).abs_()}, block_size)["weight"]


def is_eligible(shape: torch.Size, block_size: int) -> bool:
    """Whether a weight of this shape can be cut into blocks: 2-D or 3-D, both dims divisible."""
    # A bias is one-dimensional: cutting it into blocks would save nothing and lose whole outputs.
    if len(shape) not in (2, 3) or 0 in shape:
        return False
    return shape[0] % block_size == 0 and shape[1] % block_size == 0


def pool_blocks(saliency: dict[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """Block saliencies, the sum over a block's weights, of the eligible entries.

    Returns:
        `[N/b, K/b]` for `[N, K]`, `[N/b, taps, C/b]` for `[N, C, taps]`.

    Raises:
        ValueError: no entry is eligible.
    """
    b = check_block_size(block_size)
    pooled = {}
    for name, s in saliency.items():
        if not is_eligible(s.shape, b):
            continue
        # A linear layer is a convolution of one tap, so that both are summed by the same lines.
        taps_last = s.unsqueeze(2) if s.dim() == 2 else s
        rows = taps_last.permute(0, 2, 1).unflatten(2, (-1, b)).sum(3)  # [N, taps, C/b]
        blocks = rows.unflatten(0, (-1, b)).sum(1)
        pooled[name] = blocks[:, 0] if s.dim() == 2 else blocks
    if not pooled:
        shapes = ", ".join(f"{name} {tuple(s.shape)}" for name, s in list(saliency.items())[:5])
        raise ValueError(
            f"block_size: expected one that divides both dimensions of at least one weight, "
            f"got {b} for {shapes}"
        )
    return pooled


def expand_blocks(block_mask: Tensor, block_size: int, shape: torch.Size) -> Tensor:
    """The element mask, of the weight's `shape`, that a block mask stands for."""
    b = block_size
    if len(shape) == 2:
        return block_mask.repeat_interleave(b, 0).repeat_interleave(b, 1)
    # A view on memory [N, taps, C], the order in which a masked convolution's weight lies.
    return block_mask.repeat_interleave(b, 0).repeat_interleave(b, 2).permute(0, 2, 1)


def _strided(weight: Tensor) -> tuple[int, int, int, int]:
    """Address, and strides of row, channel and tap."""
    row, channel, tap = (*weight.stride(), 0)[:3]
    return weight.data_ptr(), row, channel, tap
