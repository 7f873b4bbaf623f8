# SPDX-License-Identifier: Apache-2.0
"""Masks that reach the asked sparsity while no parameter is much sparser than another.

One threshold over all parameters, as SNIPER has it, prunes whole layers whose saliencies are small
at initialisation and leaves others dense; a fixed cap then decides most masks, the asked sparsity
is not reached, and those layers come back all at once. Here the cap follows the sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sniper.sparsity.schedule import check_sparsity
from sniper.sparsity.scoring import check_saliency
from sniper.sparsity.state import Stages
from sniper.sparsity.update import Plan


def cap_of(sparsity: float, spread: float) -> float:
    """Most that a parameter may be pruned: `sparsity + spread * (1 - sparsity)`."""
    return sparsity + spread * (1 - sparsity)


@torch.no_grad()
def spread_plan(scores: dict[str, Tensor], sparsities: Sequence[float], spread: float) -> Plan:
    """The masks of every sparsity s: of n values the `int(s * n)` smallest go, among those that are
    the `int(cap_of(s, spread) * size)` smallest of their parameter. They are nested.

    Args:
        scores: saliencies >= 0 by name, of blocks or of single weights.
        sparsities: fractions in [0, 1].
        spread: in [0, 1]. 0: every parameter is equally sparse. 1: one threshold decides, whatever
            it does to a parameter.

    Returns:
        A plan in which equal values go in the order in which they stand, and a stage lacks at most
        one value a parameter, where caps are rounded down.

    Raises:
        ValueError: a fraction outside [0, 1]; scores that are missing, NaN, infinite, negative or
            on several devices.
    """
    check_sparsity(spread, "spread")
    check_saliency(scores)
    stages = sorted({check_sparsity(s, "sparsity") for s in sparsities}, reverse=True)
    ordered = {name: s.detach().reshape(-1).sort(stable=True) for name, s in scores.items()}
    masks: Stages = {}
    most = {name: s.numel() for name, s in scores.items()}
    for sparsity in stages:
        # What has stayed once, stays: rounding must not prune it again.
        cap = {n: min(_part(cap_of(sparsity, spread), scores[n].numel()), most[n]) for n in most}
        total = sum(s.numel() for s in scores.values())
        most = _pruned({n: ordered[n].values[:c] for n, c in cap.items()}, _part(sparsity, total))
        masks[sparsity] = {}
        for name, s in scores.items():
            mask = torch.ones(s.numel(), dtype=torch.bool, device=s.device)
            mask[ordered[name].indices[: most[name]]] = False
            masks[sparsity][name] = mask.view(s.shape)
    return Plan.of(masks)


def _part(share: float, n: int) -> int:
    """`share * n` rounded down, where 0.29 * 100 is 29."""
    return int(share * n + 1e-9)


def _pruned(candidates: dict[str, Tensor], count: int) -> dict[str, int]:
    """How many of each parameter's candidates, in ascending order, are among the `count` smallest
    of all.
    """
    values = torch.cat(list(candidates.values()))
    if count >= values.numel():
        return {name: c.numel() for name, c in candidates.items()}
    if count == 0:
        return dict.fromkeys(candidates, 0)
    threshold = values.kthvalue(count).values
    below = {name: int((c < threshold).sum()) for name, c in candidates.items()}
    left = count - sum(below.values())
    for name, c in candidates.items():
        equal = min(left, int((c == threshold).sum()))
        below[name] += equal
        left -= equal
    return below
