# SPDX-License-Identifier: Apache-2.0
"""Loss against seconds, by hand."""

from __future__ import annotations

import pytest

from sniper.compare.timing import accounts, early_losses, stages, time_to_loss


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
