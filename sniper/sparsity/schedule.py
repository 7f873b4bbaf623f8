# SPDX-License-Identifier: Apache-2.0
"""How sparse the model is at each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number of any library's, NaN among them; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_sparsity(value: object, where: str) -> float:
    """`value` as a float in [0, 1], or a ValueError that says what was expected."""
    if not is_number(value) or math.isnan(value):
        raise ValueError(f"{where}: expected a fraction in [0, 1], got {value!r}")
    if value > 1:
        # Percent is how people say it, so that is the mistake to expect.
        hint = f": write {value / 100:g} for {value:g} %" if value <= 100 else ""
        raise ValueError(f"{where}: expected a fraction in [0, 1], got {value:g}{hint}")
    if value < 0:
        raise ValueError(f"{where}: expected a fraction in [0, 1], got {value:g}")
    return float(value)


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity by epoch: the last entry at or before an epoch counts, and sparsity never rises.

    Args:
        steps: `{epoch: sparsity}` with epoch 0 in it; sparsities are fractions in [0, 1].

    Raises:
        ValueError: no epoch 0, an epoch that is no whole number >= 0, a sparsity outside [0, 1], or
            one that rises.

    Source: arXiv 2211.07283, section 3 ("SNIPER training").
    """

    steps: Mapping[int, float]

    def __post_init__(self) -> None:
        # A schedule of a schedule is the same schedule: configs hand both around.
        steps = self.steps.steps if isinstance(self.steps, SparsitySchedule) else self.steps
        if not isinstance(steps, Mapping) or not steps:
            raise ValueError(f"schedule: expected a mapping {{epoch: sparsity}}, got {steps!r}")
        checked = {}
        for epoch, sparsity in steps.items():
            # YAML and JSON may bring 5.0 for 5, and NaN passes every comparison but this one.
            whole = is_number(epoch) and math.isfinite(epoch) and epoch == int(epoch)
            if not whole or epoch < 0:
                hint = "; for fractions of training use SparsitySchedule.from_fractions"
                raise ValueError(f"schedule: expected whole epochs >= 0, got {epoch!r}{hint}")
            checked[int(epoch)] = check_sparsity(sparsity, f"schedule, epoch {int(epoch)}")
        if 0 not in checked:
            raise ValueError(
                f"schedule: expected an entry for epoch 0, got epochs {sorted(checked)}"
            )
        ordered = dict(sorted(checked.items()))
        pairs = list(ordered.items())
        for (before, high), (after, low) in zip(pairs, pairs[1:], strict=False):
            if low > high:
                raise ValueError(
                    f"schedule: sparsity must not rise, "
                    f"got {high:g} at epoch {before} and {low:g} at epoch {after}, "
                    f"expected {high:g} or less there"
                )
        object.__setattr__(self, "steps", ordered)

    @classmethod
    def from_fractions(cls, steps: Mapping[float, float], epochs: int) -> SparsitySchedule:
        """A schedule given by fractions of training, for a run of `epochs` epochs.

        Args:
            steps: `{fraction of training in [0, 1): sparsity}`, with 0 in it.
            epochs: length of the run. An entry takes effect at epoch `round(fraction * epochs)`;
                where two fall on the same epoch the later one counts.

        Returns:
            The same by whole epochs.

        Raises:
            ValueError: a fraction outside [0, 1), fewer than one epoch, or what the constructor
                refuses.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs: expected a whole number >= 1, got {epochs!r}")
        if not isinstance(steps, Mapping):
            raise ValueError(f"schedule: expected a mapping {{fraction: sparsity}}, got {steps!r}")
        for fraction in steps:
            if not is_number(fraction) or not 0 <= fraction < 1:
                raise ValueError(
                    f"schedule: expected fractions of training in [0, 1), got {fraction!r}"
                )
        # In ascending order: where a short run rounds two entries to one epoch, the later one wins.
        by_epoch = {round(f * epochs): sparsity for f, sparsity in sorted(steps.items())}
        return cls(by_epoch)

    def sparsity_at(self, epoch: float) -> float:
        """The sparsity during `epoch`.

        Args:
            epoch: counted from 0; a fraction is in the middle of an epoch.

        Returns:
            A fraction in [0, 1].

        Raises:
            ValueError: no finite number >= 0.
        """
        if not is_number(epoch) or not math.isfinite(epoch) or epoch < 0:
            raise ValueError(f"epoch: expected a finite number >= 0, got {epoch!r}")
        return next(s for e, s in reversed(list(self.steps.items())) if e <= epoch)

    def changes_at(self, epoch: int) -> bool:
        """Whether `epoch` starts with another sparsity than the one before it.

        Args:
            epoch: counted from 0.

        Returns:
            True for epoch 0.

        Raises:
            ValueError: no finite number >= 0.
        """
        return epoch == 0 or self.sparsity_at(epoch) != self.sparsity_at(max(epoch - 1, 0))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The distinct sparsities, highest first."""
        return tuple(sorted(set(self.steps.values()), reverse=True))

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(self.steps.items())

    def __hash__(self) -> int:
        return hash(tuple(self.steps.items()))

    def __str__(self) -> str:
        return " -> ".join(f"{sparsity:.0%} from epoch {epoch}" for epoch, sparsity in self)
