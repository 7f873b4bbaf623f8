# SPDX-License-Identifier: Apache-2.0
"""Which figures of speed may be compared, by hand."""

from __future__ import annotations

import pytest
from comparing import arm, run

from sniper.compare.rates import Judgement, judge, overlap, stage_rates


def test_percentiles_over_epochs_and_seeds():
    two = arm("a", run([100, 110, 120]), run([130, 140, 150], seed=1))
    (rate,) = stage_rates(two)
    assert (rate.p20, rate.p50, rate.p80, rate.epochs) == (110, 125, 140, 6)
    assert rate.spread == pytest.approx(30 / 125)


def test_each_stage_apart():
    stages = [
        {"sparsity": 0.8, "density": 0.2, "first": 0, "epochs": 3},
        {"sparsity": 0.0, "density": 1.0, "first": 3, "epochs": 1},
    ]
    found = stage_rates({**arm("a", run([200, 200, 200, 100])), "stages": stages})
    assert [(r.p50, r.epochs, r.spread) for r in found] == [(200, 3, 0.0), (100, 1, None)]


def test_one_epoch_that_was_held_up_shows():
    """Nine of ten are alike, so the percentiles are; the seconds are not."""
    (rate,) = stage_rates(arm("a", run([100] * 9 + [20])))
    assert rate.p20 == rate.p80 == 100 and rate.mean == pytest.approx(1000 / 14)
    assert rate.spread == pytest.approx(1 - 10 / 14)


def test_a_ratio_is_as_good_as_its_worse_side():
    steady, unsteady = arm("a", run([100] * 5)), arm("b", run([100, 140, 100, 140, 120]))
    assert judge(steady, steady) == Judgement(0.0, True) and judge(steady, steady).steady
    for judged in (judge(steady, unsteady), judge(unsteady, steady)):
        assert judged.spread > 0.15 and not judged.steady
    assert not judge(arm("a", run([100, 100])), arm("a", run([100, 100]))).steady  # too few


def test_runs_that_did_not_finish_have_no_say():
    assert judge(arm("a", run([100] * 3), run([1, 9, 1], seed=1, status="failed")), arm("a")).steady


def test_side_by_side_seed_by_seed():
    def told(*spans: list | None) -> bool | None:
        def named(name: str, all_spans: tuple) -> dict:
            return arm(name, *(run([1] * 3, seed=i, spans=s) for i, s in enumerate(all_spans)))

        reference = named("dense", ([[0, 100]], [[200, 300]]))
        return judge(named("a", spans), reference).side_by_side

    assert told([[10, 90]], [[190, 290]]) is True
    assert told([[10, 90]], [[290, 400]]) is False
    assert told([[10, 90]], None) is None  # an older result does not say
    assert told([[10, 90]], []) is None
    assert judge(arm("a"), arm("dense")).side_by_side is None


def test_overlap():
    assert overlap([[0, 10]], [[5, 100]]) == 0.5
    assert overlap([[0, 10], [20, 30]], [[5, 25]]) == 0.5
    assert overlap([[0, 10]], [[10, 20]]) == 0.0
