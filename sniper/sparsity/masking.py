# SPDX-License-Identifier: Apache-2.0
"""From saliencies to the nested masks of all stages; a stage is one scheduled sparsity.

`nested_masks` is the one way there, with the cap on a parameter's sparsity as a value: `Fixed`, the
paper's, or `Following`. It runs in the extension (csrc/mask_stages.h) where that takes the tensors,
and otherwise as `nested_masks_reference` does, which says in plain torch what it computes. All
stages are made at once, from one scoring, so that a later change of sparsity only puts masks on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sniper import _C
from sniper.ops import extension
from sniper.sparsity.blocks import pool_blocks
from sniper.sparsity.schedule import check_sparsity
from sniper.sparsity.scoring import check_present, check_saliency


@dataclass(frozen=True)
class Fixed:
    """The cap of the authors' code: no parameter is made sparser than `max_param_sparsity`, at any
    stage; the paper's runs have 1.0, which is none.

    A mask is `saliency > threshold`, the threshold being the `int(sparsity * n)`-th smallest of all
    n saliencies. A parameter that would end sparser than the cap takes its own threshold, the `1 +
    int(cap * numel)`-th smallest of its values; if nothing is above that either, a fixed random
    choice keeps `numel - int(cap * numel)` of them. What a capped parameter keeps is not pruned
    elsewhere, so a model may end up less sparse than asked.

    Args:
        max_param_sparsity: a fraction in [0, 1]; with 1 one threshold decides everything.

    Raises:
        ValueError: a number outside [0, 1].

    Source: arXiv 2211.07283; threshold, cap and random choice equal the authors' published code.
    """

    max_param_sparsity: float

    def __post_init__(self) -> None:
        value = check_sparsity(self.max_param_sparsity, "max_param_sparsity")
        # The dataclass is frozen; this is how its own constructor may still turn 1 into 1.0.
        object.__setattr__(self, "max_param_sparsity", value)

    def of(self, sparsity: float) -> float:
        """Most that a parameter may be pruned at a stage.

        Args:
            sparsity: of the stage, in [0, 1].

        Returns:
            A fraction in [0, 1].

        Raises:
            ValueError: a number outside [0, 1].
        """
        check_sparsity(sparsity, "sparsity")
        return self.max_param_sparsity


@dataclass(frozen=True)
class Following:
    """A cap that follows the sparsity: `sparsity + spread * (1 - sparsity)` at each stage.

    Of n values the `int(sparsity * n)` smallest go, among those that are the `int(cap * numel)`
    smallest of their parameter; of equal values the first ones go. So the asked sparsity is
    reached, up to one value a parameter where caps are rounded down, and no parameter is much
    sparser than another. One threshold alone prunes whole layers whose saliencies are small at
    initialisation and leaves others dense; under a fixed cap those layers come back all at once.

    Args:
        spread: a fraction in [0, 1]. 0: every parameter is equally sparse. 1: one threshold
            decides, whatever it does to a parameter.

    Raises:
        ValueError: a number outside [0, 1].

    Source: this project's; bench/LOG.md has the comparison with a fixed cap.
    """

    spread: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "spread", check_sparsity(self.spread, "spread"))

    def of(self, sparsity: float) -> float:
        """Most that a parameter may be pruned at a stage.

        Args:
            sparsity: of the stage, in [0, 1].

        Returns:
            A fraction in [0, 1].

        Raises:
            ValueError: a number outside [0, 1].
        """
        sparsity = check_sparsity(sparsity, "sparsity")
        return sparsity + self.spread * (1 - sparsity)


Cap = Fixed | Following


@dataclass(frozen=True)
class MaskStages:
    """The masks of every stage.

    Attributes:
        masks: bool masks by sparsity and name, the highest sparsity first.
        counts: how many entries of each mask are True, known to the host.
    """

    masks: dict[float, dict[str, Tensor]]
    counts: dict[float, dict[str, int]]

    @classmethod
    def count(cls, masks: dict[float, dict[str, Tensor]]) -> MaskStages:
        """Of masks that are there already."""
        return cls(masks, {s: {n: int(m.sum()) for n, m in st.items()} for s, st in masks.items()})


def masks(
    saliency: dict[str, Tensor],
    sparsity: float,
    max_param_sparsity: float = 1.0,
    block_size: int | None = None,
) -> dict[str, Tensor]:
    """The masks of one sparsity, under a fixed cap: see `Fixed`.

    Args:
        saliency: values >= 0 by parameter name, any shapes.
        sparsity: fraction to prune, in [0, 1]; 0 keeps everything.
        max_param_sparsity: the cap, in [0, 1].
        block_size: None for one decision a weight. Otherwise one a block, scored by the sum over
            its weights, for the eligible entries only: `[N, K]` and `[N, C, taps]` whose first two
            dimensions divide by it.

    Returns:
        True where active. Element masks have the saliency's shape; block masks are `[N/b, K/b]`,
        for `[N, C, taps]` `[N/b, taps, C/b]`.

    Raises:
        ValueError: a fraction outside [0, 1], saliencies that are NaN, infinite or negative, a
            block size that divides no entry.

    Source: arXiv 2211.07283.
    """
    sparsity, cap = check_sparsity(sparsity, "sparsity"), Fixed(max_param_sparsity)
    check_saliency(saliency)
    scores = saliency if block_size is None else pool_blocks(saliency, block_size)
    # One stage has nothing to nest in, so this is the authors' mask to the bit.
    return nested_masks(scores, [sparsity], cap).masks[sparsity]


@torch.no_grad()
def nested_masks(
    scores: dict[str, Tensor], sparsities: Sequence[float], cap: Cap, nested: bool = True
) -> MaskStages:
    """The masks of every sparsity: what is active at one is active at all lower ones.

    Args:
        scores: saliencies >= 0 by name, of blocks or of single weights.
        sparsities: fractions in [0, 1], at least one, in any order.
        cap: what no parameter is made sparser than.
        nested: False leaves the random choice of `Fixed` as it is, which alone may not nest: the
            authors' masks.

    Returns:
        The same bits on every device. On a GPU that the extension was not built for, the CPU makes
        them.

    Raises:
        ValueError: no sparsity, or one outside [0, 1]; scores that are missing, NaN, infinite,
            negative, on several devices, or 2^31 and more.
    """
    stages = _checked_stages(sparsities)
    check_present(scores)
    n = sum(s.numel() for s in scores.values())
    # Ranks of values are counted in 32 bits on a GPU; a model that is larger would wrap around.
    if n > extension.MOST_VALUES:
        raise ValueError(f"saliency: expected fewer than 2^31 values, got {n:,}")
    # In half precision many saliencies are equal and in double none of the extension's sorting
    # applies; torch orders both as it orders them everywhere.
    if any(s.dtype != torch.float32 for s in scores.values()):
        return nested_masks_reference(scores, stages, cap, nested)
    device = next(iter(scores.values())).device
    home = extension.home(device)
    # One long row, because the threshold is over all parameters together.
    flat = [s.detach().reshape(-1) for s in scores.values()]
    values = (flat[0].contiguous() if len(flat) == 1 else torch.cat(flat)).to(home)
    sizes = [f.numel() for f in flat]
    rows, counts, suspects = _run(values, sizes, stages, cap, nested)
    if suspects:  # or just -0
        check_saliency(scores)
    found: dict[float, dict[str, Tensor]] = {}
    for sparsity, row in zip(stages, rows.to(device), strict=True):
        pairs = zip(scores.items(), row.split(sizes), strict=True)
        found[sparsity] = {name: mask.view(s.shape) for (name, s), mask in pairs}
    # The host learns the counts here, once for all stages: a change of sparsity then sizes its
    # index arrays without waiting for the device.
    named = [dict(zip(scores, row, strict=True)) for row in counts.tolist()]
    return MaskStages(found, dict(zip(stages, named, strict=True)))


def _run(
    values: Tensor, sizes: list[int], stages: list[float], cap: Cap, nested: bool
) -> tuple[Tensor, Tensor, int]:
    """Masks `[stages, n]` and their counts `[stages, layers]` by the extension, and how many values
    look wrong. On a GPU it waits once, for the counts.
    """
    device, n = values.device, values.numel()
    masks = torch.empty((len(stages), n), dtype=torch.bool, device=device)
    # The last row is for what looks wrong.
    counts = torch.zeros((len(stages) + 1, len(sizes)), dtype=torch.int64, device=device)
    offsets = torch.tensor([0, *sizes]).cumsum(0).to(device)
    scores = (values.data_ptr(), offsets.data_ptr(), len(sizes))
    if isinstance(cap, Fixed):
        name, share = "fixed_masks", cap.max_param_sparsity
        pruned = torch.tensor([int(s * n) for s in stages]).to(device)
        wanted = (pruned.data_ptr(), len(stages), share, nested)
    else:
        name = "following_masks"
        pruned = torch.tensor([_part(s, n) for s in stages]).to(device)
        most = torch.tensor([[_part(cap.of(s), size) for size in sizes] for s in stages]).to(device)
        wanted = (pruned.data_ptr(), most.data_ptr(), len(stages))
    if not extension.uses_cuda(device):
        found = (masks.data_ptr(), counts.data_ptr())
        suspects = extension.call(name, device, scores, wanted, *found)
        assert isinstance(suspects, int)
        return masks, counts[:-1], suspects
    more: tuple[int, ...] = ()
    if isinstance(cap, Fixed):
        # Products of fractions are rounded in Python's doubles for both devices, so that a GPU
        # cannot round one value differently and move a threshold.
        own = torch.tensor([_own_threshold(share, size) for size in sizes]).to(device)
        choices = _fixed_choices(sizes, share).to(device)
        more = (own.data_ptr(), choices.data_ptr())
        size = _C.fixed_workspace(len(stages), len(sizes))
    else:
        size = _C.following_workspace(len(sizes))
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    found = (masks.data_ptr(), counts.data_ptr(), counts[-1].data_ptr(), workspace.data_ptr())
    extension.call(name, device, scores, n, max(sizes), wanted, *more, *found)
    on_host = counts.cpu()
    return masks, on_host[:-1], int(on_host[-1, 0])


def _fixed_choices(sizes: list[int], cap: float) -> Tensor:
    """`fixed_choice` for every parameter, one after the other; empty where the cap is 1."""
    if cap == 1:
        return torch.empty(0, dtype=torch.bool)
    # The shuffle starts from seed 0 each time, so layers of one size share one choice.
    by_size = {n: fixed_choice(n, int(cap * n)) for n in set(sizes)}
    return torch.cat([by_size[n] for n in sizes])


def fixed_choice(n: int, pruned: int) -> Tensor:
    """`[False] * pruned + [True] * (n - pruned)` after `random.Random(0).shuffle`, bool `[n]`."""
    keep = torch.empty(n, dtype=torch.bool)
    _C.fixed_choice(n, pruned, keep.data_ptr())
    return keep


@torch.no_grad()
def nested_masks_reference(
    scores: dict[str, Tensor], sparsities: Sequence[float], cap: Cap, nested: bool = True
) -> MaskStages:
    """`nested_masks` in plain torch."""
    check_saliency(scores)
    stages = _checked_stages(sparsities)
    if isinstance(cap, Following):
        return _following_reference(scores, stages, cap)
    result: dict[float, dict[str, Tensor]] = {}
    before: dict[str, Tensor] | None = None
    flat = torch.cat([s.reshape(-1) for s in scores.values()])
    for sparsity in stages:
        k = int(sparsity * flat.numel())
        # With k = 0 nothing goes. kthvalue counts from 1, and the smallest value would go with it.
        threshold = flat.kthvalue(k).values if k else None
        result[sparsity] = {}
        for name, s in scores.items():
            mask = torch.ones_like(s, dtype=torch.bool)
            if threshold is not None:
                mask = _capped(s, s > threshold, cap.max_param_sparsity)
            result[sparsity][name] = mask | before[name] if nested and before else mask
        before = result[sparsity]
    return MaskStages.count(result)


def _capped(scores: Tensor, mask: Tensor, cap: float) -> Tensor:
    """`mask`, or the cap's own mask where it is sparser than that."""
    numel = mask.numel()
    if numel == 0 or 1 - int(mask.sum()) / numel <= cap:
        return mask
    mask = scores > scores.reshape(-1).kthvalue(_own_threshold(cap, numel)).values
    if bool(mask.any()):
        return mask
    # No value is above its own threshold (all equal, or so few that the k-th is the largest): any
    # choice is as good, and Python's generator with seed 0 is the one that the authors' masks were
    # made with.
    pruned = int(cap * numel)
    keep = [False] * pruned + [True] * (numel - pruned)
    random.Random(0).shuffle(keep)
    return torch.tensor(keep, device=scores.device).reshape(scores.shape)


