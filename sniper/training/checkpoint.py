# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: dense weights as safetensors, the rest beside them, complete or not there at all.

RUN/checkpoints/step-00000120/model.safetensors   weights, dense whatever the sparsity
                              state.pt            optimizer, scheduler, masks, generators
                              meta.json           config, vocabulary, features, progress, checksums
RUN/checkpoints/index.json                        which one is the last, which the best

The index is a convenience: without it the complete checkpoints are found where they lie. What else
somebody keeps in these folders is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sniper.tts.errors import FolderLost
from sniper.tts.files import (
    atomic_write,
    damaged_file,
    in_the_way,
    is_as_written,
    resealed,
    sealed,
)
from sniper.tts.locks import refuse_lost
from sniper.tts.processes import held_signals

FORMAT = 1
_WEIGHTS, _STATE, _META, _INDEX = "model.safetensors", "state.pt", "meta.json", "index.json"
_FILES = (_WEIGHTS, _STATE, _META)
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_WRITING = ".writing-"
# The system's words for a disk, a quota and a limit that are exhausted.
_FULL = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_T = TypeVar("_T")


class CheckpointError(Exception):
    """A checkpoint that cannot be read or written; the text is the whole message."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        path: its folder.
        weights: the model's state dict, on the CPU.
        state: optimizer, scheduler, masks, generators; empty when only weights were asked for.
        meta: config, vocabulary, feature settings, statistics, progress.
    """

    path: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]
    meta: dict[str, Any]


def save(
    run: Path,
    step: int,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    meta: dict[str, Any],
    best: bool,
) -> Path:
    """Writes a checkpoint, names it the last (and the best), and drops those that are neither.

    Whenever the process dies, the checkpoint before stays loadable: the folder is written under
    another name, flushed, renamed, and only then does the index name it.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; the one before stays the last.
    """
    folder = run / "checkpoints"
    _refuse_lost(run)
    # The same update may be saved twice; a complete folder is never written over.
    name = _unused_name(folder, f"step-{step:08d}")
    try:
        _write(folder / f"{_WRITING}{name}", weights, state, meta)
        # A rename within a file system happens whole or not at all.
        os.rename(folder / f"{_WRITING}{name}", folder / name)
        _flush(folder)
        index = {k: v for k, v in _read_index(folder).items() if (folder / v).is_dir()}
        index["last"] = name
        if best or "best" not in index:
            index["best"] = name
        _write_index(folder, index)
    except (OSError, RuntimeError, SafetensorError) as error:
        _remove(folder / f"{_WRITING}{name}")  # the disk may be full
        why = _why_not_written(error)
        mend = "; mend that, then the same command"
        if any(word in why for word in _FULL):
            mend = "; free the disk, then the same command"
        raise CheckpointError(
            f"checkpoint {folder / name} cannot be written: {why}{mend} {_goes_on(run)}"
        ) from error
    # Last, when the index no longer names them: a kill before this leaves a folder too many, never
    # one too few.
    for old in _own(folder):
        if old.name not in index.values():
            _remove(old)
    return folder / name


def _refuse_lost(run: Path) -> None:
    """Two trainings would mix their checkpoints where a folder was removed under the first, and
    one that was moved would leave its best behind.
    """
    try:
        refuse_lost(run)
    except FolderLost as error:
        raise CheckpointError(
            f"checkpoint: {error}; nothing more is written there. Where it was moved to, its last "
            "checkpoint goes on with output=FOLDER"
        ) from None


def _why_not_written(error: BaseException) -> str:
    """The system's word where there is one: torch's writer covers it with an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if cause is not error and isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return _one_line(error)


def _goes_on(run: Path) -> str:
    with contextlib.suppress(CheckpointError):
        if not exists(run):
            return "begins anew, there is no checkpoint before it"
    return "goes on from the checkpoint before it"


def delete(run: Path) -> None:
    """Removes all checkpoints of a run, and nothing else that lies among them.

    Raises:
        CheckpointError: where their folder belongs is a link to nowhere, or a file.
    """
    folder = run / "checkpoints"
    _refuse_in_the_way(folder)
    for path in _own(folder):
        _remove(path)
    for name in (_INDEX, f".{_INDEX}"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody keeps something in it
        folder.rmdir()


def would_delete(run: Path, path: Path) -> bool:
    """Whether `delete` of a run takes the weights of the checkpoint in folder `path`, which may be
    a link or hold links.
    """
    home = (path / _WEIGHTS).resolve().parent
    return any(own.resolve() == home for own in _own(run / "checkpoints"))


def _own(folder: Path) -> list[Path]:
    """The folders of checkpoints, those included whose writing was broken off."""
    if not folder.is_dir():
        return []
    paths = [p for p in folder.iterdir() if _NAME.fullmatch(p.name.removeprefix(_WRITING))]
    # A link may lead to somebody's archive.
    return [p for p in paths if p.is_dir() and not p.is_symlink()]


def _holds_ours(folder: Path) -> bool:
    # --fresh leaves a folder under one of our names where somebody keeps files in it; that is no
    # checkpoint.
    return any((folder / name).is_file() for name in _FILES)


def _number(folder: Path) -> tuple[int, ...]:
    """Update and repetition in a checkpoint's name, for sorting."""
    found = _NAME.fullmatch(folder.name)
    return tuple(int(n or 0) for n in found.groups()) if found else ()


