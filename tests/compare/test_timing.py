# SPDX-License-Identifier: Apache-2.0
"""Loss against seconds, by hand."""

from __future__ import annotations

import pytest

from sniper.compare.timing import (
    accounts,
    early_losses,
    finest,
    setbacks,
    sooner,
    stages,
    time_to_loss,
)


def _history(losses: list[float], seconds: list[float], **columns: list) -> list[dict]:
    rows = [
        {"epoch": i, "valid": {"total": loss}, "seconds": s, "frames": 100, "sparsity": 0.0}
        for i, (loss, s) in enumerate(zip(losses, seconds, strict=True))
    ]
    for key, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return rows


DENSE = _history([4.0, 3.0, 3.5, 2.0], [10.0] * 4)


def test_time_to_the_references_losses():
    own = _history([5.0, 3.0, 2.9, 1.0], [4.0] * 4, change_seconds=[1.0, 0.0, 2.0, 0.0])
    found = time_to_loss(own, DENSE, score_seconds=3.0)
    assert [r.fraction for r in found] == [0.5, 0.75, 0.9, 1.0]
    # After three epochs the reference had its best in the second, at 20 s.
    assert [r.loss for r in found] == [3.0, 3.0, 2.0, 2.0]
    assert [r.reference_seconds for r in found] == [20.0, 20.0, 40.0, 40.0]
    assert [r.seconds for r in found] == [8.0, 8.0, 16.0, 16.0]
    assert [r.speedup for r in found] == [2.5, 2.5, 2.5, 2.5]
    assert [r.extra_seconds for r in found] == [4.0, 4.0, 6.0, 6.0]
    assert found[0].speedup_with_extra == pytest.approx(20 / 12)


def test_a_loss_that_is_never_reached():
    own = _history([5.0, 3.5, 2.5], [1.0] * 3)  # an old history, without the seconds of changes
    found = time_to_loss(own, DENSE)
    assert [r.seconds for r in found] == [3.0, 3.0, None, None]
    assert found[-1].speedup is None and found[-1].speedup_with_extra is None


def test_the_reference_takes_as_long_as_itself():
    assert [r.speedup for r in time_to_loss(DENSE, DENSE)] == [1.0] * 4


def test_early_losses_by_epoch_and_by_seconds():
    own = _history([5.0, 2.5, 2.0, 1.0], [5.0] * 4)
    tenth, quarter, half = early_losses(own, DENSE)
    assert tenth == {"fraction": 0.1, "by_epoch": 1.0, "by_seconds": -1.5}  # at 10 s: 2.5 to 4
    assert quarter["by_epoch"] == 1.0
    assert half["by_epoch"] == -0.5 and half["by_seconds"] == -2.0
    slow = early_losses(_history([5.0], [12.0]), DENSE)
    assert slow[0]["by_seconds"] is None and slow[0]["by_epoch"] == 1.0  # not one epoch in 10 s
    assert slow[2]["by_epoch"] is None


def test_stages():
    rows = _history([1.0] * 3, [2.0, 2.0, 5.0], sparsity=[0.8, 0.8, 0.0], density=[0.3, 0.3, 1.0])
    assert stages(rows) == [
        {
            "sparsity": 0.8,
            "density": 0.3,
            "first": 0,
            "epochs": 2,
            "seconds": 4.0,
            "frames_per_second": 50.0,
        },
        {
            "sparsity": 0.0,
            "density": 1.0,
            "first": 2,
            "epochs": 1,
            "seconds": 5.0,
            "frames_per_second": 20.0,
        },
    ]


def test_accounts_and_histories_from_before_they_were_kept():
    parts = {"valid_seconds": [1.0, 2.0], "change_seconds": [0.5, 0.0], "save_seconds": [0.0, 4.0]}
    expected = {"training": 6.0, "validation": 3.0, "scoring": 7.0, "changes": 0.5}
    rows = _history([1.0, 1.0], [2.0, 4.0], **parts)
    assert accounts(rows, 7.0) == {**expected, "checkpoints": 4.0}
    old = accounts(_history([1.0], [2.0]), 0.0)
    assert old["training"] == 2.0 and old["validation"] is None and old["checkpoints"] is None


