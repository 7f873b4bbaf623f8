# SPDX-License-Identifier: Apache-2.0
"""Frames per second that may be compared: steady ones, measured side by side.

A busy machine makes any figure up: the same arm has run at 710 and at 2,271 frames/s. So a rate is
told with its spread over epochs and seeds, a ratio that rests on unsteady rates is withheld, and
one whose two sides did not run at the same time is marked. Everything here is found from what
results.json says of the runs, also in files of earlier versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 0.15  # a spread above this says that something else was running
FEWEST = 3  # epochs, below which there is no telling
OVERLAP = 0.5  # of the shorter run, from which two runs count as side by side


@dataclass(frozen=True)
class Rate:
    """Frames per second over the epochs of all seeds that have the same sparsity.

    Args:
        p20, p50, p80: percentiles over epochs.
        mean: all frames over all seconds.
        epochs: how many there are, seeds together.
    """

    p20: float
    p50: float
    p80: float
    mean: float
    epochs: int

    @property
    def spread(self) -> float | None:
        """(p80 - p20) / p50, or how far the mean lies from p50 where that is more; None: too few
        epochs. A machine that was busy in one epoch of ten shows in the mean alone.
        """
        if self.epochs < FEWEST:
            return None
        return max(self.p80 - self.p20, abs(self.mean - self.p50)) / self.p50


@dataclass(frozen=True)
class Judgement:
    """What an arm's figures of time are worth against the reference's.

    Args:
        spread: the largest of a stage, of the arm or of the reference; None: too few epochs.
        side_by_side: whether every seed ran while the reference's did; None: it was not recorded.
    """

    spread: float | None
    side_by_side: bool | None

    @property
    def steady(self) -> bool:
        """Whether a ratio may be told."""
        return self.spread is not None and self.spread <= LIMIT


def stage_rates(arm: dict[str, Any]) -> list[Rate]:
    """The rates of an arm's stages, in the order of `arm["stages"]`.

    Args:
        arm: as `results.collect` gives it.
    """
    runs = [run for run in arm["runs"] if run["status"] == "trained"]
    result = []
    for stage in arm["stages"]:
        epochs = slice(stage["first"], stage["first"] + stage["epochs"])
        by_run = [np.array(run["frames_per_second"][epochs], dtype=float) for run in runs]
        # Files hold seconds from the start of training; an epoch's own are the differences.
        seconds = [np.diff(run["seconds"], prepend=0.0)[epochs] for run in runs]
        result.append(_rate(np.concatenate(by_run), np.concatenate(seconds)))
    return result


def _rate(rates: np.ndarray, seconds: np.ndarray) -> Rate:
    p20, p50, p80 = np.percentile(rates, [20, 50, 80]).tolist()
    mean = float((rates * seconds).sum() / max(seconds.sum(), 1e-9))
    return Rate(p20, p50, p80, mean, len(rates))


def judge(arm: dict[str, Any], reference: dict[str, Any]) -> Judgement:
    """Whether the arm's times may be held against the reference's.

    Args:
        arm, reference: as `results.collect` gives them.
    """
    found = [rate.spread for rate in (*stage_rates(arm), *stage_rates(reference))]
    spreads = [spread for spread in found if spread is not None]
    return Judgement(max(spreads, default=None), _side_by_side(arm, reference))


def _side_by_side(arm: dict[str, Any], reference: dict[str, Any]) -> bool | None:
    if arm["name"] == reference["name"]:
        return True
    theirs = {run["seed"]: run for run in reference["runs"] if run["status"] == "trained"}
    pairs = [
        (run.get("spans") or [], theirs[run["seed"]].get("spans") or [])
        for run in arm["runs"]
        if run["status"] == "trained" and run["seed"] in theirs
    ]
    # Results of earlier versions do not say when they ran: unknown is neither yes nor no.
    if not pairs or not all(one and other for one, other in pairs):
        return None
    return all(overlap(one, other) >= OVERLAP for one, other in pairs)


def overlap(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Share of the shorter of two runs during which both ran.

    Args:
        one, other: beginnings and ends of each run's sessions, in seconds.
    """
    common = sum(max(0.0, min(b, d) - max(a, c)) for a, b in one for c, d in other)
    # Shares of the shorter run's time: a sparse run that ends early ran beside the dense one for
    # all of its time.
    shorter = min(sum(b - a for a, b in spans) for spans in (one, other))
    return common / max(shorter, 1e-9)
