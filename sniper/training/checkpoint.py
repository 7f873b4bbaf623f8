# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: dense weights as safetensors, the rest beside them, complete or not there at all.

RUN/checkpoints/step-00000120/model.safetensors   weights, dense whatever the sparsity
                              state.pt            optimizer, scheduler, masks, generators
                              meta.json           config, vocabulary, features, progress
RUN/checkpoints/index.json                        which one is the last, which the best
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1


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
    # The same update may be saved twice; a complete folder is never written over.
    name = _unused_name(folder, f"step-{step:08d}")
    try:
        _write(folder / f".writing-{name}", weights, state, meta)
        os.rename(folder / f".writing-{name}", folder / name)
        _flush(folder)
        index = {k: v for k, v in _read_index(folder).items() if (folder / v).is_dir()}
        index["last"] = name
        if best or "best" not in index:
            index["best"] = name
        _write_index(folder, index)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(folder / f".writing-{name}", ignore_errors=True)  # the disk may be full
        raise CheckpointError(
            f"checkpoint {folder / name} cannot be written: {_one_line(error)}; "
            "free the disk, then the same command goes on from the checkpoint before it"
        ) from error
    for old in folder.iterdir():
        if old.is_dir() and old.name not in index.values():
            shutil.rmtree(old, ignore_errors=True)
    return folder / name


def exists(run: Path) -> bool:
    """Whether the run has a checkpoint."""
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
    if (path / "model.safetensors").exists():
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
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"checkpoint {path}: expected format {FORMAT}, got {found}")
    return meta


def load(run_or_path: Path, which: str = "last", weights_only: bool = False) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        run_or_path, which: as `find` takes them.
        weights_only: leave out the state of optimizer and masks.

    Raises:
        CheckpointError: none there, damaged, or of another format.
    """
    path = find(run_or_path, which)
    meta = read_meta(path)
    try:
        weights = load_file(path / "model.safetensors")
        state = {}
        if not weights_only:
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    except _DAMAGE as error:
        raise _unreadable(path, error) from None
    return Checkpoint(path, weights, state, meta)


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
        f"checkpoint {path} cannot be read, it is damaged or incomplete: {_one_line(error)}"
    )


def _one_line(error: Exception) -> str:
    """The beginning of a message; torch's hold advice and stack traces behind it."""
    return " ".join(str(error).split())[:200]


def _write(
    folder: Path, weights: dict[str, Tensor], state: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Writes the files of a checkpoint and waits until they are on the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dense = {n: t.detach().cpu().contiguous() for n, t in weights.items()}
    save_file(dense, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "state.pt")
    text = json.dumps({"format": FORMAT, **meta}, ensure_ascii=False)
    (folder / "meta.json").write_text(text, encoding="utf-8")
    for file in folder.iterdir():
        _flush(file)
    _flush(folder)


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_one_line(error)}") from None
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise CheckpointError(f"{path}: expected names of checkpoints, got {index!r}")
    return index


def _write_index(folder: Path, index: dict[str, str]) -> None:
    temporary = folder / ".index.json"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, folder / "index.json")
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
