# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with anything missing, of another kind or of another shape is one line, never a
traceback, and never a run that goes on with what it happened to find."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech import differences, make_trainer, tiny

from sniper.synthesize import load_speaker
from sniper.training import checkpoint
from sniper.training.checkpoint import CheckpointError
from sniper.training.config import Config
from sniper.training.progress import Interrupted, Observer, Progress
from sniper.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

MISSING = object()
_MODEL = {"d_model": 16, "ffn_dim": 16, "postnet_layers": 0}


class _Stop(Observer):
    def updated(self, progress: Progress, values: dict[str, torch.Tensor]) -> None:
        self.trainer.stop = progress.update == 7


@pytest.fixture(scope="module")
def stopped(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was stopped in its second epoch, with weights still to come back."""
    config = tiny(demo_corpus, tmp_path_factory.mktemp("run"), model={**_TINY_PARTS, **_MODEL})
    observer = _Stop()
    observer.trainer = trainer = make_trainer(config, observer)
    with pytest.raises(Interrupted):
        trainer.fit()
    return config


_TINY_PARTS = {
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    **{f"{n}_predictor": {"layers": 1, "channels": 16} for n in ("duration", "pitch", "energy")},
}


@pytest.fixture
def files(stopped: Config) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Folder, meta and state of the checkpoint; what a test does to them is undone."""
    path = checkpoint.find(Path(stopped.output))
    kept = path.with_name("kept")
    shutil.copytree(path, kept)
    meta = json.loads((path / "meta.json").read_text())
    del meta["checksums"]  # as if it were not found by them: older checkpoints have none
    yield path, meta, torch.load(path / "state.pt", weights_only=True)
    shutil.rmtree(path)
    kept.rename(path)


def _refused(config: Config, file: str, trainer: Trainer | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        (trainer or make_trainer(config)).resume()
    said = str(error.value)
    assert "\n" not in said and file in said and "--fresh" in said
    assert str(checkpoint.find(Path(config.output))) in said
    return said


def _ways(data: Any, way: tuple = (), depth: int = 2) -> Iterator[tuple]:
    """Keys of nested dictionaries and lists, as deep as they mean something."""
    if depth and isinstance(data, (dict, list)):
        items = list(data.items() if isinstance(data, dict) else enumerate(data))
        for key, value in items if len(items) < 20 else items[:2]:
            yield (*way, key)
            yield from _ways(value, (*way, key), depth - 1)


def _changed(data: Any, way: tuple, value: Any) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for key in way[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return data


# What may be missing: it has a default, since older checkpoints do not have it, or nobody needs it.
_OPTIONAL = {"seconds", "frames", "padded_frames", "loss_sums", "score_seconds"} | {
    "change_seconds",
    "save_seconds",
    "within",
}


def test_the_checkpoint_itself_is_taken_up(stopped: Config, files):
    path, meta, state = files
    trainer = make_trainer(stopped)
    assert trainer.resume() and trainer.progress.update == 7 and trainer.sniper.sparsity == 0.3
    (path / "meta.json").write_text(json.dumps(meta))
    assert make_trainer(stopped).resume()
    for name in _OPTIONAL:
        changed = _changed(meta, ("progress", name), MISSING)
        (path / "meta.json").write_text(json.dumps(changed))
        assert make_trainer(stopped).resume()


def test_the_state_of_torchs_own_adam_is_taken_up(stopped: Config, files):
    """Runs of earlier versions had it: with 0 for 0.0, and without what ours adds."""
    path, meta, state = files
    (path / "meta.json").write_text(json.dumps(meta))
    plain = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
    (group,), (there,) = plain.state_dict()["param_groups"], state["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0 and type(group["weight_decay"]) is int
    own = {name: there[name] for name in ("params", "lr", "initial_lr", "betas", "eps")}
    changed = _changed(state, ("optimizer", "param_groups", 0), {**group, **own})
    torch.save(changed, path / "state.pt")
    assert make_trainer(stopped).resume()


def test_every_part_of_meta(stopped: Config, files, monkeypatch: pytest.MonkeyPatch):
    path, meta, state = files
    monkeypatch.setattr(torch, "load", lambda *_, **__: state)  # which takes longer than the rest
    ways = [("progress",), ("speech",)]
    ways += [("progress", *w) for w in _ways(meta["progress"], depth=4)]
    ways += [("speech", *w) for w in _ways(meta["speech"], depth=1)]
    ways += [("speech", "statistics", *w) for w in _ways(meta["speech"]["statistics"])]
    ways += [("speech", "features", *w) for w in _ways(meta["speech"]["features"])]
    tried = 0
    # One for all: what meta.json says is refused before anything of the trainer is changed.
    trainer = make_trainer(stopped)
    before = copy.deepcopy(dict(trainer.model.state_dict()))
    for way in ways:
        needed = way[-1] not in _OPTIONAL and "loss_sums" not in way
        row = "history" in way
        for value in (MISSING, None, "text", [], {}, -1, 1e400, [[1]]):
            there = meta
            for key in way:
                there = there[key]
            if value is MISSING and (
                not needed or isinstance(way[-1], int) or way[-2:] == ("train", "total")
            ):
                continue
            if row and (way[-1] not in ("history", "train", "valid", "epoch", "sparsity", "total")):
                continue  # no part of a row that anything is computed from
            if value == there or (isinstance(there, (int, float)) and value in (-1, 1e400)):
                continue  # a number in place of a number
            if value == {} and way[-1] in ("loss_sums", "train"):
                continue
            if value == "text" and way == ("speech", "speech"):
                continue
            (path / "meta.json").write_text(json.dumps(_changed(meta, way, value)))
            assert _refused(stopped, "meta.json", trainer), (way, value)
            tried += 1
    assert tried > 150
    assert differences(before, dict(trainer.model.state_dict())) == []
    assert trainer.progress == Progress() and trainer.sniper.sparsity is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("update", 8), ("update", 0), ("batch", 6), ("epoch", 2), ("best_loss", float("nan"))],
)
def test_progress_that_does_not_fit_the_rest(name: str, value: float, stopped: Config, files):
    path, meta, _ = files
    (path / "meta.json").write_text(json.dumps(_changed(meta, ("progress", name), value)))
    with pytest.raises(CheckpointError) as error:
        make_trainer(stopped).resume()
    assert "\n" not in str(error.value)


def _wrong(value: Any) -> list[Any]:
    """Other things than `value`: of another kind, shape and element type."""
    wrong: list[Any] = [MISSING, None, "text", [], {}, 3, torch.zeros(3, 5)]
    if isinstance(value, torch.Tensor):
        wrong += [value.double()[..., :-1]] if value.dim() else []
        wrong += [value.to(torch.int64)] if value.is_floating_point() else [value.float()]
    return [w for w in wrong if type(w) is not type(value) or isinstance(w, torch.Tensor)]


_STATE_WAYS = [
    ("optimizer",),
    ("optimizer", "state"),
    ("optimizer", "state", 0),
    ("optimizer", "state", 0, "exp_avg"),
    ("optimizer", "state", 3, "exp_avg_sq"),
    ("optimizer", "state", 1, "step"),
    ("optimizer", "param_groups"),
    ("optimizer", "param_groups", 0),
    ("optimizer", "param_groups", 0, "params"),
    ("optimizer", "param_groups", 0, "betas"),
    ("optimizer", "param_groups", 0, "eps"),
    ("scheduler",),
    ("scheduler", "base_lrs"),
    ("scheduler", "last_epoch"),
    ("scheduler", "_last_lr"),
    ("scheduler", "_step_count"),
    ("scheduler", "lr_lambdas"),
    ("sniper",),
    ("sniper", "version"),
    ("sniper", "shapes"),
    ("sniper", "masks"),
    ("sniper", "sparsity"),
    ("sniper", "init"),
    ("sniper", "left_dense"),
    ("rng",),
    ("cuda_rng",),
]


@pytest.mark.parametrize("way", _STATE_WAYS, ids=lambda way: ".".join(map(str, way)))
def test_every_part_of_the_state(way: tuple, stopped: Config, files):
    path, meta, state = files
    (path / "meta.json").write_text(json.dumps(meta))
    value = state
    for key in way:
        value = value[key]
    for wrong in _wrong(value):
        if way == ("cuda_rng",) and wrong is None:
            continue
        if way == ("sniper", "left_dense") and wrong is MISSING:  # as in older checkpoints
            continue
        torch.save(_changed(state, way, wrong), path / "state.pt")
        assert _refused(stopped, "state.pt"), wrong


def test_an_empty_state_and_one_of_a_dense_run(stopped: Config, files):
    path, meta, state = files
    (path / "meta.json").write_text(json.dumps(meta))
    for wrong in ({}, {**state, "sniper": None}, {**state, "rng": torch.zeros_like(state["rng"])}):
        torch.save(wrong, path / "state.pt")
        _refused(stopped, "state.pt")
    few = dict(list(state["optimizer"]["state"].items())[:-1])
    torch.save({**state, "optimizer": {**state["optimizer"], "state": few}}, path / "state.pt")
    assert "expected moments of" in _refused(stopped, "state.pt")


def test_weights_of_another_model(stopped: Config, files):
    path, meta, _ = files
    (path / "meta.json").write_text(json.dumps(meta))
    weights = load_file(path / "model.safetensors")
    name = next(iter(weights))
    changes: list[tuple[Callable, str]] = [
        (lambda w: w.pop(name), f"{name} is missing"),
        (lambda w: w.update(more=torch.zeros(3)), "more is not the model's"),
        (lambda w: w.update({name: w[name][:-1].clone()}), f"for {name}, got float32 ["),
        (lambda w: w.update({name: w[name].double()}), f"for {name}, got float64 ["),
        (lambda w: w.clear(), "is missing"),
    ]
    for change, said in changes:
        changed = dict(weights)
        change(changed)
        save_file(changed, path / "model.safetensors")
        assert said in _refused(stopped, "model.safetensors")
        if "float64" not in said:
            with pytest.raises(CheckpointError, match="does not fit this version") as error:
                load_speaker(path)
            assert "\n" not in str(error.value)


def test_a_speaker_from_a_damaged_meta(stopped: Config, files):
    path, meta, _ = files
    ways = [("config",), ("speech",)]
    ways += [("speech", *w) for w in _ways(meta["speech"], depth=1)]
    ways += [("speech", "statistics", *w) for w in _ways(meta["speech"]["statistics"], depth=1)]
    for way in ways:
        for value in (MISSING, None, 3 if len(way) < 3 else "text", [1], {"a": 1}):
            (path / "meta.json").write_text(json.dumps(_changed(meta, way, value)))
            with pytest.raises(CheckpointError) as error:
                load_speaker(path)
            assert "\n" not in str(error.value) and str(path) in str(error.value)
