# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is there completely or not at all, whatever kills the process, and says what is
wrong when it was damaged later."""

from __future__ import annotations

import errno
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
from sniper.tts.locks import LOCK, only_one


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


@pytest.mark.parametrize("where, name", [(checkpoint, "load_file"), (checkpoint.torch, "load")])
def test_a_reader_that_swallows_ctrl_c_is_no_damage(tmp_path: Path, monkeypatch, where, name: str):
    """As safetensors' does, which then fails with an error of its own."""
    read = getattr(where, name)

    def swallow(*args, **settings):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("could not determine the shape of object") from None
        return read(*args, **settings)

    _save(tmp_path, 7)
    monkeypatch.setattr(where, name, swallow)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(tmp_path)


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
    (os, "unlink", None),
    (os, "rmdir", None),
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
                        target = args[place]  # a path, or a file that is open
                        target = target.name if hasattr(target, "fileno") else target
                        with open(target, "wb") as file:
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
        assert "File too large" in str(error.value)  # the system's word, here of a limit
        assert str(error.value).endswith("goes on from the checkpoint before it")
        assert "\n" not in str(error.value)
        assert _folders(tmp_path) == ["step-00000001"]
    assert checkpoint.load(tmp_path).meta["progress"]["update"] == 1


def _weights_fail(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The system refuses to write them, with this number."""

    def save_file(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def test_the_first_checkpoint_has_none_before_it(tmp_path: Path, monkeypatch):
    _weights_fail(monkeypatch, errno.ENOSPC)
    with pytest.raises(CheckpointError) as error:
        _save(tmp_path, 1)
    assert "No space left on device" in str(error.value)
    assert str(error.value).endswith("begins anew, there is no checkpoint before it")


def test_what_no_room_helps_is_not_called_a_full_disk(tmp_path: Path, monkeypatch):
    _save(tmp_path, 1)
    _weights_fail(monkeypatch, errno.EROFS)
    with pytest.raises(CheckpointError) as error:
        _save(tmp_path, 2)
    assert "Read-only file system; mend that, then" in str(error.value)


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_saved_in_a_folder_that_was_moved(tmp_path: Path, replaced: bool):
    """Nor in one that another training has begun in since: their checkpoints would mix."""
    run = tmp_path / "run"
    run.mkdir()
    with only_one(run):
        _save(run, 1)
        run.rename(tmp_path / "moved")
        if replaced:
            shutil.copytree(tmp_path / "moved", run, ignore=shutil.ignore_patterns(LOCK))
        with pytest.raises(CheckpointError, match="moved, removed or replaced .*output=FOLDER"):
            _save(run, 2)
    assert run.exists() == replaced and (not replaced or _folders(run) == ["step-00000001"])
    assert checkpoint.load(tmp_path / "moved").meta["progress"]["update"] == 1


def test_one_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch):
    """As whoever listens to a run in training meets it: they get the next."""
    _save(tmp_path, 1)
    read, saved = checkpoint.load_file, []

    def meanwhile(path: Path) -> dict[str, Tensor]:
        if not saved:
            saved.append(_save(tmp_path, 2, best=True))
        return read(path)

    monkeypatch.setattr(checkpoint, "load_file", meanwhile)
    assert checkpoint.load(tmp_path, "best").path == saved[0]
    assert checkpoint.load_meta(tmp_path)["progress"]["update"] == 2


@pytest.mark.parametrize("link", [True, False])
def test_a_link_to_a_disk_that_is_not_there_is_no_new_run(tmp_path: Path, link: bool):
    folder = tmp_path / "checkpoints"
    folder.symlink_to(tmp_path / "disk") if link else folder.touch()
    for look in (checkpoint.exists, checkpoint.load, checkpoint.delete):
        with pytest.raises(CheckpointError, match="expected a folder, got .*/checkpoints, a "):
            look(tmp_path)
    if link:
        (tmp_path / "disk").mkdir()
        assert not checkpoint.exists(tmp_path)
        _save(tmp_path, 1)
        checkpoint.delete(tmp_path)
        assert folder.is_symlink() and not list(folder.iterdir())


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


@pytest.mark.parametrize("index", ["[1]", '{"last": 3}', "{", "\udce4", "[" * 100_000])
def test_a_damaged_index(index: str, tmp_path: Path):
    _save(tmp_path, 1)
    (tmp_path / "checkpoints" / "index.json").write_text(index, errors="surrogateescape")
    with pytest.raises(CheckpointError, match="index.json.*remove it") as error:
        checkpoint.exists(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", [None, "", "\0" * 30, "{}", '{"best": "step-00000009"}'])
def test_without_an_index_the_complete_checkpoints_are_found(index: str | None, tmp_path: Path):
    folder = tmp_path / "checkpoints"
    _save(tmp_path, 9)
    _save(tmp_path, 10)
    for name, missing in (("step-00000011", "state.pt"), ("step-00000012", "meta.json")):
        shutil.copytree(folder / "step-00000010", folder / name)  # torn, as after a full disk
        (folder / name / missing).unlink()
    shutil.copytree(folder / "step-00000010", folder / ".writing-step-00000013")
    shutil.copytree(folder / "step-00000010", folder / "step-00000010-2")
    shutil.copytree(folder / "step-00000010", folder / "step-00000099 of mine")
    (folder / "index.json").unlink()
    if index is not None:
        (folder / "index.json").write_text(index)
    assert checkpoint.exists(tmp_path)
    assert checkpoint.find(tmp_path).name == "step-00000010-2"
    assert checkpoint.load(tmp_path).meta["progress"]["update"] == 10
    path = _save(tmp_path, 14, best=True)
    assert _folders(tmp_path) == [path.name, "step-00000099 of mine"]


def test_fresh_after_a_folder_under_the_name_of_a_file(tmp_path: Path):
    path = _save(tmp_path, 9)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path)
    checkpoint.delete(tmp_path)
    assert not checkpoint.exists(tmp_path)
    assert [p.name for p in path.iterdir()] == ["model.safetensors"]  # not ours


def test_without_an_index_the_best_is_that_of_the_lowest_loss(tmp_path: Path):
    for step, (batch, loss) in enumerate([(0, 3.0), (0, 2.0), (5, 1.0)], 1):
        progress = {"batch": batch, "history": [{"valid": {"total": loss}}]}
        checkpoint.save(tmp_path, step, _weights(step), {}, {"progress": progress}, step == 2)
    (tmp_path / "checkpoints" / "index.json").unlink()
    assert checkpoint.find(tmp_path, "best").name == "step-00000002"
    assert checkpoint.find(tmp_path, "last").name == "step-00000003"


def test_checkpoints_that_are_all_torn_are_no_new_run(tmp_path: Path):
    (_save(tmp_path, 1) / "state.pt").unlink()
    (tmp_path / "checkpoints" / "index.json").unlink()
    with pytest.raises(CheckpointError, match="step-00000001 is incomplete, .*--fresh"):
        checkpoint.exists(tmp_path)


def test_what_others_keep_there_is_never_touched(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    first = _save(tmp_path, 1)
    (folder / "notes").mkdir()
    (folder / "notes" / "meta.json").write_text("mine")
    (folder / "step-00000001-backup").mkdir()
    (first / "remarks.txt").write_text("mine too")
    (folder / "step-00000007").symlink_to(folder / "notes")
    second = _save(tmp_path, 2, best=True)
    assert not (first / "model.safetensors").exists() and second.is_dir()
    checkpoint.delete(tmp_path)
    assert (first / "remarks.txt").read_text() == "mine too"
    assert (folder / "notes" / "meta.json").read_text() == "mine"
    there = sorted(p.name for p in folder.iterdir())
    assert there == ["notes", "step-00000001", "step-00000001-backup", "step-00000007"]
    shutil.rmtree(folder)
    _save(tmp_path, 3)
    checkpoint.delete(tmp_path)
    checkpoint.delete(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_flipped_bit_is_found(name: str, tmp_path: Path):
    file = _save(tmp_path, 1) / name
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 4  # in the numbers, where no format notices
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: it is not what was written.*--fresh"):
        checkpoint.load(tmp_path)
    if name == "state.pt":
        assert checkpoint.load(tmp_path, weights_only=True).meta["progress"]["update"] == 1


def test_a_changed_value_in_meta_is_noticed_and_another_layout_is_none(tmp_path: Path):
    file = _save(tmp_path, 1) / "meta.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(meta.items())), indent=2))
    assert checkpoint.load(tmp_path).meta == meta
    file.write_text(json.dumps({**meta, "progress": {"update": 2}}))
    with pytest.raises(CheckpointError, match="meta.json: it is not what was written.*--fresh"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_from_before_there_were_checksums_loads(tmp_path: Path):
    file = _save(tmp_path, 1) / "meta.json"
    meta = json.loads(file.read_text())
    assert set(meta.pop("checksums")) == {"model.safetensors", "state.pt", "meta.json"}
    file.write_text(json.dumps(meta))
    assert checkpoint.load(tmp_path).meta["progress"]["update"] == 1


@pytest.mark.parametrize("state", [[], None, 3, "text", torch.zeros(3)])
def test_a_state_that_is_no_mapping(state: object, tmp_path: Path):
    path = checkpoint.save(tmp_path, 1, _weights(), state, {}, best=False)
    with pytest.raises(CheckpointError, match="state.pt: expected a dict, got .*--fresh"):
        checkpoint.load(tmp_path)
    assert checkpoint.load(path, weights_only=True).state == {}


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
