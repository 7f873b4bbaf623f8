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

from sniper.compare import bootstrap

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


def setbacks(history: Sequence[Row]) -> list[dict[str, Any]]:
    """How far each change of the sparsity throws the validation loss back, and for how long.

    Losses are those at the ends of epochs and, with `train.valid_every`, within them.

    Returns:
        A row a change: the `epoch` that begins with it (from 0), the sparsity `before` it and
        `after` it; `percent` by which the highest loss of that epoch is above the loss before it, 0
        where none is; `epochs` until the loss is back, 0 where it was never above; None: not by the
        end of the run.
    """
    result = []
    for number in range(1, len(history)):
        sparsity, before = (history[i]["sparsity"] for i in (number, number - 1))
        if sparsity != before:
            found = setback(history, number)
            result.append({"epoch": number, "before": before, "after": sparsity, **found})
    return result


def finest(histories: Sequence[Sequence[Row]]) -> list[Sequence[Row]]:
    """Those that were validated within epochs too, if any was: at the ends of epochs alone most of
    a setback is over.
    """
    fine = [history for history in histories if any(row.get("within") for row in history)]
    return fine or list(histories)


def setback(history: Sequence[Row], number: int) -> dict[str, Any]:
    """`percent` and `epochs`, as `setbacks` has them, of an epoch whether it changes anything or
    not: what the loss does by itself is what a change has to be held against.
    """
    level = float(losses(history)[number - 1])
    points = _points(history, number)
    highest = max(loss for at, loss in points if at <= 1)
    percent = max(0.0, 100 * (highest / level - 1))
    if not percent:
        return {"percent": 0.0, "epochs": 0.0}
    risen = next(at for at, loss in points if loss > level)
    back = next((at for at, loss in points if at > risen and loss <= level), None)
    return {"percent": percent, "epochs": back}


def _points(history: Sequence[Row], first: int) -> list[tuple[float, float]]:
    """Epochs since the beginning of epoch `first`, and the validation loss then."""
    points = []
    for number in range(first, len(history)):
        row, begun = history[number], history[number - 1].get("update", 0)
        # Rows of earlier versions do not say which updates are theirs, and hold none within.
        updates = max(row.get("update", 0) - begun, 1)
        for update, loss in row.get("within", ()):
            points.append((number - first + (update - begun) / updates, loss))
        points.append((number - first + 1.0, row["valid"]["total"]))
    return points


def sooner(pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> dict[str, float | None]:
    """How many times sooner an arm reaches the loss that the reference ends with.

    Of the mean curves of the seeds, which scatter less than single ones: the reference's whole
    training seconds over the arm's until its mean loss is down to the reference's mean last one,
    interpolated between ends of epochs. The interval is the bootstrap's percentile interval over
    seeds, drawn in pairs; where a draw does not get there it counts as 0 times.

    Args:
        pairs: histories of the arm and of the reference, a pair a seed; of equal lengths.

    Returns:
        `speedup` (None: the mean does not get there), `low` and `high` (None: below two seeds; 0:
        not reached), `reached`: the share of draws that got there.
    """
    arm, reference = (_curve([pair[side] for pair in pairs]) for side in (0, 1))
    count = len(pairs)
    whole = _ratio(arm, reference, np.full(count, 1 / count))
    result: dict[str, float | None] = {"speedup": whole or None, "low": None, "high": None}
    if count < 2:
        return {**result, "reached": float(whole > 0)}
    draws = np.random.default_rng(0).multinomial(
        count, np.full(count, 1 / count), bootstrap.REPLICATES
    )
    ratios = np.array([_ratio(arm, reference, draw / count) for draw in draws])
    tail = (1 - bootstrap.LEVEL) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail]).tolist()
    return {**result, "low": low, "high": high, "reached": float((ratios > 0).mean())}


def _curve(histories: Sequence[Sequence[Row]]) -> tuple[np.ndarray, np.ndarray]:
    """Losses and seconds `[S, E]`."""
    both = [(losses(history), seconds(history)) for history in histories]
    epochs = min(len(one) for one, _ in both)
    return np.stack([one[:epochs] for one, _ in both]), np.stack([t[:epochs] for _, t in both])


def _ratio(
    arm: tuple[np.ndarray, np.ndarray],
    reference: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
) -> float:
    """Seconds of the reference over those of the arm, of curves averaged by `weights`; 0: never."""
    loss, clock = (weights @ values for values in arm)
    goal, whole = (float((weights @ values)[-1]) for values in reference)
    below = np.flatnonzero(loss <= goal)
    if not len(below):
        return 0.0
    at = int(below[0])
    then = float(clock[at])
    if at:
        share = (loss[at - 1] - goal) / (loss[at - 1] - loss[at])
        then = float(clock[at - 1] + share * (clock[at] - clock[at - 1]))
    return whole / then
