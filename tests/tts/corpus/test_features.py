# SPDX-License-Identifier: Apache-2.0
"""Durations, token averages and statistics on hand-made data."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.features import (
    Features,
    Statistics,
    average_by_duration,
    compute_statistics,
    extract,
    frame_durations,
)
from sniper.tts.errors import UtteranceError

CONFIG = FeatureConfig()
NAN = float("nan")


def features(mel, pitch, energy) -> Features:
    arrays = (np.array(values, dtype=np.float32) for values in (mel, pitch, energy))
    mel, pitch, energy = arrays
    return Features(mel, np.ones(len(pitch), dtype=np.int32), pitch, energy)


def test_durations_by_hand():
    # 100/256 rounds to 0, 384/256 = 1.5 to 2, 1000/256 = 3.9 to 4; the last is forced to 5.
    assert frame_durations([0, 100, 384, 1000, 1290], 5, CONFIG).tolist() == [0, 2, 2, 1]


def test_a_grid_beyond_the_audio_does_not_go_below_zero():
    assert frame_durations([0, 256, 1300, 1500], 4, CONFIG).tolist() == [1, 3, 0]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50), st.integers(-1500, 1500))
def test_durations_always_sum_to_the_frames(lengths, mismatch):
    boundaries = np.cumsum([0, *lengths])
    n_frames = max(2, int(boundaries[-1]) + mismatch) // 256
    durations = frame_durations(boundaries, n_frames, CONFIG)
    assert durations.sum() == n_frames and (durations >= 0).all()


def test_average_by_hand():
    found = average_by_duration(np.array([1.0, 2.0, 3.0, 10.0]), np.array([3, 0, 1]))
    np.testing.assert_array_equal(found, np.array([2.0, NAN, 10.0], dtype=np.float32))


def test_statistics_by_hand():
    stats = compute_statistics(
        [
            features([[0, 1], [2, 1]], [4.0, NAN], [1.0, NAN]),
            # An utterance without a voiced frame has no pitch and must not count.
            features([[4, 1]], [NAN, NAN], [3.0, 5.0]),
            features([[6, 1]], [6.0], [7.0]),
        ]
    )
    np.testing.assert_allclose(stats.mel_mean, [3, 1])
    # Population deviation; a bin that never changes gets 1, not 0.
    np.testing.assert_allclose(stats.mel_std, [5**0.5, 1])
    assert (stats.pitch_mean, stats.pitch_std) == (5.0, 1.0)
    assert (stats.energy_mean, stats.energy_std) == (4.0, pytest.approx(5**0.5))


def test_statistics_without_any_pitch_stay_finite():
    stats = compute_statistics([features([[0.0]], [NAN], [1.0])])
    assert (stats.pitch_mean, stats.pitch_std) == (0.0, 1.0)


def test_statistics_are_stable_far_from_zero():
    values = np.random.default_rng(0).normal(1e4, 1e-2, size=(50, 20, 1))
    stats = compute_statistics(features(block, [0.0], [0.0]) for block in values)
    exact = values.astype(np.float32).astype(np.float64)
    assert stats.mel_std[0] == pytest.approx(exact.std(), rel=1e-4)


def test_normalisation_round_trip_and_missing_values():
    stats = Statistics(np.float32([1, 2]), np.float32([2, 4]), 5.0, 0.5, 3.0, 2.0)
    mel = np.float32([[3, 2], [1, -2]])
    np.testing.assert_array_equal(stats.normalize_mel(mel), [[1, 0], [0, -1]])
    np.testing.assert_array_equal(stats.denormalize_mel(stats.normalize_mel(mel)), mel)
    np.testing.assert_array_equal(stats.normalize_pitch(np.float32([5.5, NAN])), [1, 0])
    np.testing.assert_array_equal(stats.normalize_energy(np.float32([NAN, 1])), [0, -1])


def test_statistics_go_through_json_bit_for_bit():
    stats = compute_statistics(
        [features(np.random.default_rng(0).normal(size=(9, 3)), [0.1], [0.3])]
    )
    again = Statistics.from_json(json.loads(json.dumps(stats.to_json())))
    np.testing.assert_array_equal(again.mel_std, stats.mel_std)
    assert again.mel_mean.dtype == np.float32 and again.energy_mean == stats.energy_mean


def test_extract_matches_shapes_and_sums():
    audio = np.random.default_rng(0).normal(size=10_000) * 0.1
    found = extract(audio, np.array([0, 3000, 3010, 10_000]), CONFIG)
    assert found.mel.shape == (39, 80) and found.mel.dtype == np.float32
    assert found.durations.sum() == 39 and found.durations[1] == 0
    assert np.isnan(found.energy[1]) and np.isfinite(found.energy[[0, 2]]).all()


def test_extract_refuses_boundaries_that_run_backwards():
    with pytest.raises(UtteranceError, match="sum to"):
        extract(np.zeros(10_000), np.array([0, 9000, 3000, 10_000]), CONFIG)
