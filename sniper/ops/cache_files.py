# SPDX-License-Identifier: Apache-2.0
"""The folder in which measurements and verdicts are kept, for several processes at once."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def cache_folder() -> Path:
    """`$SNIPER_CACHE_DIR`, or `~/.cache/sniper`.

    Raises:
        RuntimeError: there is neither $SNIPER_CACHE_DIR nor a home directory.
    """
    folder = os.environ.get("SNIPER_CACHE_DIR")
    return Path(folder) if folder else Path.home() / ".cache" / "sniper"


@contextlib.contextmanager
def locked(name: str, patience: float) -> Iterator[None]:
    """One process or thread at a time is inside, by the lock file `name` in the folder; a process
    that ends gives it up. Where no lock can be had, as in a read-only home, nobody waits.

    Args:
        patience: seconds, after which this one goes on without the lock, with a warning: a process
            that was stopped while it held one would stop all others too.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError, ImportError):
            # Here, since Windows has none, and then nobody waits.
            import fcntl

            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            # The file is never removed: who waits for it would then lock a file that nobody else
            # sees.
            file = stack.enter_context(open(folder / name, "w"))
            end = time.monotonic() + patience
            while not _try_lock(fcntl, file):
                if time.monotonic() > end:
                    warnings.warn(
                        f"{folder / name}: another process has held this lock for {patience:g} s "
                        "and may be stopped; going on without it",
                        stacklevel=4,
                    )
                    break
                time.sleep(0.01)
        yield


def _try_lock(fcntl: Any, file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace_file(path: Path, text: str) -> bool:
    """Writes a file in one go; whether the folder could be written."""
    # A name for each process, as two may write at once where no lock can be had.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True
