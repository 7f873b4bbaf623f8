# SPDX-License-Identifier: Apache-2.0
"""Fundamental frequency of a voice, frame by frame."""

from __future__ import annotations

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import require


def log_f0(audio: np.ndarray, config: FeatureConfig) -> np.ndarray | None:
    """Natural log of F0 by DIO + StoneMask, linearly interpolated over unvoiced frames.

    Returns:
        `[n // hop]` float64, or None where no frame is voiced.
    """
    return interpolated_log(track_f0(audio, config))


def interpolated_log(f0: np.ndarray) -> np.ndarray | None:
    """Natural log of `track_f0`'s values, linear between voiced frames; None where none is."""
    voiced = np.flatnonzero(f0 > 0)
    if len(voiced) == 0:
        return None
    # First interpolated, then the logarithm, as ESPnet does: the other order gives other values
    # between voiced frames.
    return np.log(np.interp(np.arange(len(f0)), voiced, f0[voiced]))


def track_f0(audio: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """F0 by DIO + StoneMask: `[n // hop]` float64 Hz, 0 where a frame is unvoiced."""
    pyworld = require("pyworld")
    # pyworld takes contiguous doubles alone.
    samples = np.ascontiguousarray(audio, dtype=np.float64)
    period_ms = 1000.0 * config.hop_length / config.sample_rate
    coarse, times = pyworld.dio(
        samples,
        config.sample_rate,
        f0_floor=config.f0_min,
        f0_ceil=config.f0_max,
        frame_period=period_ms,
    )
    # DIO is fast but coarse: StoneMask refines each of its values.
    f0 = pyworld.stonemask(samples, coarse, times, config.sample_rate)
    # WORLD's own count can differ from n // hop by one through rounding of the period.
    frames = config.n_frames(len(samples))
    return np.pad(f0, (0, max(0, frames - len(f0))))[:frames]
