# SPDX-License-Identifier: Apache-2.0
"""Sound files to samples: whole, finite, of one channel and at the rate of the analysis."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import UtteranceError, require

# What recordings have; beyond these a header is damaged, and resampling would take for ever.
MIN_RATE, MAX_RATE = 1_000, 768_000
# Floating-point files may pass full scale a little; far beyond it they are scaled otherwise.
MAX_SAMPLE = 4.0
# Nobody says more in one breath; a whole chapter would fill the memory before it is refused.
MAX_SECONDS = 600.0
# The largest sample that a format has: 1 is beyond what any whole number stands for, and A-law and
# μ-law end well below it.
_LARGEST = {"PCM_U8": 0.99, "PCM_S8": 0.99, "ALAW": 0.98, "ULAW": 0.98}


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


# A writer into a pipe cannot know the length: it leaves all ones, as ffmpeg does, or about the most
# that a signed number holds, as sox (from 0x7F000000) and espeak-ng do.
_ALL_ONES, _UNKNOWN = 0xFFFFFFFF, 0x7F000000

# By the first four bytes of a file that consists of chunks: where they begin, and what each has at
# its front, name and length.
_CHUNKS = {
    b"RIFF": (12, "<4sI"),
    b"RIFX": (12, ">4sI"),
    b"RF64": (12, "<4sI"),
    b"BW64": (12, "<4sI"),
    b"FORM": (12, ">4sI"),  # AIFF and its kin
    b"riff": (40, "<4s12xQ"),  # Wave64, whose names go on for twelve bytes
}
_SOUND = (b"data", b"SSND", b"BODY")  # the chunks that hold it

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
    return Sound(mono, rate, peak, float((size >= full_scale(path)).mean()))


def full_scale(path: Path) -> float:
    """From which size on a sample of a sound file is as large as its format allows."""
    # Not 1: the highest 16-bit sample is 32767 / 32768.
    return _LARGEST.get(require("soundfile").info(path).subtype, 0.999)


def _unreadable(path: Path, error: Exception) -> UtteranceError:
    reason = str(error).split(": ", 1)[-1]
    return UtteranceError(f"{path} cannot be read as audio: {reason}")


def _refuse_short(path: Path, samples: int, config: FeatureConfig) -> None:
    if samples < config.min_samples:
        raise UtteranceError(
            f"{path} is too short: {samples} samples, at least {config.min_samples} are needed"
        )


def _check_complete(path: Path) -> None:
    """Refuse a file whose sound is cut off, of the formats that libsndfile then reads without a
    word.
    """
    size = path.stat().st_size
    if size == 0:
        raise UtteranceError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        kind = file.read(4)
        if kind in _CHUNKS:
            length = _find_sound(file, size, *_CHUNKS[kind])
        elif kind in (b".snd", b"dns."):
            order = "big" if kind == b".snd" else "little"
            begin, length = (int.from_bytes(file.read(4), order) for _ in range(2))
            file.seek(begin)
        elif kind == b"NIST":
            head = file.read(1020)
            fields = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d+)", head)}
            names = (b"sample_count", b"channel_count", b"sample_n_bytes")
            coding = re.search(rb"sample_coding -s\d+ (\S+)", head)
            # What is compressed is shorter, and refused by libsndfile.
            packed = coding is not None and coding[1] not in (b"pcm", b"ulaw", b"mu-law", b"alaw")
            length = 0 if packed else math.prod(fields.get(name, 1) for name in names)
        else:
            return
        held = max(0, size - file.tell())
    if length is None:
        raise UtteranceError(f"{path} is truncated: it holds no audio")
    if held < length < _UNKNOWN:
        raise UtteranceError(
            f"{path} is truncated: its header promises {length} bytes of audio, {held} are there"
        )


def _find_sound(file: BinaryIO, size: int, first: int, form: str) -> int | None:
    """The length of the chunk with the sound, at whose content the file then stands."""
    wave64 = first == 40
    # Wave64 counts a chunk's own header, and begins each at a multiple of 8; the others of 2.
    head, counted, multiple = struct.calcsize(form), 24 if wave64 else 0, 8 if wave64 else 2
    whole = _ALL_ONES
    file.seek(first)
    while len(header := file.read(head)) == head:
        name, length = struct.unpack(form, header)
        length = max(0, length - counted)
        if name in _SOUND:
            return whole if length == _ALL_ONES else length
        after = file.tell() + length + -length % multiple
        if name == b"ds64":  # of RF64: the lengths that 32 bits cannot hold
            whole = int.from_bytes(file.read(16)[8:], "little")
        file.seek(min(after, size))
    return None
