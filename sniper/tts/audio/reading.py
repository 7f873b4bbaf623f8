# SPDX-License-Identifier: Apache-2.0
"""Sound files to samples: whole, finite, of one channel and at the rate of the analysis."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import UtteranceError, require

# What recordings have; beyond these a header is damaged, and resampling would take for ever.
MIN_RATE, MAX_RATE = 1_000, 768_000
# Floating-point files may pass full scale a little; far beyond it they are scaled otherwise.
MAX_SAMPLE = 4.0
# Nobody says more in one breath; a whole chapter would fill the memory before it is refused.
MAX_SECONDS = 600.0


@dataclass(frozen=True)
class Sound:
    """A sound file as it was read.

    Args:
        samples: `[n]` float64, mono, at the rate of the analysis.
        rate: Hz of the file.
        peak: largest absolute sample of the file.
        clipped: share of its samples at full scale.
    """

    samples: np.ndarray
    rate: int
    peak: float
    clipped: float


# By so much an encoder's own padding may make a file shorter than its header says.
_MISSING_SECONDS, _MISSING_SHARE = 0.1, 0.01


def read_audio(path: Path, config: FeatureConfig) -> np.ndarray:
    """Read a sound file as mono at `config.sample_rate`.

    Returns:
        `[n]` float64 in [-1, 1].

    Raises:
        UtteranceError: as `read_sound` says.
    """
    return read_sound(path, config).samples


def sound_seconds(path: Path, config: FeatureConfig) -> float:
    """The length that a sound file's header gives, before anything of it is read.

    Raises:
        UtteranceError: missing, empty, truncated, unreadable, too short or long, or of a rate that
            no recording has.
    """
    soundfile = require("soundfile")
    if not path.is_file():
        raise UtteranceError(f"no such wav file: {path}")
    _check_complete(path)
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error
    rate, frames = info.samplerate, info.frames
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UtteranceError(
            f"{path} says a sample rate of {rate} Hz, expected {MIN_RATE} to {MAX_RATE}: its "
            "header is damaged"
        )
    if frames == 0:
        raise UtteranceError(f"{path} holds no audio")
    if frames / rate > MAX_SECONDS:
        raise UtteranceError(
            f"{path} lasts {frames / rate:.0f} s, at most {MAX_SECONDS:.0f} are taken: cut it at "
            "pauses"
        )
    _refuse_short(path, round(frames * config.sample_rate / rate), config)
    return frames / rate


def read_sound(path: Path, config: FeatureConfig) -> Sound:
    """Read a sound file as mono at `config.sample_rate`; its length is looked at before.

    Raises:
        UtteranceError: as `sound_seconds` says, with NaN, or with samples far outside [-1, 1].
    """
    promised = sound_seconds(path, config)
    soundfile = require("soundfile")
    try:
        audio, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error
    if len(audio) == 0:
        raise UtteranceError(f"{path} holds no audio")
    # Of compressed sound that is cut off, the header still tells the whole length.
    if promised - len(audio) / rate > _MISSING_SECONDS + _MISSING_SHARE * promised:
        raise UtteranceError(
            f"{path} is truncated: its header promises {promised:.2f} s, "
            f"{len(audio) / rate:.2f} s are there"
        )
    if not np.isfinite(audio).all():
        raise UtteranceError(f"{path} holds NaN or infinite samples")
    size = np.abs(audio)
    peak = float(size.max())
    if peak > MAX_SAMPLE:
        raise UtteranceError(
            f"{path} holds samples up to {peak:.4g}, expected within -1 to 1: scale it anew"
        )
    # After the peak was taken: the mean of two channels can hide that one is clipped.
    mono = audio.mean(axis=1)
    if rate != config.sample_rate:
        # Once a corpus, so the best quality may take its time.
        mono = require("soxr").resample(mono, rate, config.sample_rate, quality="VHQ")
    # Once more, since the check before reading believed the header.
    _refuse_short(path, len(mono), config)
    # Not 1: the highest 16-bit sample is 32767 / 32768.
    return Sound(mono, rate, peak, float((size >= 0.999).mean()))


def _unreadable(path: Path, error: Exception) -> UtteranceError:
    reason = str(error).split(": ", 1)[-1]
    return UtteranceError(f"{path} cannot be read as audio: {reason}")


def _refuse_short(path: Path, samples: int, config: FeatureConfig) -> None:
    if samples < config.min_samples:
        raise UtteranceError(
            f"{path} is too short: {samples} samples, at least {config.min_samples} are needed"
        )


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
            # RIFF pads every chunk to an even length.
            file.seek(length + length % 2, 1)
    raise UtteranceError(f"{path} is truncated: it holds no audio")