def _remove(folder: Path) -> None:
    """Removes our files, and the folder if that leaves it empty."""
    for name in _FILES:
        with contextlib.suppress(OSError):  # a folder under this name is somebody else's
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def exists(run: Path) -> bool:
    """Whether the run has a checkpoint.

    Raises:
        CheckpointError: it had one, and what lies there is incomplete.
    """
    return "last" in _read_index(run / "checkpoints")


def find(run_or_path: Path, which: str = "last") -> Path:
    """The folder of a checkpoint, given that of its run or its own.

    Args:
        run_or_path: a run's folder, or the folder of one checkpoint.
        which: `last` or `best`, for a run's folder.

    Raises:
        CheckpointError: none there.
    """
    path = Path(run_or_path)
    # A checkpoint that was copied out of its run has no index beside it.
    if (path / _WEIGHTS).exists():
        return path
    index = _read_index(path / "checkpoints")
    if which not in index:
        raise CheckpointError(
            f"checkpoint: expected the folder of a run or of a checkpoint with a {which} "
            f"checkpoint, got {path}"
        )
    return path / "checkpoints" / index[which]


def read_meta(path: Path) -> dict[str, Any]:
    """Config, vocabulary, features and progress of the checkpoint in folder `path`.

    Raises:
        CheckpointError: damaged, or of another format.
    """
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"checkpoint {path}: expected format {FORMAT}, got {found}")
    if not is_as_written(meta, _META):
        raise damaged(path, _META, "it is not what was written, its checksum is another")
    return meta


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Replaces what `read_meta` gave, at once; weights and state stay.

    Raises:
        CheckpointError: it cannot be written; what was there stays.
    """
    try:
        with atomic_write(path / _META) as file:
            file.write(json.dumps(resealed(meta, _META), ensure_ascii=False).encode())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be changed: {_one_line(error)}; it is as it was"
        ) from error


def load(run_or_path: Path, which: str = "last", weights_only: bool = False) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        run_or_path, which: as `find` takes them.
        weights_only: leave out the state of optimizer and masks.

    Raises:
        CheckpointError: none there, damaged, or of another format.
    """
    return _newest(run_or_path, which, lambda path: _load(path, weights_only))


def load_meta(run_or_path: Path, which: str = "last") -> dict[str, Any]:
    """What `read_meta` gives of the checkpoint that `find` finds.

    Raises:
        CheckpointError: none there, damaged, or of another format.
    """
    return _newest(run_or_path, which, read_meta)


def _newest(run_or_path: Path, which: str, read: Callable[[Path], _T]) -> _T:
    """What is read of a checkpoint; of the next one, where whoever trains has replaced it while it
    was read, as happens to those who listen to a run or report on it.
    """
    path = find(run_or_path, which)
    while True:
        try:
            return read(path)
        except CheckpointError:
            before, path = path, find(run_or_path, which)
            if path == before:
                raise


def _load(path: Path, weights_only: bool) -> Checkpoint:
    meta = read_meta(path)
    state: object = {}
    try:
        _verify(path, meta, [_WEIGHTS] if weights_only else [_WEIGHTS, _STATE])
        # Both readers swallow the exception of Ctrl-C now and then, and fail as of a damaged file.
        with held_signals():
            weights = load_file(path / _WEIGHTS)
            if not weights_only:
                state = torch.load(path / _STATE, weights_only=True, map_location="cpu")
    except _DAMAGE as error:
        raise _unreadable(path, error) from None
    if not isinstance(state, dict):
        raise damaged(path, _STATE, f"expected a dict, got {type(state).__name__}")
    return Checkpoint(path, weights, state, meta)


