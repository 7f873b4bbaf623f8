# SPDX-License-Identifier: Apache-2.0
"""Sound files to samples: whole, finite, of one channel and at the rate of the analysis."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import UtteranceError, require

# What recordings have; beyond these a header is damaged, and resampling would take for ever.
MIN_RATE, MAX_RATE = 1_000, 768_000
# Floating-point files may pass full scale a little; far beyond it they are scaled otherwise.
MAX_SAMPLE = 4.0


def read_audio(path: Path, config: FeatureConfig) -> np.ndarray:
    """Read a sound file as mono at `config.sample_rate`.

    Returns:
        `[n]` float64 in [-1, 1].

    Raises:
        UtteranceError: missing, empty, truncated, unreadable, too short, with NaN, with samples far
            outside [-1, 1], or of a rate that no recording has.
    """
    soundfile = require("soundfile")
    if not path.is_file():
        raise UtteranceError(f"no such wav file: {path}")
    _check_complete(path)
    try:
        rate = soundfile.info(path).samplerate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UtteranceError(
                f"{path} says a sample rate of {rate} Hz, expected {MIN_RATE} to {MAX_RATE}: its "
                "header is damaged"
            )
        audio, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = str(error).split(": ", 1)[-1]
        raise UtteranceError(f"{path} cannot be read as audio: {reason}") from error
    if len(audio) == 0:
        raise UtteranceError(f"{path} holds no audio")
    if not np.isfinite(audio).all():
        raise UtteranceError(f"{path} holds NaN or infinite samples")
    peak = float(np.abs(audio).max())
    if peak > MAX_SAMPLE:
        raise UtteranceError(
            f"{path} holds samples up to {peak:.4g}, expected within -1 to 1: scale it anew"
        )
    mono = audio.mean(axis=1)
    if rate != config.sample_rate:
        mono = require("soxr").resample(mono, rate, config.sample_rate, quality="VHQ")
    if len(mono) < config.min_samples:
        raise UtteranceError(
            f"{path} is too short: {len(mono)} samples, at least {config.min_samples} are needed"
        )
    return mono


def _check_complete(path: Path) -> None:
    """Refuse a RIFF file whose data chunk is cut off: libsndfile reads it without a word."""
    size = path.stat().st_size
    if size == 0:
        raise UtteranceError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                held = size - file.tell()
                # A writer into a pipe cannot know the length and leaves all ones.
                if length != 0xFFFFFFFF and held < length:
                    raise UtteranceError(
                        f"{path} is truncated: its header promises {length} bytes of audio, "
                        f"{held} are there"
                    )
                return
            file.seek(length + length % 2, 1)
    raise UtteranceError(f"{path} is truncated: it holds no audio")
