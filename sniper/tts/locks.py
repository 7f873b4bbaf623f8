# SPDX-License-Identifier: Apache-2.0
"""One process at a time works in a folder, and the next one is told whose it is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sniper.tts.errors import FolderInUse, FolderLost

LOCK = ".sniper-lock"

# Folders that this process is working in already: by which path, and with which lock.
_held: dict[tuple[int, int], tuple[str, os.stat_result]] = {}


@contextlib.contextmanager
def only_one(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Keeps every other process out of a folder, on this machine and where locks reach others.

    A lock of the kernel: it ends with the process, however that ends, so none is ever stale. Of the
    process alone: workers that outlive a killed parent by seconds hold none, and what a process
    does inside of its own lock needs no second one.

    Args:
        wait: seconds in which the other may finish.

    Raises:
        FolderInUse: another process is in it, with whose it is.
        OSError: the lock cannot be written, with its name.
    """
    place = _place(folder)
    if place in _held:
        yield
        return
    path = folder / LOCK
    until = time.monotonic() + wait
    while (file := _taken(path, time.monotonic() < until)) is None:
        time.sleep(0.1)
    _held[place] = os.path.abspath(folder), os.fstat(file.fileno())
    try:
        with file:
            # Somebody else's file under our name is locked as well, and stays what it is.
            ours = _is_ours(file)
            if ours:
                file.truncate(0)
                file.write(json.dumps(_me()))
                file.flush()
            try:
                yield
            finally:
                # While it is still locked: afterwards it could be the next one's, as it is where
                # somebody has removed our lock or replaced the folder.
                if ours and _is_at(path, file):
                    path.unlink(missing_ok=True)
    finally:
        del _held[place]


def refuse_lost(folder: Path) -> None:
    """Refuses to work on in a folder that this process has locked and holds no more. Of a folder
    that it has not locked it says nothing.

    Raises:
        FolderLost: it was moved, removed or replaced, or its lock was, and another process is in.
        OSError: it cannot be looked at.
    """
    path = os.path.abspath(folder)
    for place, (name, lock) in list(_held.items()):
        if name != path:
            continue
        try:
            there = os.stat(folder / LOCK)
        except (FileNotFoundError, NotADirectoryError):
            # The lock alone may be gone; whoever comes next makes one of their own.
            if not folder.is_dir() or _place(folder) != place:
                raise FolderLost(
                    f"{folder} was moved, removed or replaced while this process worked in it"
                ) from None
            continue
        if not os.path.samestat(there, lock):
            text = (folder / LOCK).read_text(encoding="utf-8", errors="replace")
            raise FolderLost(
                f"{folder} is in use by {_owner(text) or 'another process'}, since this process's "
                "lock was removed"
            )


def _place(folder: Path) -> tuple[int, int]:
    """What tells a folder from every other."""
    # By device and inode and not by path, since several paths may lead to one folder.
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _taken(path: Path, patient: bool) -> TextIO | None:
    """The locked file; None where it is to be tried again."""
    # Mode "w" would erase who holds the lock.
    file = open(path, "a+", encoding="utf-8", errors="replace", opener=_not_through_a_link)
    try:
        # Not flock, whose locks a forked child inherits.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder of the lock may have removed the file between our opening and our locking
        # it.
        if _is_at(path, file):
            return file
    except OSError as error:
        file.seek(0)
        owner = _owner(file.read()) or "another process"  # which has not said yet who it is
        # POSIX lets a system choose which of these two a held lock gives.
        if not isinstance(error, (BlockingIOError, PermissionError)):
            file.close()
            raise OSError(error.errno, error.strerror, str(path)) from None
        if not patient:
            file.close()
            raise FolderInUse(f"{path.parent} is in use by {owner}") from None
    file.close()
    return None


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether the open file is the one under its name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _not_through_a_link(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "is a link, where the lock of this folder belongs; remove it"
            raise OSError(errno.ELOOP, reason, str(path)) from None
        raise


def _is_ours(file: TextIO) -> bool:
    """Whether a lock's file may be written to: new, or left by a process that had no time."""
    file.seek(0)
    text = file.read(100_000)
    # After a power cut a file may hold zeros.
    return not text.strip("\0 \n") or _owner(text) is not None


def _me() -> dict[str, Any]:
    # sys.argv lacks what the interpreter itself was given, such as -m.
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(command.split())[:300],
    }


def _owner(text: str) -> str | None:
    try:
        owner = json.loads(text)
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        return who + (f" ({owner['command']})" if owner.get("command") else "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
