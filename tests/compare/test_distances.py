# SPDX-License-Identifier: Apache-2.0
"""Cepstral distortion, alignment and F0 errors against values found by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sniper.compare.distances import align, cepstra, f0_errors, mel_cepstral_distortion
from sniper.tts.audio.config import FeatureConfig

TEN, E = FeatureConfig(), FeatureConfig(log_base="e")


def _waves(frames: int, seed: int = 0) -> np.ndarray:
    """Log-mels within 60 dB, base e."""
    return np.random.default_rng(seed).uniform(-3, 0, (frames, 80))


def test_a_cosine_is_one_coefficient():
    n = np.arange(80) + 0.5
    mel = 0.25 * np.cos(np.pi * 3 * n / 80) - 0.5 * np.cos(np.pi * 24 * n / 80) - 2.0
    found = cepstra(mel[None], E, loudest=0.0)
    expected = np.zeros((1, 24))
    expected[0, 2], expected[0, 23] = 0.25, -0.5
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_nobody_hears_does_not_count():
    quiet, silent = np.full((1, 80), -8.0), np.full((1, 80), -20.0)
    quiet[0, ::2] = silent[0, ::2] = 0.0
    # 60 dB are 6.9 natural logarithms.
    np.testing.assert_array_equal(cepstra(quiet, E, 0.0), cepstra(silent, E, 0.0))
    assert not np.allclose(cepstra(quiet, E, -2.0), cepstra(silent, E, -2.0))


def test_distortion_is_the_rms_difference_in_decibels():
    truth = np.zeros((4, 80))
    other = truth + 0.3 * np.cos(np.pi * 5 * (np.arange(80) + 0.5) / 80)
    found, _ = mel_cepstral_distortion(truth, other, E)
    decibels = 20 / math.log(10) * (truth - other)
    assert found == pytest.approx(math.sqrt(np.square(decibels).mean()))
    assert found == pytest.approx(10 / math.log(10) * math.sqrt(2) * 0.3)


def test_distortion_ignores_loudness_tempo_and_the_base():
    truth = _waves(12)
    slower = truth.repeat([1, 3, 1, 1, 2, 1, 1, 1, 4, 1, 1, 1], axis=0)
    assert mel_cepstral_distortion(truth, slower + 0.1, E)[0] == pytest.approx(0, abs=1e-6)
    other = _waves(9, seed=1)
    natural, path = mel_cepstral_distortion(truth, other, E)
    assert natural > 1
    common, same = mel_cepstral_distortion(truth / math.log(10), other / math.log(10), TEN)
    assert common == pytest.approx(natural)
    np.testing.assert_array_equal(path, same)


def test_alignment_by_hand():
    distance = np.array([[0, 5, 9, 9], [5, 0, 0, 5], [9, 5, 5, 0]])
    expected = [[0, 0], [1, 1], [1, 2], [2, 3]]
    np.testing.assert_array_equal(align(distance), expected)
    np.testing.assert_array_equal(align(np.ones((1, 3))), [[0, 0], [0, 1], [0, 2]])
    np.testing.assert_array_equal(align(np.ones((2, 1))), [[0, 0], [1, 0]])
    np.testing.assert_array_equal(align(np.zeros((2, 2))), [[0, 0], [1, 1]])  # both, in a tie


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 11), (11, 4)])
def test_alignment_is_the_shortest_path(n, m):
    distance = np.random.default_rng(n).random((n, m))
    best = np.full((n, m), np.inf)
    for i in range(n):
        for j in range(m):
            before = [
                best[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 <= b
            ]
            best[i, j] = distance[i, j] + min(before, default=0.0)
    path = align(distance)
    steps = {tuple(step) for step in np.diff(path, axis=0)}
    assert steps <= {(1, 1), (1, 0), (0, 1)}
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [n - 1, m - 1]
    assert distance[path[:, 0], path[:, 1]].sum() == pytest.approx(best[-1, -1])


def test_f0_errors_by_hand():
    truth, other = np.array([0, 100, 200.0]), np.array([100, 100 * math.exp(0.3), 0, 200.0])
    path = np.array([[0, 0], [1, 1], [2, 2], [2, 3]])
    rmse, voicing = f0_errors(truth, other, path)
    assert rmse == pytest.approx(0.3 / math.sqrt(2)) and voicing == 0.5
    rmse, voicing = f0_errors(np.zeros(2), np.ones(2), np.array([[0, 0], [1, 1]]))
    assert math.isnan(rmse) and voicing == 1.0
