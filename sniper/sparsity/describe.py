# SPDX-License-Identifier: Apache-2.0
"""What a `Sniper` says of itself."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from sniper.sparsity.masking import Cap, Fixed
from sniper.sparsity.schedule import SparsitySchedule


class Described(Protocol):
    """As much of a `Sniper` as is told here."""

    model: nn.Module
    schedule: SparsitySchedule
    block_size: int | None
    cap: Cap
    sparsity: float | None
    mask_block_size: int | None
    detached: bool

    @property
    def scored(self) -> bool: ...
    @property
    def reached(self) -> float: ...
    def densities(self) -> dict[str, float]: ...
    def masked_parameters(self) -> dict[str, nn.Parameter]: ...
    def left_out(self) -> dict[str, str]: ...
    def lr_scales(self) -> dict[str, float]: ...
    def masks(self) -> dict[str, Tensor]: ...


def one_line(snip: Described) -> str:
    """What `repr` shows."""
    return (
        f"Sniper({type(snip.model).__name__}, {snip.schedule}, block_size={snip.block_size}, "
        f"cap={snip.cap}, {stage(snip)})"
    )


def summary(snip: Described) -> str:
    """A headline, the schedule, a row for each masked parameter, and what is left dense."""
    densities, factors = snip.densities(), snip.lr_scales()
    sizes = {name: p.shape for name, p in snip.masked_parameters().items()}
    masked = sum(shape.numel() for shape in sizes.values())
    total = sum(p.numel() for p in snip.model.parameters())
    rows = [("parameter", "shape", "density", "learning rate")]
    for name, density in densities.items():
        # A scalar parameter has no dimensions.
        shape = "x".join(map(str, sizes[name])) or "1"
        rows.append((name, shape, f"{density:.3f}", f"x {factors[name]:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"SNIPER on {type(snip.model).__name__}, {_unit(snip.block_size)}: {stage(snip)}",
        f"schedule: {snip.schedule}",
        f"masked: {masked:,} of {total:,} parameters, in {len(sizes)} tensors",
        *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
    ]
    unmoved = _still_zero(snip)
    if unmoved:
        active = sum(round(d * sizes[name].numel()) for name, d in densities.items())
        lines.insert(3, f"still 0: {unmoved:,} of {active:,} active weights")
    left_out = snip.left_out()
    if left_out:
        width = max(map(len, left_out))
        lines.append("left dense:")
        lines += [f"{name:{width}}  {reason}".strip() for name, reason in left_out.items()]
    return "\n".join(lines)


def _still_zero(snip: Described) -> int:
    """How many active weights are exactly 0, as those are that came back and had no gradient."""
    densities, found = snip.densities(), 0
    for name, p in snip.masked_parameters().items():
        pruned = p.numel() - round(densities[name] * p.numel())
        # With `paper_exact` an update may have moved pruned ones.
        found += max(int((p.detach() == 0).sum()) - pruned, 0)
    return found


def stage(snip: Described) -> str:
    """Where in the schedule it is, with the sparsity that was asked for and the one reached."""
    if snip.detached:
        return "detached"
    if snip.sparsity is None:
        return "scored, no step yet" if snip.scored else "not scored yet"
    stages = snip.schedule.sparsities
    # A state that was saved under another schedule may be between two of this one's.
    number = stages.index(snip.sparsity) + 1 if snip.sparsity in stages else "?"
    asked, reached = f"{snip.sparsity:.1%} asked", f"{snip.reached:.1%} reached"
    return f"stage {number} of {len(stages)}, sparsity {asked}, {reached}"


def why_not_reached(snip: Described) -> str:
    """Why the sparsity is not what the schedule asks for, and what to do."""
    # Sparser than asked happens in one way only, by ties at the threshold.
    if snip.reached > (snip.sparsity or 0):
        return (
            "many saliencies are equal (0 where no scoring batch uses a weight) and fall together: "
            "score on more batches, or use cap=Following(0.1)"
        )
    if snip.block_size is not None and snip.block_size > (snip.mask_block_size or 1):
        return (
            f"the masks were chosen for {_unit(snip.mask_block_size)}, and one of "
            f"{snip.block_size} is active where any of those is: use that block_size"
        )
    if isinstance(snip.cap, Fixed) and snip.cap.max_param_sparsity < 1:
        return (
            f"no parameter may be sparser than the cap, {snip.cap}, and what that keeps is not "
            "pruned elsewhere: use cap=Following(0.1), which reaches what is asked for"
        )
    if snip.block_size != snip.mask_block_size:
        return (
            f"the masks were chosen for {_unit(snip.mask_block_size)} and stay as they were: only "
            "a run that scores with this block_size has finer ones"
        )
    count, unit = sum(mask.numel() for mask in snip.masks().values()), _unit(snip.block_size)
    return (
        f"there are only {count} {unit} to prune, and numbers are rounded down in each parameter"
        # Nothing is smaller than a single weight.
        + ("" if snip.block_size is None else ": use a smaller block_size")
    )


def _unit(block_size: int | None) -> str:
    return "single weights" if block_size is None else f"blocks of {block_size}"
