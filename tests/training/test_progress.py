# SPDX-License-Identifier: Apache-2.0
"""When a run has come to its end, and how long its validation has been flat."""

from __future__ import annotations

import pytest

from sniper.training.config import Config, from_dict
from sniper.training.progress import Progress, flat_epochs, is_done


def rows(*pairs: tuple[float, float]) -> list[dict]:
    return [{"sparsity": sparsity, "valid": {"total": loss}} for sparsity, loss in pairs]


@pytest.mark.parametrize(
    ("history", "flat"),
    [
        ([], 0),
        ([(0, 1.0)], 0),
        ([(0, 2.0), (0, 1.0)], 0),
        ([(0, 1.0), (0, 2.0), (0, 1.5)], 2),
        # Lower before the change, and falling since: not flat.
        ([(0.5, 1.0), (0, 3.0), (0, 2.0)], 0),
        ([(0.5, 1.0), (0.5, 2.0), (0, 2.0), (0, 2.5)], 1),
        # Level is not lower.
        ([(0, 1.0), (0, 1.0)], 1),
    ],
)
def test_flat_epochs(history, flat):
    assert flat_epochs(rows(*history)) == flat


def config(**train) -> Config:
    return from_dict({"train": {"epochs": 10, **train}, "sparsity": {"schedule": {0: 0.5, 2: 0.0}}})


@pytest.mark.parametrize(
    ("epoch", "history", "train", "done"),
    [
        (10, [(0, 1.0)], {}, True),
        (9, [(0, 1.0)] * 9, {}, False),
        (3, [(0, 1.0), (0, 2.0), (0, 2.0)], {"patience": 2}, True),
        (3, [(0, 1.0), (0, 2.0), (0, 2.0)], {"patience": 3}, False),
        # The schedule goes on: what is flat now may fall when weights come back.
        (3, [(0.5, 1.0), (0.5, 2.0), (0.5, 2.0)], {"patience": 2}, False),
        (0, [], {"patience": 1}, False),
    ],
)
def test_is_done(epoch, history, train, done):
    assert is_done(Progress(epoch=epoch, history=rows(*history)), config(**train)) == done