def section(saved: Checkpoint, name: str) -> dict[str, Any]:
    """A part of what `meta.json` says.

    Raises:
        CheckpointError: it is not there, or is something else than a mapping.
    """
    value = saved.meta.get(name)
    if not isinstance(value, dict):
        raise damaged(saved.path, _META, f"expected a mapping for {name}, got {value!r:.60}")
    return value


def damaged(path: Path, file: str, what: str) -> CheckpointError:
    """That a file of the checkpoint in `path` cannot be used, why, and what to do."""
    return CheckpointError(
        f"checkpoint {path} cannot be read, it is damaged or incomplete: {file}: {what}; "
        + _remedy(path)
    )


def _remedy(path: Path) -> str:
    index = path.parent / _INDEX
    return (
        f"remove that folder and {index} to go on from another checkpoint if there is one, or "
        "start anew with --fresh"
    )


def _verify(path: Path, meta: dict[str, Any], names: list[str]) -> None:
    """Compares checksums; checkpoints of older versions have none."""
    other = damaged_file(meta, path, names)
    if other is not None:
        raise damaged(path, other, "it is not what was written, its checksum is another")


# What the two readers raise for a file that is missing, cut off or overwritten.
_DAMAGE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} cannot be read, it is damaged or incomplete: {_one_line(error)}; "
        + _remedy(path)
    )


def _one_line(error: BaseException) -> str:
    """The beginning of a message; torch's hold advice and stack traces behind it."""
    return " ".join(str(error).split())[:200]


def _write(
    folder: Path, weights: dict[str, Tensor], state: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Writes the files of a checkpoint and waits until they are on the disk."""
    _remove(folder)
    folder.mkdir(parents=True)
    dense = {n: t.detach().cpu().contiguous() for n, t in weights.items()}
    save_file(dense, folder / _WEIGHTS, metadata={"format": "pt"})
    # By a file of Python's, whose error says why: torch's own writer does not.
    with (folder / _STATE).open("wb") as file:
        torch.save(state, file)
    whole = sealed({"format": FORMAT, **meta}, _META, folder, [_WEIGHTS, _STATE])
    (folder / _META).write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    for file in folder.iterdir():
        _flush(file)
    _flush(folder)


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / _INDEX
    try:
        text = path.read_text(encoding="utf-8")
        index = json.loads(text) if text.strip("\0 \n") else _found(folder)
    except (FileNotFoundError, NotADirectoryError):
        _refuse_in_the_way(folder)
        return _found(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {_one_line(error)}; remove it, the complete checkpoints are "
            "found without it"
        ) from None
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise CheckpointError(
            f"{path}: expected names of checkpoints, got {index!r:.60}; remove it, the complete "
            "checkpoints are found without it"
        )
    # An index that names no last checkpoint must not begin the run anew over those that are there.
    return index if "last" in index else _found(folder)


def _refuse_in_the_way(folder: Path) -> None:
    """Refuses a link to a disk that is not there, whose checkpoints would be taken for none."""
    if os.path.lexists(folder) and not folder.is_dir():
        found = in_the_way(FileExistsError(errno.EEXIST, "", str(folder)))
        raise CheckpointError(
            f"checkpoint: expected a folder, got {found}; bring back what belongs there, or remove "
            "it to start anew"
        )


def _found(folder: Path) -> dict[str, str]:
    """The index that belongs to the complete checkpoints in a folder.

    Raises:
        CheckpointError: there are checkpoints, and not one is complete.
    """
    there = [p for p in _own(folder) if not p.name.startswith(_WRITING) and _holds_ours(p)]
    there.sort(key=_number)
    complete = [p for p in there if all((p / name).is_file() for name in _FILES)]
    if not complete:
        if there:
            raise CheckpointError(
                f"checkpoint {there[-1]} is incomplete, and no other is there; start anew with "
                "--fresh"
            )
        return {}
    return {"last": complete[-1].name, "best": min(complete, key=_held_out_loss).name}


def _held_out_loss(path: Path) -> float:
    """The loss after which a checkpoint was written; infinite where that is not known."""
    try:
        progress = json.loads((path / _META).read_text(encoding="utf-8"))["progress"]
        # In the middle of an epoch the weights are not those of the last row.
        loss = progress["history"][-1]["valid"]["total"]
        return float("inf") if progress["batch"] else float(loss)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return float("inf")


def _write_index(folder: Path, index: dict[str, str]) -> None:
    temporary = folder / f".{_INDEX}"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, folder / _INDEX)
    _flush(folder)


def _unused_name(folder: Path, name: str) -> str:
    candidates = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(c for c in candidates if not (folder / c).exists())


def _flush(path: Path) -> None:
    """To the disk, also the entries of a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
