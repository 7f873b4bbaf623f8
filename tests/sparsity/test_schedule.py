# SPDX-License-Identifier: Apache-2.0
"""Schedules: what counts at an epoch, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
from torch import nn

from sniper import Sniper, SparsitySchedule

IMAGE = {0: 0.8, 5: 0.4, 10: 0.2, 15: 0.1, 20: 0}


def test_the_last_entry_at_or_before_an_epoch_counts():
    schedule = SparsitySchedule(IMAGE)
    got = [schedule.sparsity_at(e) for e in (0, 4, 4.9, 5, 9, 10, 19, 20, 1000)]
    assert got == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.0, 0.0]


def test_changes():
    schedule = SparsitySchedule({0: 0.4, 2: 0.4, 3: 0})
    assert [schedule.changes_at(e) for e in range(5)] == [True, False, False, True, False]


def test_sparsities_are_distinct_and_fall():
    assert SparsitySchedule({3: 0, 0: 0.4, 1: 0.4}).sparsities == (0.4, 0.0)


def test_entries_may_come_in_any_order():
    assert list(SparsitySchedule({10: 0, 0: 0.4, 5: 0.2})) == [(0, 0.4), (5, 0.2), (10, 0.0)]


def test_equality_hash_text_copy():
    schedule = SparsitySchedule({0: 0.8, 2: 0})
    assert schedule == SparsitySchedule(schedule) == pickle.loads(pickle.dumps(schedule))
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    assert schedule != SparsitySchedule({0: 0.8, 3: 0})
    assert str(schedule) == "80% from epoch 0 -> 0% from epoch 2"


def test_later_changes_of_the_mapping_do_not_reach_it():
    steps = {0: 0.4}
    schedule = SparsitySchedule(steps)
    steps[0] = 0.9
    assert schedule.sparsity_at(0) == 0.4


def test_numpy_numbers_are_numbers():
    schedule = SparsitySchedule({np.int64(0): np.float32(0.5), np.float64(2.0): 0})
    assert list(schedule) == [(0, 0.5), (2, 0.0)]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({0: 40, 5: 0}, r"epoch 0: expected a fraction in \[0, 1\], got 40: write 0.4 for 40 %"),
        ({5: 0.4}, r"expected an entry for epoch 0, got epochs \[5\]"),
        ({0: 0.2, 5: 0.4}, "must not rise, got 0.2 at epoch 0 and 0.4 at epoch 5"),
        ({0: -0.1}, "got -0.1"),
        ({0: math.nan}, "got nan"),
        ({0: math.inf}, "got inf"),
        ({0: True}, "got True"),
        ({0: "0.4"}, "got '0.4'"),
        ({0: None}, "got None"),
        ({0: 0.4, 0.5: 0}, "whole epochs >= 0, got 0.5.*from_fractions"),
        ({0: 0.4, -1: 0}, "got -1"),
        ({0: 0.4, math.inf: 0}, "got inf"),
        ({0: 0.4, math.nan: 0}, "got nan"),
        ({0: 0.4, "5": 0}, "got '5'"),
        ({False: 0.4}, "got False"),
        ({}, "expected a mapping"),
        (None, "expected a mapping"),
        ([(0, 0.4)], "expected a mapping"),
        (0.4, "expected a mapping"),
    ],
)
def test_refused(steps, words):
    with pytest.raises(ValueError, match=words):
        SparsitySchedule(steps)


@pytest.mark.parametrize("epoch", [-1, float("nan"), float("inf"), "2", None, True])
def test_bad_epochs(epoch):
    expected = re.escape(f"epoch: expected a finite number >= 0, got {epoch!r}")
    for ask in (SparsitySchedule({0: 0.4}).sparsity_at, Sniper(nn.Linear(64, 64), {0: 0.4}).step):
        with pytest.raises(ValueError, match=expected):
            ask(epoch)


def test_from_fractions():
    schedule = SparsitySchedule.from_fractions({0: 0.8, 0.5: 0.4, 0.75: 0}, epochs=10)
    assert list(schedule) == [(0, 0.8), (5, 0.4), (8, 0.0)]


def test_from_fractions_where_two_meet_the_later_counts():
    schedule = SparsitySchedule.from_fractions({0: 0.8, 0.5: 0.4, 0.6: 0.2, 0.7: 0}, epochs=2)
    assert list(schedule) == [(0, 0.8), (1, 0.0)]


@pytest.mark.parametrize(
    ("steps", "epochs", "words"),
    [
        ({0: 0.4, 1.0: 0}, 10, r"fractions of training in \[0, 1\), got 1.0"),
        ({0: 0.4, 5: 0}, 10, "got 5"),
        ({0: 0.4, -0.1: 0}, 10, "got -0.1"),
        ({0: 0.4, math.nan: 0}, 10, "got nan"),
        ({0: 0.4, "0.5": 0}, 10, "got '0.5'"),
        ({0.5: 0.4}, 10, "epoch 0"),
        ({0: 40}, 10, "write 0.4"),
        ({0: 0.4}, 0, "epochs: expected a whole number >= 1, got 0"),
        ([0.4], 10, "expected a mapping"),
        ({}, 10, "expected a mapping"),
    ],
)
def test_from_fractions_refused(steps, epochs, words):
    with pytest.raises(ValueError, match=words):
        SparsitySchedule.from_fractions(steps, epochs)
