# SPDX-License-Identifier: Apache-2.0
"""A run's folder: files that are complete or not there, and one run at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sniper.training.settings import ConfigError
from sniper.tts.errors import FolderInUse
from sniper.tts.files import atomic_write
from sniper.tts.locks import only_one


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` at once.

    Raises:
        OSError: it cannot be written, with its name; what was there stays.
    """
    with atomic_write(path) as file:
        file.write(data)


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keeps every other run, preparation and comparison out of a run's folder.

    Raises:
        ConfigError: another one is in it, with whose it is.
        OSError: the lock cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(folder))
        except FolderInUse as error:
            raise ConfigError(f"{error}; wait for it, or use another output=FOLDER") from None
        yield
