# SPDX-License-Identifier: Apache-2.0
"""A run's folder: files that are complete or not there, and one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sniper.training.settings import ConfigError
from sniper.tts.corpus.store import atomic_write

LOCK = "lock"


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` at once.

    Raises:
        OSError: it cannot be written, with its name; what was there stays.
    """
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def expect_writable(path: Path) -> None:
    """Before long work: whether `write_output` could write here; its folder is made.

    Raises:
        OSError: it could not, with its name.
    """
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_output(path: Path, data: bytes) -> None:
    """Writes what a user asked for where he said: a file is replaced whole, its folder is made, and
    a device or a pipe takes it as it comes.

    Raises:
        OSError: it cannot be written, with its name; a file that was there stays.
    """
    expect_writable(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_file(path.resolve() if path.is_file() else path, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a run's folder, on this machine and where locks reach others.

    Raises:
        ConfigError: another one is in it, with whose it is.
        OSError: the lock cannot be written.
    """
    path = folder / LOCK
    while True:
        # A lock of the kernel: it ends with the process, however that ends, so none is ever stale.
        # Of the process alone: workers that outlive a killed run by seconds hold none.
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = _owner(file.read())
            file.close()
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise ConfigError(
                f"{folder} is in use by {owner}; wait for it, or use another output=FOLDER"
            ) from None
        # The one before may have removed the file between our opening and our locking it.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _me() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # which has not said yet who it is
