# SPDX-License-Identifier: Apache-2.0
"""What every case of the campaign needs: commands with their outcome, folders and their contents,
and the two outcomes that are right: the right result, or one clear error and nothing lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from processes import FORK
from speech import everything

from sniper.tts.locks import LOCK

# What a run may leave beside its results, whatever happened to it.
TRACES = re.compile(r"(^|/)(lock|\.lock|tensorboard(/.*)?)$")


def seeded(*name: object) -> random.Random:
    """Random numbers that depend on a case's name alone."""
    return random.Random(zlib.crc32(repr(name).encode()))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its status, what it printed, and its warnings on standard error."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin an error."""
        return [line for line in self.err.splitlines() if re.match(r"(\S.*: )?error: ", line)]


def call(command: str, *arguments: object) -> Outcome:
    """Runs `python -m sniper.COMMAND` in this process; an exception from it fails the case."""
    name = "sniper.compare.__main__" if command == "compare" else f"sniper.{command}"
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            status = import_module(name).main(list(map(str, arguments)))
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 1
        finally:
            torch.set_num_threads(threads)
    said = "".join(f"warning: {one.message}\n" for one in warned)
    return Outcome(status, out.getvalue(), err.getvalue() + said)


def refused(outcome: Outcome, *names: str, statuses: Iterable[int] = (2,)) -> str:
    """Holds an outcome to what a refusal is: a documented status and one error that has `names`.

    Returns:
        The error, all of its lines.
    """
    said = f"status {outcome.status}\n{outcome.out}{outcome.err}"
    assert outcome.status in statuses, said
    assert "Traceback" not in outcome.out + outcome.err, said
    assert len(outcome.errors) == 1, f"expected one error\n{said}"
    text = outcome.err[outcome.err.index(outcome.errors[0]) :]
    assert not names or any(name in text for name in names), f"expected one of {names}\n{said}"
    raw = re.search(r"\b\w+Error\b|<\w+ object at|\bNoneType\b", text)
    assert raw is None, f"no plain words: {said}"
    return text


def tree(folder: Path, leave_out: re.Pattern[str] = TRACES) -> dict[str, str]:
    """What lies in a folder: a digest of each file, the kind of everything else."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if leave_out.search(name):
            continue
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def nothing_lost(before: dict[str, str], folder: Path, *, may_come: str = r"$^") -> None:
    """Every file is as it was, and none has come but what matches `may_come`; no half files."""
    after = tree(folder)
    changed = [name for name, what in before.items() if after.get(name) != what]
    assert not changed, f"changed or lost: {changed}"
    come = [name for name in after if name not in before and not re.search(may_come, name)]
    assert not come, f"left behind: {come}"


def linked(source: Path, target: Path) -> Path:
    """A copy of a folder by hard links, so that it costs nothing.

    What the product writes in place, a lock or a database, is copied; everything else it replaces,
    and the shared original is compared at the session's end.
    """

    def link(one: str, other: str) -> None:
        in_place = Path(one).name in (LOCK, ".lock", "prepare.work")
        shutil.copy2(one, other) if in_place else os.link(one, other)

    shutil.copytree(source, target, copy_function=link)
    return target


def put(path: Path, content: bytes) -> None:
    """Writes a file anew, never through a hard link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


TEXT = "The grey horse slept by the river."


@dataclass(frozen=True)
class Trained:
    """A run after the first of two epochs, and what it becomes without a disturbance.

    Args:
        corpus: the prepared features.
        config: the settings' YAML; its output is `run` where a case puts it.
        run: the folder after one epoch.
        whole: the folder after both.
        spoken: bytes of the wav that says TEXT after one epoch.
    """

    corpus: Path
    config: Path
    run: Path
    whole: Path
    spoken: bytes

    @property
    def result(self) -> dict:
        """All that training ends in."""
        return everything(self.whole)

    def arguments(self, output: Path, corpus: Path | None = None, epochs: int = 2) -> list[str]:
        """Of the command that trains to the end."""
        root = f"data.root={corpus or self.corpus}"
        return ["--config", str(self.config), f"output={output}", root, f"train.epochs={epochs}"]


