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
    """A checkpoint that cannot be read; the text is the whole message."""


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
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # The same update may be saved twice; a complete folder is never written over.
    name = _unused_name(folder, f"step-{step:08d}")
    temporary = folder / f".writing-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    dense = {n: t.detach().cpu().contiguous() for n, t in weights.items()}
    save_file(dense, temporary / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, temporary / "state.pt")
    (temporary / "meta.json").write_text(json.dumps({"format": FORMAT, **meta}, ensure_ascii=False))
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    index = _read_index(folder)
    target = folder / name
    os.rename(temporary, target)
    _flush(folder)
    index["last"] = name
    if best or "best" not in index:
        index["best"] = name
    _write_index(folder, index)
    for old in folder.iterdir():
        if old.is_dir() and old.name not in index.values():
            shutil.rmtree(old, ignore_errors=True)
    return target


def mark_best(run: Path) -> None:
    """Names the last checkpoint the best."""
    folder = run / "checkpoints"
    index = _read_index(folder)
    _write_index(folder, {**index, "best": index["last"]})


def exists(run: Path) -> bool:
    """Whether the run has a checkpoint."""
    return "last" in _read_index(run / "checkpoints")


def load(run_or_path: Path, which: str = "last", weights_only: bool = False) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        run_or_path: a run's folder, or the folder of one checkpoint.
        which: `last` or `best`, for a run's folder.
        weights_only: leave out the state of optimizer and masks.

    Raises:
        CheckpointError: none there, damaged, or of another format.
    """
    path = Path(run_or_path)
    if not (path / "model.safetensors").exists():
        index = _read_index(path / "checkpoints")
        if which not in index:
            raise CheckpointError(
                f"checkpoint: expected a run or a checkpoint folder with a {which} checkpoint, "
                f"got {path}"
            )
        path = path / "checkpoints" / index[which]
    try:
        meta = json.loads((path / "meta.json").read_text())
        weights = load_file(path / "model.safetensors")
        state = {}
        if not weights_only:
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    except (OSError, ValueError, RuntimeError, SafetensorError, EOFError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: expected format {FORMAT}, got {meta.get('format')}"
        )
    return Checkpoint(path, weights, state, meta)


def _read_index(folder: Path) -> dict[str, str]:
    try:
        index = json.loads((folder / "index.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{folder / 'index.json'}: not JSON: {error}") from None
    return {k: v for k, v in index.items() if (folder / v).is_dir()}


def _write_index(folder: Path, index: dict[str, str]) -> None:
    temporary = folder / ".index.json"
    temporary.write_text(json.dumps(index))
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
