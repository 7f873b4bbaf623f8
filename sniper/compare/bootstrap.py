# SPDX-License-Identifier: Apache-2.0
"""Means over seeds, and paired differences with a bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REPLICATES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """What a table says of one arm.

    Args:
        mean, sd: of the seeds' means; sd is the sample's, NaN with one seed.
        difference, low, high: mean paired difference to the reference and its 95 % interval; NaN
            for the reference itself.
        seeds: that the arm has; `pairs`: that the reference has too.
    """

    mean: float
    sd: float
    seeds: int
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    pairs: int = 0


def summarize(
    values: dict[int, np.ndarray], reference: dict[int, np.ndarray] | None = None
) -> Summary:
    """Mean and spread of an arm, and its paired difference to the reference.

    The pairs are (seed, sentence). The interval is the bootstrap's percentile interval; seeds and
    sentences are drawn anew, with replacement and independently of each other, so that it covers
    both other seeds and other sentences. With one seed it covers sentences only.

    Args:
        values: by seed, one number a sentence `[U]`; NaN where a sentence has none.
        reference: the same of the reference arm, same sentences; None for itself.
    """
    means = np.array([_mean(v) for v in values.values()])
    # A seed that has no value (a run that is not measured) must not turn the mean of the others to
    # NaN.
    means = means[~np.isnan(means)]
    mean = float(means.mean()) if len(means) else float("nan")
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    common = [seed for seed in values if reference is not None and seed in reference]
    if reference is None or not common:
        return Summary(mean, sd, len(means))
    pairs = np.stack([np.subtract(values[s], reference[s], dtype=np.float64) for s in common])
    low, high = interval(pairs)
    return Summary(mean, sd, len(means), _mean(pairs), low, high, len(common))


def interval(pairs: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `[S, U]` under drawing rows and columns anew.

    NaN entries are left out; NaN if nothing else is there.
    """
    S, U = pairs.shape
    # Seeded, so that the same runs give the same report.
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(S, np.full(S, 1 / S), REPLICATES).astype(np.float64)  # [R, S]
    columns = rng.multinomial(U, np.full(U, 1 / U), REPLICATES).astype(np.float64)  # [R, U]
    there = ~np.isnan(pairs)
    # How often each row and column was drawn is its weight, so all replicates are one product and
    # no index arrays of [R, S, U] are made.
    total = np.einsum("rs,su,ru->r", rows, np.where(there, pairs, 0.0), columns, optimize=True)
    count = np.einsum("rs,su,ru->r", rows, there.astype(np.float64), columns, optimize=True)
    drawn = total[count > 0] / count[count > 0]
    if len(drawn) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=np.float64)
    good = values[~np.isnan(values)]
    return float(good.mean()) if len(good) else float("nan")
