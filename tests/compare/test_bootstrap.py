# SPDX-License-Identifier: Apache-2.0
"""Means, spreads, paired differences and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sniper.compare.bootstrap import interval, summarize

NAN = math.nan


def test_mean_and_spread_are_of_the_seeds():
    found = summarize({0: np.array([1.0, 3.0]), 1: np.array([4.0, NAN]), 2: np.array([NAN, NAN])})
    assert (found.mean, found.seeds, found.pairs) == (3.0, 2, 0)
    assert found.sd == pytest.approx(math.sqrt(2))
    assert math.isnan(found.difference) and math.isnan(found.low)
    assert math.isnan(summarize({0: np.array([1.0])}).sd)
    assert math.isnan(summarize({}).mean)


def test_differences_are_paired_by_seed_and_sentence():
    own = {0: np.array([1.0, 2.0]), 1: np.array([30.0, 40.0]), 9: np.array([0.0, 0.0])}
    theirs = {1: np.array([29.5, 39.5]), 0: np.array([0.5, 1.5]), 2: np.array([7.0, 7.0])}
    found = summarize(own, theirs)
    # Everywhere half a unit more, however different the pairs are.
    assert (found.difference, found.low, found.high, found.pairs) == (0.5, 0.5, 0.5, 2)
    found = summarize({0: np.array([1.0, NAN])}, {0: np.array([3.0, 5.0])})
    assert (found.difference, found.low, found.high) == (-2.0, -2.0, -2.0)


def test_the_interval_covers_seeds_and_sentences():
    rng = np.random.default_rng(0)
    by_seed = np.array([[-1.0], [0.0], [1.0]]) + rng.normal(0, 1e-3, (3, 50))
    low, high = interval(by_seed)
    assert low < -0.9 and high > 0.9  # all three draws may be one seed
    by_sentence = rng.normal(1, 1, 100)
    low, high = interval(by_sentence[None])
    half = 1.96 * by_sentence.std() / 10
    assert low == pytest.approx(by_sentence.mean() - half, abs=0.05)
    assert high == pytest.approx(by_sentence.mean() + half, abs=0.05)


def test_intervals_are_reproducible_and_leave_out_what_is_missing():
    pairs = np.random.default_rng(1).normal(size=(2, 8))
    assert interval(pairs) == interval(pairs)
    wider = np.concatenate([pairs, np.full((2, 8), NAN)], axis=1)
    assert all(math.isfinite(v) for v in interval(wider))
    assert all(math.isnan(v) for v in interval(np.full((2, 3), NAN)))
