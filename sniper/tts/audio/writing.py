# SPDX-License-Identifier: Apache-2.0
"""Samples to sound files, without a sample that is cut off."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import struct
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sniper.tts.errors import SpeechError, require
from sniper.tts.files import atomic_write

_MOST_SAMPLES = (2**32 - 1 - 36) // 2  # of 16 bits: WAV counts its bytes in 32


def limit_peak(audio: np.ndarray) -> np.ndarray:
    """Scale `[n]` samples by one gain such that none lies outside [-1, 1]."""
    return audio / np.float32(max(1.0, peak_of(audio)))


def gain_of(peak: float) -> float:
    """What samples of this peak are multiplied with such that none lies outside [-1, 1]."""
    return 1 / max(1.0, peak)


def peak_of(audio: np.ndarray) -> float:
    """The largest magnitude of `[n]` samples; 0 of none."""
    return float(np.abs(audio).max(initial=0.0))


def save_wav(path: str | Path | BinaryIO, audio: np.ndarray, sample_rate: int) -> None:
    """Write mono audio `[n]` as 16-bit PCM; values beyond [-1, 1] are limited, not wrapped.

    Args:
        path: a file, which is whole or not there, or an open stream such as a pipe.

    Raises:
        OSError: it cannot be written, with its name.
        SpeechError: more samples than a WAV file can say.
    """
    if (peak := peak_of(audio)) > 1.0:
        warnings.warn(
            f"{path}: samples up to {peak:.3g} are clipped to 1; scale them first", stacklevel=2
        )
    save_wav_of(path, [audio], len(audio), sample_rate)


def save_wav_of(
    path: str | Path | BinaryIO, blocks: Iterable[np.ndarray], samples: int, sample_rate: int
) -> None:
    """`save_wav` for audio that comes in blocks, of which one at a time is in memory.

    Args:
        samples: in all blocks together.
    """
    if samples > _MOST_SAMPLES:
        hours = samples / sample_rate / 3600
        raise SpeechError(
            f"{hours:.1f} h of sound are more than a WAV file of 4 GiB holds: speak the text in "
            "parts"
        )
    if not isinstance(path, str | Path):
        _write_wav(path, blocks, samples, sample_rate)
        return
    with atomic_write(Path(path)) as file:
        _write_wav(file, blocks, samples, sample_rate)


def _write_wav(
    file: BinaryIO, blocks: Iterable[np.ndarray], samples: int, sample_rate: int
) -> None:
    # By hand: the sound library names neither the file nor the reason of a full disk, and goes back
    # to the header when it closes, which a pipe does not allow.
    size = 2 * samples
    header = (b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", size)
    file.write(struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", *header))
    for block in blocks:
        limited = np.clip(np.asarray(block, dtype=np.float32), -1.0, 1.0)
        encoded = io.BytesIO()
        kind = {"subtype": "PCM_16", "format": "RAW", "endian": "LITTLE"}
        require("soundfile").write(encoded, limited, sample_rate, **kind)
        file.write(encoded.getbuffer())


class Spool:
    """float32 arrays kept on the disk in the order in which they come, until all of them are there.

    The file has no name and ends with the process, however that ends.

    Args:
        beside: the file that is to be written of it, on whose disk there must be room anyway; None,
            a pipe or a device: where temporary files are.

    Raises:
        OSError: it cannot be made or written, with the name of `beside`.
    """

    def __init__(self, beside: Path | None) -> None:
        self.rows = 0
        self.peak = 0.0
        self._beside = beside
        self._shape: tuple[int, ...] = ()
        folder = None
        if beside is not None and (beside.is_file() or not beside.exists()):
            folder = os.path.dirname(os.path.realpath(beside))
        with self._named():
            if beside is not None and beside.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._file = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written before is tried once more in closing, and would hide the reason.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, values: np.ndarray) -> None:
        """Append `[n, ...]`; all arrays have the same shape but for n."""
        values = np.ascontiguousarray(values, dtype="<f4")
        self._shape = values.shape[1:]
        self.rows += len(values)
        self.peak = max(self.peak, peak_of(values))
        with self._named():
            self._file.write(values.data)

    def blocks(self, values: int = 1 << 18) -> Iterator[np.ndarray]:
        """What was added, from the beginning, in arrays of about so many values."""
        width = math.prod(self._shape)
        size = max(1, values // width) * width * 4
        with self._named():
            self._file.seek(0)
        while part := self._file.read(size):
            yield np.frombuffer(part, dtype="<f4").reshape(-1, *self._shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all arrays together."""
        return (self.rows, *self._shape)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = str(self._beside or tempfile.gettempdir())
            raise OSError(error.errno, error.strerror, name) from None
