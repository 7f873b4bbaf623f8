# SPDX-License-Identifier: Apache-2.0
"""Samples to sound files, without a sample that is cut off."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from sniper.tts.errors import require


def limit_peak(audio: np.ndarray) -> np.ndarray:
    """Scale `[n]` samples by one gain such that none lies outside [-1, 1]."""
    return audio / np.float32(max(1.0, peak_of(audio)))


def peak_of(audio: np.ndarray) -> float:
    """The largest magnitude of `[n]` samples; 0 of none."""
    return float(np.abs(audio).max(initial=0.0))


def save_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write mono audio `[n]` as 16-bit PCM; values beyond [-1, 1] are limited, not wrapped."""
    if (peak := peak_of(audio)) > 1.0:
        warnings.warn(
            f"{path}: samples up to {peak:.3g} are clipped to 1; scale them first", stacklevel=2
        )
    samples = np.clip(np.asarray(audio, dtype=np.float32), -1.0, 1.0)
    require("soundfile").write(str(path), samples, sample_rate, subtype="PCM_16", format="WAV")
