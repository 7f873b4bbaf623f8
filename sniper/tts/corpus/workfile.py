# SPDX-License-Identifier: Apache-2.0
"""The file that holds a preparation's finished utterances until all are there: an SQLite database.

Each utterance is a transaction of its own, so whatever a crash interrupts is as if it had not
begun, and the work goes on from there.
"""

import json
import math
import sqlite3
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sniper.tts.corpus.features import Features
from sniper.tts.errors import SpeechError

_FIELDS = ("mel", "durations", "pitch", "energy")
# Nothing waits for the disk: a killed process loses nothing, and after a power cut the work is
# done anew, which costs only time. No write-ahead log: a kill would leave it beside the file.
_SETTINGS = "PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
_TABLES = """
    CREATE TABLE IF NOT EXISTS settings (value TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS utterances (
        position INTEGER PRIMARY KEY, header TEXT NOT NULL, body BLOB NOT NULL, checksum INTEGER
    );
"""


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
        sound: rate in Hz, peak and share of clipped samples of its file; None in work of earlier
            versions.
        content: checksums of its files, from just before they were read; "" in work of earlier
            versions.
    """

    id: str
    text: str
    phones: tuple[str, ...] = ()
    pronunciations: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    features: Features | None = None
    fingerprint: str = ""
    sound: tuple[int, float, float] | None = None
    content: str = ""

    @property
    def n_frames(self) -> int:
        """Frames of its mel."""
        return 0 if self.features is None else len(self.features.mel)


def features_of(record: Record) -> Features:
    """The features of an utterance that has no problem."""
    assert record.features is not None, record.id
    return record.features


class Records(Protocol):
    """Where utterances are read from by their position."""

    def read(self, index: int) -> Record:
        """One utterance, whole."""
        ...


def remove_work(path: Path) -> None:
    """Deletes a work file, and what SQLite has left beside that of a killed process: whoever only
    reads the file afterwards leaves it there. The file first: a journal without one does not count.
    """
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


class WorkFile:
    """Records in the order in which they were appended.

    Args:
        path: created where it does not exist. A file of an earlier version, or one that is
            damaged, is begun anew with a warning.
        settings: kept in it; `settings` gives back what the file was begun with.

    Raises:
        SpeechError: another process is writing to it, or the disk is full.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path = path
        try:
            self.settings = self._open(settings)
        except sqlite3.OperationalError as error:
            raise self._refused(error) from error
        except (sqlite3.DatabaseError, ValueError):
            self._database.close()
            warnings.warn(
                f"{path} is damaged or of an earlier version: its utterances are analysed again",
                stacklevel=2,
            )
            remove_work(path)
            self.settings = self._open(settings)

    def _open(self, settings: dict) -> dict:
        # No waiting for a lock: a second preparation is to be told at once.
        self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        self._database.executescript(_SETTINGS)
        # The lock is held from here until the process ends, however that happens.
        self._database.execute("BEGIN EXCLUSIVE")
        for statement in _TABLES.split(";"):
            self._database.execute(statement)
        begun = self._database.execute("SELECT value FROM settings").fetchone()
        if begun is None:
            self._database.execute("INSERT INTO settings VALUES (?)", (json.dumps(settings),))
        self._database.execute("COMMIT")
        # A file cut off in the middle opens without a word, and fails at some later page.
        whole = self._database.execute("PRAGMA quick_check").fetchone()
        if whole != ("ok",):
            raise sqlite3.DatabaseError(str(whole))
        return settings if begun is None else json.loads(begun[0])

    def _refused(self, error: sqlite3.OperationalError) -> SpeechError:
        if "locked" in str(error):
            return SpeechError(f"another process is preparing {self.path.parent} right now")
        return SpeechError(f"{self.path} cannot be written: {error}")

    def __len__(self) -> int:
        """Number of utterances in it."""
        return self._database.execute("SELECT COUNT(*) FROM utterances").fetchone()[0]

    def append(self, record: Record) -> None:
        """Add an utterance; it is in the kernel's hands when this returns.

        Raises:
            SpeechError: the disk is full; names the file.
        """
        data = {name: getattr(record, name) for name in ("id", "text", "phones", "problem")}
        data["fingerprint"], data["content"] = record.fingerprint, record.content
        data["pronunciations"] = record.pronunciations
        body = b""
        if record.features is not None:
            arrays = [getattr(record.features, name) for name in _FIELDS]
            data["voiced"], data["sound"] = record.features.voiced, record.sound
            data["shapes"] = [array.shape for array in arrays]
            body = b"".join(array.tobytes() for array in arrays)
        header = json.dumps(data, ensure_ascii=False)
        row = (len(self), header, body, _checksum(header, body))
        try:
            self._database.execute("INSERT INTO utterances VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise self._refused(error) from error

    def __iter__(self) -> Iterator[Record]:
        """Read all utterances, one in memory at a time."""
        for position in range(len(self)):
            yield self.read(position)

    def read(self, index: int) -> Record:
        """Read one utterance by its position.

        Raises:
            SpeechError: what is on the disk is not what was written.
        """
        query = "SELECT header, body, checksum FROM utterances WHERE position = ?"
        header, body, checksum = self._database.execute(query, (index,)).fetchone()
        if _checksum(header, body) != checksum:
            raise SpeechError(f"{self.path} is damaged: delete it and prepare again")
        return _record(json.loads(header), body)

    def close(self) -> None:
        """Close the file; it stays on the disk."""
        self._database.close()

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        remove_work(self.path)


def _checksum(header: str, body: bytes) -> int:
    # SQLite notices a broken structure, but not other contents.
    return zlib.crc32(body, zlib.crc32(header.encode()))


def _record(header: dict, body: bytes) -> Record:
    features = None
    if "shapes" in header:
        arrays, offset = {}, 0
        for name, shape in zip(_FIELDS, header["shapes"], strict=True):
            dtype = np.dtype(np.int32 if name == "durations" else np.float32)
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(body, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
        features = Features(**arrays, voiced=header.get("voiced", math.nan))
    return Record(
        id=header["id"],
        text=header["text"],
        phones=tuple(header["phones"]),
        pronunciations=tuple((word, phones) for word, phones in header["pronunciations"]),
        problem=header["problem"],
        features=features,
        fingerprint=header.get("fingerprint", ""),
        sound=tuple(header["sound"]) if header.get("sound") else None,
        content=header.get("content", ""),
    )
