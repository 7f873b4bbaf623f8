# SPDX-License-Identifier: Apache-2.0
"""Loss against seconds: what an arm's history says about wall-clock time.

A history is the list of rows that `sniper.training.trainer.Trainer.run_epoch` returns. `seconds`
there are of training only; a curve adds them up. Losses are validation losses at the ends of
epochs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
FRACTIONS = (0.5, 0.75, 0.9, 1.0)  # of the reference's training
EARLY = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Reached:
    """When an arm first reaches what the reference had after a fraction of its training.

    Args:
        fraction: of the reference's epochs.
        loss: lowest validation loss that the reference had by then.
        reference_seconds: at the end of the epoch in which it first had it.
        seconds: the arm's, at the end of the epoch in which it first has it; None: not reached.
        extra_seconds: scoring and changes of the sparsity up to there, not in `seconds`.
    """

    fraction: float
    loss: float
    reference_seconds: float
    seconds: float | None
    extra_seconds: float = 0.0

    @property
    def speedup(self) -> float | None:
        """Seconds of the reference over those of the arm."""
        return None if self.seconds is None else self.reference_seconds / self.seconds

    @property
    def speedup_with_extra(self) -> float | None:
        """The same with scoring and changes of the sparsity counted in."""
        if self.seconds is None:
            return None
        return self.reference_seconds / (self.seconds + self.extra_seconds)


def seconds(history: Sequence[Row]) -> np.ndarray:
    """Training seconds at the end of each epoch, `[E]`."""
    return np.cumsum([row["seconds"] for row in history])


def losses(history: Sequence[Row], term: str = "total") -> np.ndarray:
    """Validation loss at the end of each epoch, `[E]`."""
    return np.array([row["valid"][term] for row in history])


def time_to_loss(
    history: Sequence[Row], reference: Sequence[Row], score_seconds: float = 0.0
) -> list[Reached]:
    """Seconds until the arm first reaches the reference's loss at 50, 75, 90 and 100 %.

    Nothing is interpolated: a loss is known at ends of epochs only, so an arm's time is rounded up
    to a whole epoch, and the reference's is exact.
    """
    reference_losses, reference_clock = losses(reference), seconds(reference)
    arm_losses, arm_clock = losses(history), seconds(history)
    # Rows of earlier versions lack this value.
    extra = score_seconds + np.cumsum([row.get("change_seconds") or 0.0 for row in history])
    result = []
    for fraction in FRACTIONS:
        last = max(1, round(fraction * len(reference_losses)))
        # The lowest, not the last: a reference that was overtrained would be easy to beat at its
        # end.
        first = int(np.argmin(reference_losses[:last]))
        below = np.flatnonzero(arm_losses <= reference_losses[first])
        at = int(below[0]) if len(below) else None
        result.append(
            Reached(
                fraction,
                float(reference_losses[first]),
                float(reference_clock[first]),
                None if at is None else float(arm_clock[at]),
                0.0 if at is None else float(extra[at]),
            )
        )
    return result


def early_losses(history: Sequence[Row], reference: Sequence[Row]) -> list[dict[str, float | None]]:
    """Losses after the same epochs, and after the same seconds, as a fraction of the reference's.

    Returns:
        For 10, 25 and 50 %: `fraction`; `by_epoch`: arm minus reference after that share of epochs;
        `by_seconds`: the same after that share of the reference's training seconds, interpolated
        between epochs; None where the arm's run is too short, or not yet at its first epoch's end.
    """
    reference_losses, reference_clock = losses(reference), seconds(reference)
    arm_losses, arm_clock = losses(history), seconds(history)
    result: list[dict[str, float | None]] = []
    for fraction in EARLY:
        epoch = max(1, round(fraction * len(reference_losses))) - 1
        then = reference_clock[epoch]
        by_epoch = arm_losses[epoch] - reference_losses[epoch] if epoch < len(arm_losses) else None
        # np.interp would hold the ends on to infinity, and invent a loss there.
        inside = arm_clock[0] <= then <= arm_clock[-1]
        arm_loss = np.interp(then, arm_clock, arm_losses) if inside else None
        by_seconds = None if arm_loss is None else arm_loss - reference_losses[epoch]
        found = {"by_epoch": by_epoch, "by_seconds": by_seconds}
        floats = {k: None if v is None else float(v) for k, v in found.items()}
        result.append({"fraction": fraction, **floats})
    return result


def stages(history: Sequence[Row]) -> list[dict[str, float]]:
    """Each sparsity in turn: `sparsity`, `density`, `first` epoch (from 0), `epochs`, `seconds`,
    `frames_per_second`.
    """
    result = []
    for sparsity, group in itertools.groupby(history, key=lambda row: row["sparsity"]):
        rows = list(group)
        spent = sum(row["seconds"] for row in rows)
        result.append(
            {
                "sparsity": sparsity,
                "density": rows[0]["density"],
                "first": rows[0]["epoch"],
                "epochs": len(rows),
                "seconds": spent,
                "frames_per_second": sum(row["frames"] for row in rows) / max(spent, 1e-9),
            }
        )
    return result


def accounts(history: Sequence[Row], score_seconds: float) -> dict[str, float | None]:
    """Seconds of training, validation, scoring, changes of the sparsity, checkpoints.

    None where a run is from before these were counted apart.
    """

    def total(key: str) -> float | None:
        values = [row[key] for row in history if row.get(key) is not None]
        return float(sum(values)) if len(values) == len(history) else None

    return {
        "training": total("seconds"),
        "validation": total("valid_seconds"),
        "scoring": score_seconds,
        "changes": total("change_seconds"),
        "checkpoints": total("save_seconds"),
    }
