# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or not there, and whose damage is noticed."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import shlex
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sniper.tts.errors import SpeechError

CHECKSUMS = "checksums"


def with_home(path: str) -> str:
    """A path as a shell has it, where none has read it: `~` is the home folder.

    bash leaves `--output=~/x` and what stands in quotes alone, settings are read by no shell, and a
    folder called ~ invites "rm -r ~".
    """
    home = path == "~" or path.startswith("~/")
    return os.path.expanduser(path) if home else path


def for_shell(path: Path) -> str:
    """A path as a word of a command that a shell and our commands take for this path."""
    text = str(path)
    # Quotes keep a shell from looking for the home folder, and not `with_home`.
    return shlex.quote(f"./{text}" if text.startswith(("~", "-")) else text)


def composed(name: str) -> str:
    """One name for what file systems and editors encode in two ways: é, or e and a mark."""
    return unicodedata.normalize("NFC", name)


def named(folder: Path, name: str) -> Path:
    """The file `name` of a folder, however its accents are encoded there: macOS may take é apart
    into e and a mark (NFD) where a list of files has one letter (NFC).

    Returns:
        Where it is, or `folder / name` where there is none.
    """
    path = folder / name
    if not name.isascii() and not os.path.lexists(path):
        for form in ("NFC", "NFD"):
            other = folder / unicodedata.normalize(form, name)
            if os.path.lexists(other):
                return other
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name complete or not at all.

    Written beside it, flushed to the disk, renamed; after an error nothing is left. A link stays a
    link. A pipe or a device is written to as it is.

    Raises:
        OSError: it cannot be written; always with the file's name.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # a loop of links leads nowhere
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    # A file in the place of /dev/null would break it for everybody.
    special = target.exists() and not target.is_file()
    temporary = target if special else target.with_name(target.name + ".tmp")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                if not special:
                    file.flush()
                    # The new name may reach the disk before the content does, and stand for an
                    # empty file after a power cut.
                    os.fsync(file.fileno())
            if not special:
                os.replace(temporary, target)
        # Ctrl-C too leaves nothing behind.
        except BaseException:
            if not special:
                temporary.unlink(missing_ok=True)
            raise
        if not special:
            # The name is a part of the folder, which is flushed apart from the file.
            _flush_folder(target.parent)
    except OSError as error:
        # The caller knows `path` and not the temporary file; an error of any other file keeps its
        # name.
        if error.filename not in (None, str(temporary)):
            raise
        # A library's own error may have no number, as numpy's on a full disk has none.
        number, reason = error.errno or errno.EIO, error.strerror or str(error)
        raise OSError(number, reason, str(path)) from error


def refuse_utf16(data: bytes, where: str | Path) -> None:
    """Refuse the bytes of a text that begin as UTF-16 does, which nothing else says so clearly.

    Raises:
        SpeechError: with what to do.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SpeechError(f"{where} is UTF-16, as a spreadsheet's Unicode text: save it as UTF-8")


def make_folder_of(path: Path) -> None:
    """Make the folder that a file is to be written to.

    Raises:
        OSError: it cannot be made, with the file's name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        reason = f"expected a folder, got {in_the_way(error)}"
        raise OSError(errno.ENOTDIR, reason, str(path)) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def in_the_way(error: OSError) -> str:
    """What is where a folder was to be made, of the error of making it: a file, or a link that
    leads nowhere, which looks as if nothing were there.
    """
    path = Path(error.filename)
    path = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if path.is_symlink() and not path.exists():
        return f"{path}, a link to {os.readlink(path)}, where nothing is"
    return f"{path}, a file"


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_beside(path: Path, keys: Iterable[str]) -> None:
    """Refuses a file whose description, of its name with the suffix .json, would replace that of
    another file.

    Args:
        keys: of such a description; one with none of them is another's.

    Raises:
        SpeechError: there is a JSON file already that describes something else.
    """
    beside = path.with_suffix(".json")
    try:
        there = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # none, or of no use to anybody
    if not isinstance(there, dict) or not set(keys) & set(there):
        raise SpeechError(
            f"{beside} is there and describes something else than {path.name}: choose another name"
        )


def write_json(path: Path, data: dict) -> None:
    """Write `data` atomically, readable by a person."""
    with atomic_write(path) as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")


def checksum(path: Path) -> str:
    """CRC-32 of a file: 1.1 GB/s on one core of the machine that it was measured on, a third of a
    second for the 445 MB of the paper's model, where SHA-256 takes twice and BLAKE2 four times as
    long. It is against accidents, not against people.

    Raises:
        OSError: it cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return f"crc32:{value:08x}"


def checksum_of_bytes(content: bytes) -> str:
    """`checksum` of a file with this content."""
    return f"crc32:{zlib.crc32(content):08x}"


def sealed(data: dict[str, Any], name: str, folder: Path, files: list[str]) -> dict[str, Any]:
    """`data` with the checksums of the files beside it, and of itself.

    Args:
        data: plain values, to be written as JSON to `folder`/`name`.
        files: names in `folder`, written already.
    """
    whole = {**data, CHECKSUMS: {file: checksum(folder / file) for file in files}}
    whole[CHECKSUMS][name] = _of_values(whole, name)
    return whole


def resealed(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What `sealed` gave, after a change of its values, with their checksum anew; those of the
    files stay, since they were not looked at. Without any where there were none: older versions
    wrote none.
    """
    if not isinstance(data.get(CHECKSUMS), dict):
        return data
    whole = {**data, CHECKSUMS: dict(data[CHECKSUMS])}
    whole[CHECKSUMS][name] = _of_values(whole, name)
    return whole


def is_as_written(data: dict[str, Any], name: str) -> bool:
    """Whether what was read from the JSON file `name` is what `sealed` gave; True where there is no
    checksum: older versions wrote none.
    """
    sums = data.get(CHECKSUMS)
    return not isinstance(sums, dict) or name not in sums or sums[name] == _of_values(data, name)


def damaged_file(data: dict[str, Any], folder: Path, files: list[str]) -> str | None:
    """The first of `files` in `folder` that is not what its checksum in `data` says.

    Raises:
        OSError: one cannot be read.
    """
    sums = data.get(CHECKSUMS, {})
    for file in files if isinstance(sums, dict) else ():
        if file in sums and sums[file] != checksum(folder / file):
            return file
    return None


def _of_values(data: dict[str, Any], name: str) -> str:
    """The checksum of the values and not of the file's bytes, since a person may lay the file out
    anew.
    """
    sums = {file: value for file, value in data[CHECKSUMS].items() if file != name}
    # Through JSON once, since tuples and whole numbers as keys are read back as something else.
    plain = json.loads(json.dumps({**data, CHECKSUMS: sums}))
    return checksum_of_bytes(json.dumps(plain, sort_keys=True).encode())