@dataclass(frozen=True)
class Matrix:
    """A finished comparison of two arms."""

    file: Path
    out: Path

    def options(self, out: Path) -> list[str]:
        return ["--config", str(self.file), "--output", str(out), "--threads", "1"]


# --- damage -----------------------------------------------------------------------------------

Damage = Callable[[Path, random.Random], None]


def _cut(share: float) -> Damage:
    def damage(path: Path, draw: random.Random) -> None:
        content = path.read_bytes()
        put(path, content[: min(len(content) - 1, round(share * len(content)))])

    return damage


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    put(path, bytes(content))


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, draw: random.Random) -> None:
    """What nobody can open, root neither."""
    path.unlink()
    path.symlink_to(path.name)


def _tail(path: Path, draw: random.Random) -> None:
    """The length is right, the end was never written: what a power cut leaves."""
    content = path.read_bytes()
    half = len(content) // 2
    put(path, content[:half] + bytes(len(content) - half))


def content(data: bytes) -> Damage:
    return lambda path, draw: put(path, data)


DAMAGES: dict[str, Damage] = {
    "empty": content(b""),
    "cut-1": lambda path, draw: put(path, path.read_bytes()[:1]),
    "cut-25": _cut(0.25),
    "cut-50": _cut(0.5),
    "cut-90": _cut(0.9),
    "cut-last": _cut(1.0),
    "flip-a": _flip,
    "flip-b": _flip,
    "flip-c": _flip,
    "zeros": _tail,
    "longer": lambda path, draw: put(path, path.read_bytes() + b"more"),
    "random": lambda path, draw: put(path, draw.randbytes(1000)),
    "other-kind": content(b"id|a table of something else\n" * 9),
    "folder": _folder,
    "loop": _loop,
    "removed": lambda path, draw: path.unlink(),
}
# JSON that is whole and says nothing that is ours.
JSON_DAMAGES: dict[str, Damage] = {
    **DAMAGES,
    "json-list": content(b"[]"),
    "json-object": content(b"{}"),
    "json-null": content(b"null"),
    "json-deep": content(b"[" * 100_000),
    "json-number": content(b"1e999"),
}


# --- kills ------------------------------------------------------------------------------------


def _child(
    module: str,
    arguments: list[str],
    log: str,
    workplace: dict[str, str],
    before: Callable[[], object],
) -> None:
    os.setsid()
    os.environ.update(workplace)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    # Not the streams that pytest captures with, which this process has inherited.
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    torch.set_num_threads(1)
    before()
    from sniper.command import exit_with

    name = "sniper.compare.__main__" if module == "compare" else f"sniper.{module}"
    exit_with(lambda: import_module(name).main(arguments))


def nothing() -> None:
    """What a command does before it begins, where a case wants nothing else."""


@contextlib.contextmanager
def started(
    command: str,
    *arguments: object,
    log: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], object] = nothing,
) -> Iterator[Any]:
    """A command in a process of its own, in a session of its own, with all imports done already: a
    random moment then lies in its work. What it leaves running is killed at the end.

    Args:
        log: both streams.
        environment: in addition to this process's.
        before: called in the process before the command; a module's function, or a partial of one.
    """
    words = list(map(str, arguments))
    keep = {k: v for k, v in os.environ.items() if k.startswith(("SNIPER_", "OMP_"))}
    keep.update(environment or {})
    process = FORK.Process(target=_child, args=(command, words, str(log), keep, before))
    process.start()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def until_free(folder: Path, seconds: float = 60.0) -> None:
    """Waits until orphans of a killed command have let go of a folder's locks."""
    import fcntl

    end = time.monotonic() + seconds
    for path in folder.rglob(".lock"):
        with path.open() as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < end, f"{path} stays locked"
                    time.sleep(0.02)
