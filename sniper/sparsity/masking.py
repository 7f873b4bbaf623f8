# SPDX-License-Identifier: Apache-2.0
"""From saliencies to masks: one global threshold, with a cap for each parameter."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from sniper.layers.masked import check_block_size
from sniper.sparsity.schedule import check_sparsity
from sniper.sparsity.scoring import check_saliency


@dataclass(frozen=True)
class Fixed:
    """One cap for all stages: no parameter is made sparser than this.

    What a capped parameter keeps is not pruned elsewhere, so the model may end up less sparse than
    the schedule says.

    Args:
        max_param_sparsity: in [0, 1]; 1 is no cap.

    Raises:
        ValueError: no number in [0, 1].

    Source: arXiv 2211.07283 and the authors' published code.
    """

    max_param_sparsity: float

    def __post_init__(self) -> None:
        value = check_sparsity(self.max_param_sparsity, "max_param_sparsity")
        object.__setattr__(self, "max_param_sparsity", value)


@dataclass(frozen=True)
class Following:
    """A cap that follows the schedule: at sparsity s no parameter is made sparser than
    `s + spread * (1 - s)`, and the threshold is raised until the model is as sparse as s.

    Args:
        spread: in [0, 1]. 0: every parameter is equally sparse; 1: no cap.

    Raises:
        ValueError: no number in [0, 1].
    """

    spread: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "spread", check_sparsity(self.spread, "spread"))


def masks(
    saliency: dict[str, Tensor],
    sparsity: float,
    max_param_sparsity: float = 1.0,
    block_size: int | None = None,
) -> dict[str, Tensor]:
    """`mask = saliency > threshold`, the threshold being the `int(sparsity * n)`-th smallest of all
    n saliencies.

    A parameter that would end sparser than `max_param_sparsity` takes its own threshold, the `1 +
    int(max_param_sparsity * numel)`-th smallest of its values; if nothing is above that either, a
    fixed random choice keeps `numel - int(max_param_sparsity * numel)` of them.

    Args:
        saliency: values >= 0 by parameter name, any shapes.
        sparsity: fraction to prune, in [0, 1]; 0 keeps everything.
        max_param_sparsity: the cap, in [0, 1].
        block_size: None for one decision a weight. Otherwise one a block, scored by the sum over
            its weights, for the
            eligible entries only: `[N, K]` and `[N, C, taps]` whose first two dimensions divide by
                it.

    Returns:
        True where active. Element masks have the saliency's shape; block masks are `[N/b, K/b]`,
        for `[N, C, taps]` `[N/b, taps, C/b]`.

    Raises:
        ValueError: a fraction outside [0, 1], saliencies that are NaN, infinite or negative, a
            block size that divides no entry.

    Source: arXiv 2211.07283; thresholds, cap and random choice equal the authors' published code.
    """
    sparsity = check_sparsity(sparsity, "sparsity")
    cap = check_sparsity(max_param_sparsity, "max_param_sparsity")
    check_saliency(saliency)
    if block_size is not None:
        saliency = pool_blocks(saliency, block_size)
    flat = torch.cat([s.reshape(-1) for s in saliency.values()])
    k = int(sparsity * flat.numel())
    if k == 0:
        return {name: torch.ones_like(s, dtype=torch.bool) for name, s in saliency.items()}
    threshold = torch.kthvalue(flat, k).values
    return {name: _capped(s, s > threshold, cap) for name, s in saliency.items()}


def _capped(scores: Tensor, mask: Tensor, cap: float) -> Tensor:
    """`mask`, or the cap's own mask where it is sparser than that."""
    numel = mask.numel()
    if numel == 0 or 1 - int(mask.sum()) / numel <= cap:
        return mask
    k = min(numel, 1 + int(cap * numel))  # the product may round up to numel
    mask = scores > torch.kthvalue(scores.reshape(-1), k).values
    if bool(mask.any()):
        return mask
    # No value is above its own threshold (all equal, or so few that the k-th is the largest): any
    # choice is as good, and Python's generator with seed 0 is the one that the authors' masks were
    # made with.
    pruned = int(cap * numel)
    keep = [False] * pruned + [True] * (numel - pruned)
    random.Random(0).shuffle(keep)
    return torch.tensor(keep, device=scores.device).reshape(scores.shape)


def is_eligible(shape: torch.Size, block_size: int) -> bool:
    """Whether a weight of this shape can be cut into blocks: 2-D or 3-D, both dims divisible."""
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
    return block_mask.repeat_interleave(b, 0).repeat_interleave(b, 2).permute(0, 2, 1)