def _own_threshold(cap: float, numel: int) -> int:
    """Which of a parameter's values is its own threshold; the product may round up to numel."""
    return min(numel, 1 + int(cap * numel))


def _following_reference(
    scores: dict[str, Tensor], stages: list[float], cap: Following
) -> MaskStages:
    # Stable, so that of equal values the first ones go, on every device alike.
    ordered = {name: s.detach().reshape(-1).sort(stable=True) for name, s in scores.items()}
    result: dict[float, dict[str, Tensor]] = {}
    pruned = {name: s.numel() for name, s in scores.items()}
    total = sum(pruned.values())
    for sparsity in stages:
        # What has stayed once, stays: rounding must not prune it again.
        most = {
            name: min(_part(cap.of(sparsity), s.numel()), pruned[name])
            for name, s in scores.items()
        }
        candidates = {name: ordered[name].values[:count] for name, count in most.items()}
        pruned = _share(candidates, _part(sparsity, total))
        result[sparsity] = {}
        for name, s in scores.items():
            mask = torch.ones(s.numel(), dtype=torch.bool, device=s.device)
            mask[ordered[name].indices[: pruned[name]]] = False
            result[sparsity][name] = mask.view(s.shape)
    return MaskStages.count(result)


def _part(share: float, n: int) -> int:
    """`share * n` rounded down, where 0.29 * 100 is 29."""
    return int(share * n + 1e-9)


def _share(candidates: dict[str, Tensor], wanted: int) -> dict[str, int]:
    """How many of each parameter's candidates, in ascending order, are among the `wanted` smallest
    of all.
    """
    values = torch.cat(list(candidates.values()))
    if wanted >= values.numel():
        return {name: c.numel() for name, c in candidates.items()}
    if wanted == 0:
        return dict.fromkeys(candidates, 0)
    threshold = values.kthvalue(wanted).values
    pruned = {name: int((c < threshold).sum()) for name, c in candidates.items()}
    # What equals the threshold is shared out in the order of the parameters until the number is
    # right: taking all of it, or none, could miss the asked sparsity by a whole layer.
    left = wanted - sum(pruned.values())
    for name, c in candidates.items():
        equal = min(left, int((c == threshold).sum()))
        pruned[name] += equal
        left -= equal
    return pruned


def _checked_stages(sparsities: Sequence[float]) -> list[float]:
    """Each sparsity once, the highest first."""
    if len(sparsities) == 0:
        raise ValueError("sparsities: expected at least one, got none")
    return sorted({check_sparsity(s, "sparsity") for s in sparsities}, reverse=True)
