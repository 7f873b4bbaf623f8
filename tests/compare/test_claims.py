# SPDX-License-Identifier: Apache-2.0
"""Claims and verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from sniper.compare.claims import judge, read_claim

ARMS = ("dense", "own")


def _claim(**changes: Any) -> dict[str, Any]:
    return {"claim": "is better", "arm": "own", "than": "dense", "by": "loss", **changes}


def _run(seed: int, losses: list[float], mcd: list[float], sparsity: list[float]) -> dict[str, Any]:
    history = [
        {"valid": {"total": loss}, "seconds": 1.0, "sparsity": s, "update": 4 * (i + 1)}
        for i, (loss, s) in enumerate(zip(losses, sparsity, strict=True))
    ]
    final = {"metrics": {"loss": [losses[-1]] * len(mcd), "mcd": mcd}}
    evaluation = {"checkpoints": {"final": final}}
    return {"seed": seed, "status": "trained", "history": history, "evaluation": evaluation}


def _found(own: list[list[float]], mcd: list[list[float]]) -> dict[str, list[dict[str, Any]]]:
    dense = [_run(s, [4.0, 3.0, 2.0], [2.0, 2.0, 2.0, 2.0], [0.0] * 3) for s in range(3)]
    return {
        "dense": dense,
        "own": [_run(s, own[s], mcd[s], [0.5, 0.5, 0.0]) for s in range(3)],
    }


BETTER = [[3.0, 2.0, 1.0], [3.2, 2.1, 1.1], [3.1, 2.2, 1.2]]
EQUAL = [[4.0, 3.0, 1.9], [4.0, 3.0, 2.1], [4.0, 3.0, 2.0]]
MCD = [[1.9, 2.1, 1.8, 1.9], [1.9, 2.0, 1.9, 1.8], [2.0, 2.1, 1.7, 1.9]]


@pytest.mark.parametrize(
    ("claim", "losses", "verdict", "value"),
    [
        (_claim(), BETTER, "holds", -45.0),
        (_claim(), EQUAL, "not shown", 0.0),
        (_claim(below=10), EQUAL, "holds", 0.0),
        (_claim(above=10), EQUAL, "does not hold", 0.0),
        (_claim(by="early"), BETTER, "holds", -22.5),
        (_claim(by="time"), BETTER, "holds", None),
        (_claim(by="time", above=3), BETTER, "does not hold", None),
        (_claim(by="setback"), BETTER, "not shown", 0.0),
        (_claim(by="setback", below=5), BETTER, "holds", 0.0),
        (_claim(by="mcd", below=5), BETTER, "holds", None),
    ],
)
def test_verdicts(claim: dict, losses: list, verdict: str, value: float | None):
    told = judge(read_claim(claim, ARMS), _found(losses, MCD))
    assert told["verdict"] == verdict, told
    assert told["low"] <= told["value"] <= told["high"] and told["seeds"] == 3
    if value is not None:
        assert told["value"] == pytest.approx(value)


def test_losses_that_rise_at_a_change_refute():
    thrown = [[3.0, 1.0, 1.5], [3.0, 1.0, 1.6], [3.0, 1.0, 1.7]]
    told = judge(read_claim(_claim(by="setback", below=5), ARMS), _found(thrown, MCD))
    assert told["verdict"] == "does not hold" and told["value"] == pytest.approx(60)


def test_one_seed_shows_nothing():
    found = {name: runs[:1] for name, runs in _found(BETTER, MCD).items()}
    for by in ("loss", "mcd", "early", "time", "setback"):
        told = judge(read_claim(_claim(by=by, below=50), ARMS), found)
        assert (told["verdict"], told["seeds"]) == ("not shown", 1)


def test_what_is_not_measured():
    found = _found(BETTER, MCD)
    found["own"] = []
    told = judge(read_claim(_claim(), ARMS), found)
    assert (told["verdict"], told["seeds"], told["value"]) == ("not measured", 0, None)
    found = _found(BETTER, MCD)
    found["own"][1]["evaluation"] = None
    assert judge(read_claim(_claim(), ARMS), found)["verdict"] == "not measured"
    assert judge(read_claim(_claim(by="setback", arm="dense"), ARMS), found)["value"] is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("better", "expected a mapping of claim, arm"),
        (_claim(by="taste"), "by: expected one of loss, mcd"),
        (_claim(arm="other"), "arm: expected one of dense, own, got 'other'"),
        (_claim(below=1, above=2), "expected above or below, got both"),
        (_claim(below="much"), "expected a number as limit, got 'much'"),
        ({"claim": "x", "arm": "own", "than": "dense"}, "expected by, got"),
        (_claim(colour="red"), "expected a mapping of claim, arm"),
    ],
)
def test_claims_that_make_no_sense(entry: Any, said: str):
    with pytest.raises(ValueError, match=said):
        read_claim(entry, ARMS)
