# SPDX-License-Identifier: Apache-2.0
"""Samples to sound files, without a sample that is cut off."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sniper.tts.errors import require
from sniper.tts.files import atomic_write


def limit_peak(audio: np.ndarray) -> np.ndarray:
    """Scale `[n]` samples by one gain such that none lies outside [-1, 1]."""
    return audio / np.float32(max(1.0, peak_of(audio)))


def peak_of(audio: np.ndarray) -> float:
    """The largest magnitude of `[n]` samples; 0 of none."""
    return float(np.abs(audio).max(initial=0.0))


def save_wav(path: str | Path | BinaryIO, audio: np.ndarray, sample_rate: int) -> None:
    """Write mono audio `[n]` as 16-bit PCM; values beyond [-1, 1] are limited, not wrapped.

    Args:
        path: a file, which is whole or not there, or an open stream such as a pipe.

    Raises:
        OSError: it cannot be written, with its name.
    """
    if (peak := peak_of(audio)) > 1.0:
        warnings.warn(
            f"{path}: samples up to {peak:.3g} are clipped to 1; scale them first", stacklevel=2
        )
    samples = np.clip(np.asarray(audio, dtype=np.float32), -1.0, 1.0)
    # In memory first: the sound library names neither the file nor the reason of a full disk.
    encoded = io.BytesIO()
    require("soundfile").write(encoded, samples, sample_rate, subtype="PCM_16", format="WAV")
    if isinstance(path, str | Path):
        with atomic_write(Path(path)) as file:
            file.write(encoded.getvalue())
    else:
        path.write(encoded.getvalue())
