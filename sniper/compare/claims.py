# SPDX-License-Identifier: Apache-2.0
"""What somebody claims of an arm, held against what was measured.

A matrix lists them:

    claims:
      - {claim: ends better than dense, source: the paper, arm: sniper40, than: dense, by: loss}
      - {claim: less than 1 % worse, arm: sniper80, than: dense, by: mcd, below: 1}
      - {claim: dense's loss 1.5 times sooner, arm: sniper80, than: dense, by: time, above: 1.5}

`by` is `loss` or `mcd` (of the final checkpoint: percent of the other arm's), `early` (the mean
validation loss after a tenth and a quarter of the epochs: percent), `time` (times sooner to the
other's last loss) or `setback` (the largest at a change of the sparsity: percent). A claim holds
where the whole 95 % interval is on its side of the limit, it does not where the whole interval is
on the other; else, and with fewer than three seeds, the runs do not show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sniper.compare import bootstrap, timing

BY = ("loss", "mcd", "early", "time", "setback")
# What `above` and `below` are measured in.
UNITS = {"loss": "%", "mcd": "%", "early": "%", "time": "×", "setback": "%"}
FEWEST_SEEDS = 3  # below which nothing is shown
_EARLY = timing.EARLY[:2]


@dataclass(frozen=True)
class Claim:
    """One claim of a matrix.

    Args:
        claim: in words.
        arm: of which it is said.
        than: the arm that it is compared with.
        by: what is measured.
        limit: that the measured value stays on the right side of.
        above: whether that is above it.
        source: who says so.
    """

    claim: str
    arm: str
    than: str
    by: str
    limit: float
    above: bool
    source: str = ""


def read_claim(entry: Any, arms: Sequence[str]) -> Claim:
    """A claim as the file of a matrix has it.

    Raises:
        ValueError: a key or arm that is not known, or one that is missing.
    """
    known = ("claim", "arm", "than", "by", "above", "below", "source")
    if not isinstance(entry, dict) or not set(entry) <= set(known):
        raise ValueError(f"expected a mapping of {', '.join(known)}, got {entry!r:.120}")
    for key in ("claim", "arm", "than", "by"):
        if not isinstance(entry.get(key), str):
            raise ValueError(f"expected {key}, got {entry!r:.120}")
    for key in ("arm", "than"):
        if entry[key] not in arms:
            raise ValueError(f"{key}: expected one of {', '.join(arms)}, got {entry[key]!r}")
    by = entry["by"]
    if by not in BY:
        raise ValueError(f"by: expected one of {', '.join(BY)}, got {by!r}")
    above = "above" in entry
    if above and "below" in entry:
        raise ValueError(f"expected above or below, got both for {entry['claim']!r}")
    # Losses and distances are better where they are lower, times sooner where they are more.
    natural = {"time": ("above", 1.0)}.get(by, ("below", 0.0))
    limit = entry.get("above", entry.get("below", natural[1]))
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit):
        raise ValueError(f"expected a number as limit, got {limit!r}")
    if not above and "below" not in entry:
        above = natural[0] == "above"
    words = {key: entry[key] for key in ("claim", "arm", "than", "by")}
    return Claim(**words, limit=float(limit), above=above, source=str(entry.get("source", "")))


def judge(claim: Claim, found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The claim and what was measured.

    Args:
        found: runs by arm, as `results.read_run` gives them.

    Returns:
        The claim's words, `value`, `low`, `high` (None where there is nothing to tell them from),
        `seeds`, and `verdict`: `holds`, `does not hold`, `not shown` or `not measured`.
    """
    own, than = (_by_seed(found[name]) for name in (claim.arm, claim.than))
    common = sorted(set(own) & set(than))
    pairs = [(own[seed], than[seed]) for seed in common]
    if claim.by == "setback":
        fine = timing.finest([run["history"] for run, _ in pairs])
        pairs = [pair for pair in pairs if pair[0]["history"] in fine]
    measured = _MEASURES[claim.by](claim.by, pairs) if pairs else None
    value, low, high = (None, None, None) if measured is None else measured
    told = {key: getattr(claim, key) for key in ("claim", "source", "arm", "than", "by", "limit")}
    told |= {"above": claim.above, "value": value, "low": low, "high": high, "seeds": len(pairs)}
    verdict = _verdict(claim, value, low, high)
    # Of one seed the interval is over its sentences alone, and two make no interval over seeds.
    if verdict != "not measured" and len(pairs) < FEWEST_SEEDS:
        verdict = "not shown"
    return {**told, "verdict": verdict}


def _verdict(claim: Claim, value: float | None, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "not measured" if value is None else "not shown"
    # An interval on the right side of the limit, or on the wrong one.
    right, wrong = (low, high) if claim.above else (-high, -low)
    limit = claim.limit if claim.above else -claim.limit
    if right > limit:
        return "holds"
    return "does not hold" if wrong < limit else "not shown"


Measured = tuple[float | None, float | None, float | None]
Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def _by_seed(runs: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in runs if run["status"] == "trained"}


def _of_sentences(by: str, pairs: Pairs) -> Measured | None:
    """Percent of the other arm's, of the sentences of the final checkpoint."""
    if not all(run["evaluation"] for pair in pairs for run in pair):
        return None
    mine, theirs = (
        {pair[side]["seed"]: np.array(_final(pair[side])[by], dtype=float) for pair in pairs}
        for side in (0, 1)
    )
    level = bootstrap.summarize(theirs).mean / 100
    found = bootstrap.summarize(mine, theirs)
    return _finite(found.difference / level, found.low / level, found.high / level)


def _final(run: dict[str, Any]) -> dict[str, list[float]]:
    return run["evaluation"]["checkpoints"]["final"]["metrics"]


def _early(by: str, pairs: Pairs) -> Measured | None:
    def early(run: dict[str, Any], epochs: int) -> float:
        loss = timing.losses(run["history"])
        at = [max(1, round(share * epochs)) - 1 for share in _EARLY]
        return float(np.mean(loss[at]))

    shares = []
    for own, than in pairs:
        # Of the other arm's epochs: a longer run would otherwise look later.
        epochs = min(len(than["history"]), len(own["history"]))
        shares.append(100 * (early(own, epochs) / early(than, epochs) - 1))
    return _over_seeds(shares)


def _setback(by: str, pairs: Pairs) -> Measured | None:
    each = [timing.setbacks(own["history"]) for own, _ in pairs]
    if not all(each):
        return None
    return _over_seeds([max(row["percent"] or 0.0 for row in rows) for rows in each])


def _time(by: str, pairs: Pairs) -> Measured | None:
    found = timing.sooner([(own["history"], than["history"]) for own, than in pairs])
    return found["speedup"] or 0.0, found["low"], found["high"]


def _over_seeds(values: Sequence[float]) -> Measured:
    array = np.array(values, dtype=float)[:, None]
    if len(values) < 2:
        return float(array.mean()), None, None
    return _finite(float(array.mean()), *bootstrap.interval(array))


def _finite(value: float, low: float, high: float) -> Measured:
    known = all(map(math.isfinite, (low, high)))
    return value, low if known else None, high if known else None


_MEASURES = {
    "loss": _of_sentences,
    "mcd": _of_sentences,
    "early": _early,
    "time": _time,
    "setback": _setback,
}
