# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is there completely or not at all, whatever kills the process, and says what is
wrong when it was damaged later."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sniper.training import checkpoint
from sniper.training.checkpoint import CheckpointError


def _weights(value: float = 1.0) -> dict[str, Tensor]:
    # Channels-last in memory, as the convolutions have it.
    conv = torch.full((4, 3, 2), value).permute(0, 2, 1).contiguous().permute(0, 2, 1)
    return {"linear": torch.full((2, 3), value), "conv": conv, "steps": torch.tensor(int(value))}


def _save(run: Path, step: int, best: bool = False) -> Path:
    state = {"optimizer": {0: torch.full((3,), float(step))}, "rng": torch.get_rng_state()}
    meta = {"progress": {"update": step, "best_loss": float("inf")}, "phones": "əɹˈ"}
    return checkpoint.save(run, step, _weights(step), state, meta, best)


def _folders(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir())


def test_what_is_saved_comes_back(tmp_path: Path):
    assert not checkpoint.exists(tmp_path)
    path = _save(tmp_path, 7)
    assert checkpoint.exists(tmp_path)
    assert path == checkpoint.find(tmp_path) == tmp_path / "checkpoints" / "step-00000007"
    for where in (tmp_path, path):
        saved = checkpoint.load(where)
        assert saved.path == path
        assert all(saved.weights[n].equal(t) for n, t in _weights(7).items())
        assert saved.state["optimizer"][0].tolist() == [7.0, 7.0, 7.0]
        assert saved.meta["progress"] == {"update": 7, "best_loss": float("inf")}
        assert saved.meta["phones"] == "əɹˈ"
    assert checkpoint.load(tmp_path, weights_only=True).state == {}


def test_last_and_best_are_kept_and_nothing_else(tmp_path: Path):
    _save(tmp_path, 1)  # the first is the best for want of another
    _save(tmp_path, 2, best=True)
    _save(tmp_path, 3)
    assert _folders(tmp_path) == ["step-00000002", "step-00000003"]
    assert checkpoint.load(tmp_path, "best").meta["progress"]["update"] == 2
    assert checkpoint.load(tmp_path, "last").meta["progress"]["update"] == 3
    _save(tmp_path, 3, best=True)  # the same update again does not touch what is there
    assert _folders(tmp_path) == ["step-00000003-2"]


_CALLS = (
    (checkpoint, "save_file", 1),
    (checkpoint.torch, "save", 1),
    (Path, "write_text", 0),
    (Path, "mkdir", None),
    (os, "fsync", None),
    (os, "rename", None),
    (os, "replace", None),
    (shutil, "rmtree", None),
)


def _save_and_die(run: Path, at: int) -> bool:
    """Saves step 2 in a child that kills itself before its `at`-th call of something that writes,
    leaving half a file where the call would have written one; whether it came to die."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(call, place):
            def wrapped(*args, **kwargs):
                nonlocal count
                if count == at:
                    if place is not None:
                        with open(args[place], "wb") as file:
                            file.write(b"PK\x03\x04 half a file")
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*args, **kwargs)

            return wrapped

        for owner, name, place in _CALLS:
            setattr(owner, name, deadly(getattr(owner, name), place))
        try:
            _save(run, 2, best=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment_of_a_save(tmp_path: Path):
    for at in range(100):
        run = tmp_path / str(at)
        _save(run, 1)
        died = _save_and_die(run, at)
        saved = checkpoint.load(run)
        step = saved.meta["progress"]["update"]
        assert step in (1, 2)
        assert all(saved.weights[n].equal(t) for n, t in _weights(step).items())
        assert saved.state["optimizer"][0].tolist() == [step] * 3
        assert checkpoint.load(run, "best").meta["progress"]["update"] == step
        # The next save works and leaves nothing of the one that failed.
        path = _save(run, 3, best=True)
        assert _folders(run) == [path.name]
        assert {p.name for p in (run / "checkpoints").iterdir()} == {path.name, "index.json"}
        if not died:
            break
    assert step == 2 and at > 15  # it survived only after all of the calls


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path: Path):
    _save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large, small = {"w": torch.zeros(300_000)}, {"w": torch.zeros(1)}
    for weights, state in ((large, small), (small, large)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        try:
            with pytest.raises(
                CheckpointError, match="cannot be written: .*free the disk"
            ) as error:
                checkpoint.save(tmp_path, 2, weights, state, {}, best=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value)
        assert _folders(tmp_path) == ["step-00000001"]
    assert checkpoint.load(tmp_path).meta["progress"]["update"] == 1


def test_a_bug_in_what_is_saved_is_not_called_a_full_disk(tmp_path: Path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, _weights(), {}, {"model": torch.nn.Linear(1, 1)}, best=False)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "zeros", "text"])
def test_damage_is_one_line_that_names_the_checkpoint(name: str, damage: str, tmp_path: Path):
    path = _save(tmp_path, 1)
    file = path / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changed = {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "garbage": bytes(range(256)) * 10,
            "zeros": bytes(len(content)),
            "text": b"hello, world, this is no checkpoint",
        }
        file.write_bytes(changed[damage])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("meta", ["[]", "{}", '{"format": 2}', '"text"'])
def test_another_format_is_named(meta: str, tmp_path: Path):
    path = _save(tmp_path, 1)
    (path / "meta.json").write_text(meta)
    with pytest.raises(CheckpointError, match="expected format 1, got (2|None)"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("index", ["", "[1]", '{"last": 3}', "{"])
def test_a_damaged_index(index: str, tmp_path: Path):
    _save(tmp_path, 1)
    (tmp_path / "checkpoints" / "index.json").write_text(index)
    with pytest.raises(CheckpointError, match="index.json"):
        checkpoint.exists(tmp_path)


def test_a_lost_checkpoint_is_not_taken_for_a_new_run(tmp_path: Path):
    shutil.rmtree(_save(tmp_path, 1))
    assert checkpoint.exists(tmp_path)
    with pytest.raises(CheckpointError, match="step-00000001 cannot be read"):
        checkpoint.load(tmp_path)
    path = _save(tmp_path, 2)
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert index == {"last": path.name, "best": path.name}


def test_nothing_there(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            CheckpointError, match="expected the folder of a run or of a checkpoint"
        ):
            checkpoint.load(path)
