# SPDX-License-Identifier: Apache-2.0
"""The file that holds a preparation's finished utterances until all are there.

Append-only: each record carries its length and a checksum, so whatever a crash leaves behind its
last complete record is recognised and cut off, and the work goes on from there.
"""

import fcntl
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.corpus.features import Features
from sniper.tts.errors import SpeechError

_HEADER = struct.Struct("<IQI")  # bytes of JSON, bytes of arrays, CRC-32 of both
_FIELDS = ("mel", "durations", "pitch", "energy")


@dataclass(frozen=True)
class Record:
    """One utterance as a worker left it.

    Args:
        id, text: from the metadata.
        phones: tokens, as many as there are durations.
        pronunciations: (word, phonemes) pairs heard in it.
        problem: why it cannot be used, or "".
        features: None where there is a problem.
        fingerprint: of the files it was made from; "" in work of earlier versions.
    """

    id: str
    text: str
    phones: tuple[str, ...] = ()
    pronunciations: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    features: Features | None = None
    fingerprint: str = ""

    @property
    def n_frames(self) -> int:
        """Frames of its mel."""
        return 0 if self.features is None else len(self.features.mel)


def features_of(record: Record) -> Features:
    """The features of an utterance that has no problem."""
    assert record.features is not None, record.id
    return record.features


class WorkFile:
    """Records in the order in which they were appended.

    Args:
        path: created where it does not exist.
        settings: kept in the first record; `settings` gives back what the file was begun with.

    Raises:
        SpeechError: another process is writing to it.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path = path
        self._offsets: list[int] = []
        path.touch()
        self._file = path.open("r+b")
        try:
            # The kernel frees it with the process, however that ends.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise SpeechError(f"another process is preparing {path.parent} right now") from error
        end = 0
        for offset, header, _ in self._scan():
            if not self._offsets:
                settings = header
            self._offsets.append(offset)
            end = self._file.tell()
        self._file.truncate(end)
        self._file.seek(end)
        self.settings = settings
        if not self._offsets:
            self._write(settings, b"")

    def __len__(self) -> int:
        """Number of utterances in it."""
        return len(self._offsets) - 1

    def append(self, record: Record) -> None:
        """Add an utterance; it is in the kernel's hands when this returns."""
        data = {name: getattr(record, name) for name in ("id", "text", "phones", "problem")}
        data["fingerprint"] = record.fingerprint
        data["pronunciations"] = record.pronunciations
        body = b""
        if record.features is not None:
            arrays = [getattr(record.features, name) for name in _FIELDS]
            data["shapes"] = [array.shape for array in arrays]
            body = b"".join(array.tobytes() for array in arrays)
        self._write(data, body)

    def __iter__(self) -> Iterator[Record]:
        """Read all utterances, one in memory at a time."""
        for index, (_, header, body) in enumerate(self._scan()):
            if index:
                yield _record(header, body)

    def read(self, index: int) -> Record:
        """Read one utterance by its position."""
        self._file.seek(self._offsets[index + 1])
        found = self._next()
        if found is None:
            raise SpeechError(f"{self.path} has changed while it was read: prepare again")
        return _record(*found)

    def close(self) -> None:
        """Close the file; it stays on the disk."""
        self._file.close()

    def _write(self, header: dict, body: bytes) -> None:
        text = json.dumps(header, ensure_ascii=False).encode()
        checksum = zlib.crc32(body, zlib.crc32(text))
        self._file.seek(0, 2)
        self._offsets.append(self._file.tell())
        self._file.write(_HEADER.pack(len(text), len(body), checksum) + text + body)
        self._file.flush()

    def _scan(self) -> Iterator[tuple[int, dict, bytes]]:
        self._file.seek(0)
        while True:
            offset = self._file.tell()
            found = self._next()
            if found is None:
                return
            position = self._file.tell()
            yield offset, *found
            # The caller may have read elsewhere meanwhile.
            self._file.seek(position)

    def _next(self) -> tuple[dict, bytes] | None:
        fixed = self._file.read(_HEADER.size)
        if len(fixed) < _HEADER.size:
            return None
        text_length, body_length, checksum = _HEADER.unpack(fixed)
        # A length from a torn write may be huge: compare before reading.
        if text_length + body_length > self.path.stat().st_size:
            return None
        text, body = self._file.read(text_length), self._file.read(body_length)
        if len(text) + len(body) < text_length + body_length:
            return None
        if zlib.crc32(body, zlib.crc32(text)) != checksum:
            return None
        return json.loads(text), body


def _record(header: dict, body: bytes) -> Record:
    features = None
    if "shapes" in header:
        arrays, offset = {}, 0
        for name, shape in zip(_FIELDS, header["shapes"], strict=True):
            dtype = np.dtype(np.int32 if name == "durations" else np.float32)
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(body, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
        features = Features(**arrays)
    return Record(
        id=header["id"],
        text=header["text"],
        phones=tuple(header["phones"]),
        pronunciations=tuple((word, phones) for word, phones in header["pronunciations"]),
        problem=header["problem"],
        features=features,
        fingerprint=header.get("fingerprint", ""),
    )
