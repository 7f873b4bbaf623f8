# SPDX-License-Identifier: Apache-2.0
"""Which pruned weights come back at a change of sparsity, where the gradient at that moment
decides and not the saliency at initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sniper.sparsity.masking import Cap, MaskStages
from sniper.sparsity.scoring import check_saliency

GROWTH = ("score", "gradient")


@torch.no_grad()
def grown_masks(
    active: dict[str, Tensor], gradients: dict[str, Tensor], sparsities: Sequence[float], cap: Cap
) -> MaskStages:
    """Masks that keep what is active and add what has the largest gradient.

    First each parameter that is sparser than the cap allows is filled up by its own largest, then
    the largest of all parameters come until the sparsity is as asked; of equal ones the first.

    Args:
        active: the masks in force by name, of blocks or of single weights.
        gradients: values >= 0 of the masks' shapes: gradients' magnitudes, of a block their sum.
        sparsities: of the stages that follow, at most the present one.
        cap: as `nested_masks` takes it.

    Returns:
        Nested masks by stage.

    Raises:
        ValueError: gradients that are missing, NaN, infinite or negative.

    Source: the growth criterion of Evci et al., RigL, arXiv 1911.11134, section 3; on blocks and
        under a cap it is this project's.
    """
    check_saliency(gradients)
    total = sum(mask.numel() for mask in active.values())
    now = {name: mask.clone().reshape(-1) for name, mask in active.items()}
    # What is active already must not be chosen again: below every gradient.
    left = {n: gradients[n].reshape(-1).masked_fill(m, -1.0) for n, m in now.items()}
    stages: dict[float, dict[str, Tensor]] = {}
    for sparsity in sorted(set(sparsities), reverse=True):
        for name, mask in now.items():
            most = int(cap.of(sparsity) * mask.numel() + 1e-9)
            _activate({name: mask}, {name: left[name]}, int((~mask).sum()) - most)
        pruned = sum(int((~mask).sum()) for mask in now.values())
        _activate(now, left, pruned - int(sparsity * total + 1e-9))
        stages[sparsity] = {n: m.clone().view(active[n].shape) for n, m in now.items()}
    return MaskStages.count(stages)


def _activate(masks: dict[str, Tensor], left: dict[str, Tensor], count: int) -> None:
    """Makes the `count` largest of `left` active, in place."""
    if count <= 0:
        return
    values = torch.cat(list(left.values()))
    chosen = torch.zeros_like(values, dtype=torch.bool)
    # Stable, so that of equal gradients the first ones come, on every device alike.
    chosen[values.sort(stable=True, descending=True).indices[:count]] = True
    sizes = [mask.numel() for mask in masks.values()]
    for name, new in zip(masks, chosen.split(sizes), strict=True):
        masks[name] |= new
        left[name].masked_fill_(new, -1.0)