def _at(losses: list[float], sparsities: list[float], within: dict[int, list] | None = None):
    rows = _history(losses, [1.0] * len(losses), sparsity=sparsities)
    for i, row in enumerate(rows):
        row["update"] = 10 * (i + 1)
        if within and i in within:
            row["within"] = within[i]
    return rows


def test_setbacks_at_changes():
    # Before the first change 2.0; then up to 2.2, back at update 26 of the epoch 21 to 30.
    history = _at(
        [3.0, 2.0, 1.9, 1.8, 1.9, 1.85],
        [0.8, 0.8, 0.5, 0.5, 0.0, 0.0],
        {2: [[22, 2.1], [24, 2.2], [26, 2.0], [28, 2.05]]},
    )
    first, second = setbacks(history)
    assert (first["epoch"], first["before"], first["after"]) == (2, 0.8, 0.5)
    assert first["percent"] == pytest.approx(10.0)
    assert first["epochs"] == pytest.approx(0.6)
    # Above 1.8 at the end of its epoch, and never back.
    assert second["percent"] == pytest.approx(100 * 0.1 / 1.8)
    assert second["epochs"] is None


def test_a_change_that_throws_nothing_back():
    (found,) = setbacks(_at([3.0, 2.0], [0.5, 0.0], {1: [[15, 3.0]]}))
    assert (found["percent"], found["epochs"]) == (0.0, 0.0)
    assert setbacks(_at([3.0, 4.0], [0.5, 0.5])) == []


def test_setbacks_of_rows_without_updates():
    rows = _history([1.0, 2.0, 1.0], [1.0] * 3, sparsity=[0.5, 0.0, 0.0])
    (found,) = setbacks(rows)
    assert (found["percent"], found["epochs"]) == (100.0, 2.0)


def test_sooner_is_of_the_mean_curves_with_an_interval_over_seeds():
    dense = [_history([4.0, 3.0, 2.0], [10.0] * 3), _history([4.0, 3.0, 2.2], [10.0] * 3)]
    own = [_history([3.0, 1.0, 1.0], [5.0] * 3), _history([3.2, 1.0, 1.0], [5.0] * 3)]
    # The mean falls from 3.1 at 5 s to 1.0 at 10 s; 2.1 is there after 5 + 5 / 2.1 s.
    found = sooner(list(zip(own, dense, strict=True)))
    assert found["speedup"] == pytest.approx(30 / (5 + 5 / 2.1))
    # With either seed alone: from 3.0 to 2.0, or from 3.2 to 2.2, in half an epoch or 1 / 2.2.
    assert found["low"] == pytest.approx(30 / 7.5)
    assert found["high"] == pytest.approx(30 / (5 + 5 / 2.2))
    assert found["reached"] == 1.0


def test_draws_that_do_not_get_there_count_as_0():
    dense = [_history([2.0, 1.0], [1.0, 1.0])] * 2
    own = [_history([2.0, 0.5], [1.0, 1.0]), _history([2.0, 1.4], [1.0, 1.0])]
    found = sooner(list(zip(own, dense, strict=True)))
    assert found["speedup"] is not None and found["low"] == 0
    assert found["reached"] == pytest.approx(0.75, abs=0.03)
    never = sooner(list(zip([own[1]] * 2, dense, strict=True)))
    assert (never["speedup"], never["high"], never["reached"]) == (None, 0.0, 0.0)
    alone = sooner([(own[0], dense[0])])
    assert alone["low"] is None and alone["speedup"] == pytest.approx(2 / (1 + 1 / 1.5))


def test_an_arm_that_is_there_at_its_first_epoch():
    dense, own = _history([2.0, 1.0], [3.0, 3.0]), _history([0.5, 0.4], [2.0, 2.0])
    assert sooner([(own, dense)])["speedup"] == 3.0


def test_setbacks_are_told_of_runs_that_were_looked_at_within_epochs():
    coarse = _at([3.0, 2.0], [0.5, 0.0])
    fine = _at([3.0, 2.0], [0.5, 0.0], {1: [[15, 3.3]]})
    assert finest([coarse, fine]) == [fine]
    assert finest([coarse, coarse]) == [coarse, coarse]
