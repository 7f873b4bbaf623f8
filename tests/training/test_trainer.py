# SPDX-License-Identifier: Apache-2.0
"""Training that is stopped anywhere and resumed ends with the bits of training that was not."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from simulated import SimulatedRecorder
from speech import differences, everything, fit, make_trainer, tiny
from torch import Tensor, nn

from sniper import Fixed, Following, LearningRateScale, NewWeights
from sniper.ops import autotune, dispatch, timings
from sniper.ops.backends import CPU
from sniper.ops.backends.cpu.products import CpuBackend
from sniper.ops.backends.triton import tuning
from sniper.training import checkpoint
from sniper.training.config import Config, from_dict
from sniper.training.progress import Interrupted, NotFinite, Observer, Progress
from sniper.training.sections import SparsityConfig
from sniper.training.settings import ConfigError
from sniper.training.step import TrainingStep
from sniper.training.trainer import Trainer, make_sniper
from sniper.tts.corpus.dataset import FeatureDataset
from sniper.tts.corpus.shapes import StaticShapes
from sniper.tts.corpus.store import TensorStream, map_tensors, write_tensors
from sniper.tts.model.fastspeech2 import FastSpeech2


class _StopAt(Observer):
    """Asks to stop after some updates, as Ctrl-C does."""

    def __init__(self, updates: int):
        self.updates, self.trainer = updates, None

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None:
        self.trainer.stop = progress.update >= self.updates


def stop_at(config: Config, updates: int) -> None:
    """Resumes, trains until so many updates are done, saves."""
    observer = _StopAt(updates)
    trainer = observer.trainer = make_trainer(config, observer)
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.fit()
    assert trainer.progress.update == updates


@pytest.fixture(scope="module")
def through(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run as it is, which nobody has stopped; to be read only."""
    folder = tmp_path_factory.mktemp("through")
    fit(tiny(demo_corpus, folder))
    return folder


@pytest.fixture(scope="module")
def stopped(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped in its second epoch; to be read only."""
    folder = tmp_path_factory.mktemp("stopped")
    stop_at(tiny(demo_corpus, folder), 7)
    return folder


# What makes bits hard to keep: workers, updates of several micro-batches with one left over (5
# batches a pass), epochs that cut passes, other masks, other arithmetic. What has nothing to do
# with each other shares a run.
FEW = {"batches_per_epoch": 3}
VARIANTS = {
    "blocks": {},
    "two workers": {"train": {"workers": 2, "accumulation": 2}},
    "cut passes": {"train": {"batches_per_epoch": 7, "accumulation": 3, "grad_clip": 0}},
    "elements": {"sparsity": {"block_size": None}, "train": FEW},
    "paper": {"sparsity": {"block_size": None, "paper_exact": True}, "train": FEW},
    "fractions from zero": {
        "sparsity": {
            "schedule_fractions": {0: 0.6, 0.5: 0.2},
            "restore_init": False,
            "max_lr_scale": None,
        },
    },
    "dense": {"sparsity": {"schedule": {0: 0.0}}, "train": FEW},
    "constant, one utterance a batch": {
        "sparsity": {"schedule": {0: 0.5}},
        "train": {"max_frames": 400, "batches_per_epoch": 4},
    },
    "bf16": {"train": {"precision": "bf16", **FEW}},
    "average, gradients decide": {
        "sparsity": {"growth": "gradient"},
        "train": {"ema": 0.9, "valid_every": 2},
    },
    "average of a paper run": {
        "sparsity": {"block_size": None, "paper_exact": True},
        "train": {"ema": 0.9, **FEW},
    },
    "rates alone": {"sparsity": {"prune": False}, "train": FEW},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_is_bit_for_bit_what_is_not_stopped(
    name: str, demo_corpus: Path, tmp_path: Path, through: Path
):
    sections = VARIANTS[name]
    if sections:
        through = tmp_path / "through"
        fit(tiny(demo_corpus, through, **sections))
    parts = tiny(demo_corpus, tmp_path / "parts", **sections)
    stop_at(parts, 1)  # at once; in the middle of the next epoch; before the last update
    per_epoch = math.ceil(len(make_trainer(parts)._batches) / parts.train.accumulation)
    stop_at(parts, per_epoch + 1)
    stop_at(parts, 3 * per_epoch - 1)
    fit(parts)
    expected = everything(through)
    assert differences(everything(tmp_path / "parts"), expected) == []
    assert len(expected["history"]) == 3
    assert expected["update"] == 3 * per_epoch


def test_no_worker_outlives_a_fit(demo_corpus: Path, tmp_path: Path):
    """Nor does one that is left to the garbage collector stall whatever runs then."""
    before = set(multiprocessing.active_children())
    few = {"workers": 2, "batches_per_epoch": 2}
    config = tiny(demo_corpus, tmp_path, train={**few, "epochs": 2})
    stop_at(config, 1)
    assert set(multiprocessing.active_children()) == before
    trainer = fit(config)
    assert set(multiprocessing.active_children()) == before
    assert trainer.progress.epoch == 2
    longer = fit(tiny(demo_corpus, tmp_path, train={**few, "epochs": 3}))
    assert longer.progress.epoch == 3 and set(multiprocessing.active_children()) == before


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedRecorder]:
    """Trainers record their steps as on a GPU; the recorders, one a trainer."""
    made: list[SimulatedRecorder] = []

    def pick(device: torch.device, cuda_graphs: str) -> SimulatedRecorder:
        assert cuda_graphs == "auto"
        made.append(SimulatedRecorder())
        return made[-1]

    def step(model: FastSpeech2, *args, recorder: SimulatedRecorder, **kwargs) -> TrainingStep:
        recorder.model = model
        return TrainingStep(model, *args, recorder=recorder, **kwargs)

    monkeypatch.setattr("sniper.training.trainer.pick_recorder", pick)
    monkeypatch.setattr("sniper.training.trainer.TrainingStep", step)
    return made


@pytest.mark.parametrize("name", ["cut passes", "elements", "two workers"])
def test_recorded_steps_resume_bit_for_bit(
    name: str, demo_corpus: Path, tmp_path: Path, recorders: list[SimulatedRecorder]
):
    sections = VARIANTS[name]
    fit(tiny(demo_corpus, tmp_path / "through", **sections))
    whole = recorders[-1]
    parts = tiny(demo_corpus, tmp_path / "parts", **sections)
    stop_at(parts, 2)
    trainer = fit(parts)
    assert differences(everything(tmp_path / "parts"), everything(tmp_path / "through")) == []
    # A few shapes, at each sparsity anew; every micro-batch was a replay.
    shapes = len(StaticShapes.of_buckets(*_lengths(trainer)).shapes)
    batches = sum(trainer._batches.seek(e) or len(trainer._batches) for e in range(3))
    assert 3 <= whole.recordings <= 3 * shapes
    assert whole.replays == batches


def test_recorded_steps_meet_longer_sequences_and_tuning_in_the_middle(
    demo_corpus: Path,
    tmp_path: Path,
    recorders: list[SimulatedRecorder],
    monkeypatch: pytest.MonkeyPatch,
):
    """Positions laid out for the shortest shape must grow while graphs are there, and a played GPU
    tunes each pass at its first use: with micro-batches, changes of masks and a resumption the bits
    are those of a recorded run without either.
    """
    sections = {"train": {"accumulation": 2}}
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "candidates", lambda which, layout, x: [CPU])
        fit(tiny(demo_corpus, tmp_path / "through", **sections))
    tuned: list[str] = []

    class PlayedTriton(CpuBackend):
        """The CPU's kernels under another name, in two tilings."""

        def tune(self, which: str, layout, geometry, *args) -> str:
            call = partial(getattr(CPU, which), *args[:2], layout, geometry, *args[2:])
            if which == "fwd":
                call = partial(CPU.fwd, *args, layout, geometry)
            tuned.append(which)
            return tuning.tune(which, layout, geometry, args[:2], lambda tiling: call())

    played = PlayedTriton(name="triton")
    monkeypatch.setattr(dispatch, "TRITON", played)
    monkeypatch.setitem(dispatch.BACKENDS, "triton", played)
    monkeypatch.setattr(dispatch, "candidates", lambda which, layout, x: [played])
    monkeypatch.setattr(tuning, "tilings", lambda *args: ["small", "large"])
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    config = tiny(demo_corpus, tmp_path / "parts", train={**sections["train"], "autotune": True})
    try:
        for stop in (4, None):
            observer = _StopAt(stop or 10**6)
            trainer = observer.trainer = make_trainer(config, observer)
            for module in trainer.model.modules():
                if hasattr(module, "encoding"):
                    module.encoding = module.encoding[:8].clone()
            trainer.resume()
            with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
                trainer.fit()
    finally:
        autotune(False)
    assert set(tuned) == {"fwd", "dgrad", "wgrad"}
    assert all(r.replays >= r.recordings >= 3 and r.clears >= 2 for r in recorders[-2:])
    assert differences(everything(tmp_path / "parts"), everything(tmp_path / "through")) == []


def _lengths(trainer: Trainer) -> tuple:
    dataset = trainer._loader.dataset
    return trainer._batches.buckets, dataset.token_lengths, dataset.mel_lengths


@pytest.mark.parametrize("where", ["last update of an epoch", "epoch end"])
def test_stopped_at_the_seam(where: str, demo_corpus: Path, tmp_path: Path, through: Path):
    config = tiny(demo_corpus, tmp_path / "parts")
    if where == "epoch end":
        for epochs in (1, 2):  # at each change of the sparsity
            fit(tiny(demo_corpus, tmp_path / "parts", train={"epochs": epochs}))
    else:
        stop_at(config, 5)
        assert checkpoint.load(config.output).meta["progress"]["batch"] == 5
    fit(config)
    assert differences(everything(tmp_path / "parts"), everything(through)) == []


def test_frequent_checkpoints_and_pictures_change_nothing(
    demo_corpus: Path, tmp_path: Path, through: Path
):
    from sniper.training.report import TensorBoard

    config = tiny(demo_corpus, tmp_path / "often", train={"checkpoint_minutes": 0})
    valid = FeatureDataset(demo_corpus / "valid.safetensors")
    fit(config, TensorBoard(tmp_path / "often", 0, 1, 1, valid))
    assert differences(everything(tmp_path / "often"), everything(through)) == []


def test_another_seed_is_another_run(demo_corpus: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 1)):
        fit(tiny(demo_corpus, tmp_path / name, train={"epochs": 1, "seed": seed, **FEW}))
    assert differences(everything(tmp_path / "a")["weights"], everything(tmp_path / "b")["weights"])


def test_a_checkpoint_is_dense_and_plain(demo_corpus: Path, tmp_path: Path):
    config = tiny(demo_corpus, tmp_path, sparsity={"schedule": {0: 0.6}}, train={"epochs": 1})
    trainer = fit(config)
    path = checkpoint.find(tmp_path)
    state = torch.load(path / "state.pt", weights_only=True)
    assert 0.6 in state["sniper"]["masks"]
    model = FastSpeech2(trainer.model.config)
    model.load_state_dict(load_file(path / "model.safetensors"))
    assert type(model.decoder.layers[0].ffn.conv1) is torch.nn.Conv1d
    batch = next(iter(trainer._valid_loader))
    expected = trainer.model.eval()(batch).mel
    torch.testing.assert_close(model.eval()(batch).mel, expected, rtol=1e-4, atol=1e-5)
    weight = model.state_dict()["decoder.layers.0.ffn.conv1.weight"]
    assert 0.3 < (weight == 0).float().mean() < 0.95


def test_a_checkpoint_in_the_middle_of_a_paper_run_holds_the_masked_weights(
    demo_corpus: Path, tmp_path: Path
):
    config = tiny(
        demo_corpus,
        tmp_path,
        sparsity={"block_size": None, "paper_exact": True, "schedule": {0: 0.6}},
    )
    stop_at(config, 3)
    trainer = make_trainer(config)
    trainer.resume()
    weights = checkpoint.load(tmp_path).weights
    for name, density in trainer.sniper.densities().items():
        assert (weights[name] != 0).float().mean() <= density


@pytest.mark.parametrize("size", [8, 32, None])
def test_another_block_size_resumes(
    size: int | None, demo_corpus: Path, tmp_path: Path, stopped: Path
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    before = make_trainer(tiny(demo_corpus, tmp_path))
    before.resume()
    config = tiny(demo_corpus, tmp_path, sparsity={"block_size": size})
    trainer = make_trainer(config)
    trainer.resume()
    assert trainer.sniper.sparsity == 0.3
    for p, q in zip(before.model.parameters(), trainer.model.parameters(), strict=True):
        moments = trainer.optimizer.state[q]["exp_avg"]
        assert moments.shape == q.shape
        assert moments.equal(before.optimizer.state[p]["exp_avg"])
    trainer.fit()
    assert trainer.density() == 1.0
    assert len(trainer.progress.history) == 3


def test_more_epochs_go_on(demo_corpus: Path, tmp_path: Path, through: Path):
    """Of a run that had ended; where the sparsity changes, `test_stopped_at_the_seam` has them."""
    shutil.copytree(through, tmp_path / "a")
    trainer = fit(tiny(demo_corpus, tmp_path / "a", train={"epochs": 4}))
    fit(tiny(demo_corpus, tmp_path / "b", train={"epochs": 4}))
    assert differences(everything(tmp_path / "a"), everything(tmp_path / "b")) == []
    assert [row["sparsity"] for row in trainer.progress.history] == [0.6, 0.3, 0.0, 0.0]


def test_more_epochs_must_not_raise_the_sparsity(demo_corpus: Path, tmp_path: Path):
    sparsity = {"sparsity": {"schedule_fractions": {0: 0.6, 0.5: 0.0}}}
    fit(tiny(demo_corpus, tmp_path, train={"epochs": 2, **FEW}, **sparsity))
    trainer = make_trainer(tiny(demo_corpus, tmp_path, train={"epochs": 8, **FEW}, **sparsity))
    with pytest.raises(ConfigError, match="asks for sparsity 0.6 in epoch 3, .*is at 0 already"):
        trainer.resume()


def test_more_epochs_that_ask_for_other_masks_are_named(demo_corpus: Path, tmp_path: Path):
    """0.4 and 0.2 fall on one epoch of two, and only the later one is scored."""
    sparsity = {"schedule_fractions": {0: 0.6, 0.4: 0.4, 0.5: 0.2}}
    stop_at(tiny(demo_corpus, tmp_path, sparsity=sparsity, train={"epochs": 2}), 2)
    trainer = make_trainer(tiny(demo_corpus, tmp_path, sparsity=sparsity, train={"epochs": 10}))
    with pytest.raises(ConfigError) as error:
        trainer.resume()
    assert str(error.value) == (
        "train.epochs: with 10 epochs the run needs masks that it does not have: expected "
        "sparsities among the scored [0.6, 0.2], got [0.4]; it goes on with 2 epochs, as it was "
        "saved, or start anew"
    )


def test_a_finished_run_trains_nothing_more(demo_corpus: Path, through: Path):
    files = {p: p.stat().st_mtime_ns for p in through.rglob("*")}
    trainer = fit(tiny(demo_corpus, through))
    assert trainer.progress.epoch == 3
    assert {p: p.stat().st_mtime_ns for p in through.rglob("*")} == files


def test_a_run_without_patience_left_is_done(
    demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It counts at the last sparsity alone, also over a stop and a resume."""
    losses = [1.0, 2.0, 2.0, 5.0, 4.0, 4.5, 4.0, 3.0]  # dense from the third on

    def validate(trainer: Trainer) -> dict[str, float]:
        return {"total": losses[trainer.progress.epoch]}

    monkeypatch.setattr(Trainer, "validate", validate)
    settings = {"epochs": 8, "patience": 2, "batches_per_epoch": 1}
    config = tiny(demo_corpus, tmp_path, train=settings)
    assert dict(config.sparsity_schedule()) == {0: 0.6, 1: 0.3, 2: 0.0}
    trainer = make_trainer(config)
    for _ in range(4):
        trainer.run_epoch() if trainer.sniper.scored else (trainer.score(), trainer.run_epoch())
    assert not trainer.done
    trainer = fit(config)
    assert trainer.done and trainer.progress.epoch == 5
    assert fit(config).progress.epoch == 5
    longer = fit(tiny(demo_corpus, tmp_path, train=settings | {"patience": 3}))
    assert longer.progress.epoch == 6
    assert fit(tiny(demo_corpus, tmp_path, train=settings | {"patience": None})).progress.epoch == 8


def test_other_speech_is_refused(demo_corpus: Path, through: Path):
    trainer = make_trainer(tiny(demo_corpus, through))
    trainer.info.statistics.mel_mean[3] += 1
    with pytest.raises(ConfigError, match="other speech: the prepared corpus has other statistics"):
        trainer.resume()


def test_learning_rate_is_noams_whatever_is_sparse(demo_corpus: Path, tmp_path: Path):
    trainer = make_trainer(tiny(demo_corpus, tmp_path, train={"lr": 0.5, "warmup": 4, **FEW}))
    used = []
    trainer.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    trainer.fit()
    scale = 0.5 * 32**-0.5
    expected = [scale * min(s**-0.5, s * 4**-1.5) for s in range(1, 10)]
    assert used == pytest.approx(expected, rel=1e-12)
    assert used[3] == pytest.approx(0.5 / 32**0.5 / 2)


def test_accumulation_is_the_mean_of_its_batches(demo_corpus: Path, tmp_path: Path):
    config = tiny(demo_corpus, tmp_path, train={"accumulation": 2})
    trainer = make_trainer(config)
    trainer.model.eval()  # no dropout, no BatchNorm statistics
    batches = list(trainer._loader)[:2]
    for batch in batches:
        trainer.step.backward(batch, 0.5)
    summed = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    mean = sum(trainer.model.loss(batch)[0] for batch in batches) / 2
    mean.backward()
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(summed[name], p.grad, rtol=1e-4, atol=1e-6)


def test_validation_within_an_epoch(demo_corpus: Path, tmp_path: Path, through: Path):
    within = fit(tiny(demo_corpus, tmp_path, train={"valid_every": 2}))
    count = len(within._batches)
    for one, other in zip(everything(through)["history"], within.progress.history, strict=True):
        begun = other["update"] - count
        # Not at the end of the epoch, whose loss is that of the row.
        expected = [u for u in range(begun + 1, begun + count) if u % 2 == 0]
        assert [update for update, _ in other["within"]] == expected
        assert one["valid"] == other["valid"] and one["train"] == other["train"]
        assert "within" not in one and one["update"] == other["update"]
    losses = [loss for row in within.progress.history for _, loss in row["within"]]
    assert len(set(losses)) == len(losses)


def test_an_observer_sees_the_mean_loss_of_an_update(demo_corpus: Path, tmp_path: Path):
    class Collect(Observer):
        seen: list[float] = []

        def updated(self, progress: Progress, values: dict[str, Tensor]) -> None:
            self.seen.append(float(values["total"]))

    config = tiny(
        demo_corpus, tmp_path, train={"accumulation": 2, "batches_per_epoch": 6, "epochs": 1}
    )
    trainer = fit(config, Collect())
    row = trainer.progress.history[0]
    assert np.mean(Collect.seen) == pytest.approx(row["train"]["total"], rel=1e-5)
    assert row["frames"] > 0 and row["train"].keys() == row["valid"].keys()


def test_what_is_not_training_is_timed_apart(
    demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0
    clock = {"perf_counter": lambda: now, "monotonic": lambda: now}
    monkeypatch.setattr("sniper.training.trainer.time", SimpleNamespace(**clock))

    def takes(owner: object, name: str, seconds: float) -> None:
        real = getattr(owner, name)

        def slow(*args, **kwargs):
            nonlocal now
            now += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    config = tiny(demo_corpus, tmp_path, train={"epochs": 2, "batches_per_epoch": 2})
    trainer = make_trainer(config)
    takes(trainer.sniper, "score", 7.0)
    takes(trainer.sniper, "step", 0.5)
    takes(trainer.optimizer, "step", 1.0)
    takes(trainer, "validate", 3.0)
    takes(checkpoint, "save", 20.0)
    trainer.fit()
    parts = ("seconds", "valid_seconds", "change_seconds", "save_seconds")
    rows = [[row[part] for part in parts] for row in trainer.progress.history]
    assert rows == [[2.0, 3.0, 0.5, 0.0], [2.0, 3.0, 0.5, 20.0]]
    assert trainer.progress.score_seconds == 7.0


def test_clipping(demo_corpus: Path, tmp_path: Path):
    norms = {}
    for clip in (1e-3, 0.0):
        trainer = make_trainer(tiny(demo_corpus, tmp_path, train={"grad_clip": clip, **FEW}))
        trainer.optimizer.clear = False  # an update leaves the gradients that it used

        def norm(optimizer, *_, clip=clip) -> None:
            grads = [p.grad for p in optimizer.param_groups[0]["params"]]
            norms.setdefault(clip, float(torch.nn.utils.get_total_norm(grads)))

        trainer.optimizer.register_step_post_hook(norm)
        trainer.run_epoch() if trainer.score() is None else None
        shutil.rmtree(tmp_path / "checkpoints")
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert norms[0.0] > 0.1


def test_scoring_takes_as_many_batches_as_asked_or_as_there_are(
    demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loss = FastSpeech2.loss
    for asked, expected in ((2, 2), (100, 5)):
        trainer = make_trainer(tiny(demo_corpus, tmp_path, sparsity={"score_batches": asked}))
        calls = []

        with monkeypatch.context() as patch:
            patch.setattr(FastSpeech2, "loss", lambda m, b, c=calls: c.append(b.ids) or loss(m, b))
            trainer.score()
        trainer._batches.seek(0)
        assert calls == [batch.ids for batch in trainer._loader][:expected]
        assert len(calls) == expected
    # An epoch that is shorter does not make the scores poorer.
    few = {"sparsity": {"score_batches": 4}, "train": {"batches_per_epoch": 2}}
    trainer = make_trainer(tiny(demo_corpus, tmp_path, **few))
    assert [batch.ids for batch in trainer._few_batches(0)] == calls[:4]


def _poisoned(corpus: Path, folder: Path, split: str, name: str) -> Path:
    """A copy in which one utterance's mel is infinite, as if it had been prepared so."""
    shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns("corpus"))
    path = folder / f"{split}.safetensors"
    tensors, metadata = map_tensors(path)
    arrays = {n: np.array(t) for n, t in tensors.items()}
    index = FeatureDataset(path).ids.index(name)
    begin, end = arrays["mel_offsets"][index : index + 2]
    arrays["mel"][begin:end] = np.inf
    write_tensors(
        path, {n: TensorStream(a.dtype, a.shape, [a]) for n, a in arrays.items()}, metadata
    )
    about = json.loads((folder / "corpus.json").read_text())
    del about["checksums"]
    (folder / "corpus.json").write_text(json.dumps(about))
    return folder


def _batch_of(trainer: Trainer, number: int, epoch: int = 0) -> list[str]:
    trainer._batches.seek(epoch)
    ids = trainer._loader.dataset.ids
    return [ids[i] for i in list(trainer._batches)[number]]


def test_nan_names_the_utterances_and_the_last_checkpoint(demo_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = tiny(demo_corpus, run, train={"checkpoint_minutes": 0})
    ids = _batch_of(make_trainer(config), 3)
    bad = _poisoned(demo_corpus, tmp_path / "poisoned", "train", ids[0])
    trainer = make_trainer(tiny(bad, run, train={"checkpoint_minutes": 0}))
    with pytest.raises(NotFinite) as error:
        trainer.fit()
    said = str(error.value)
    assert f"with the utterances {', '.join(ids)};" in said
    assert "in epoch 1, after 3 updates" in said
    assert said.endswith(f"last checkpoint: {run}/checkpoints/step-00000003")
    saved = checkpoint.load(run)
    assert saved.meta["progress"]["update"] == 3
    assert all(t.isfinite().all() for t in saved.weights.values())
    # With what was wrong mended, the run goes on from there.
    assert fit(tiny(demo_corpus, run, train={"epochs": 1})).progress.epoch == 1


def test_a_last_checkpoint_that_is_worth_little_is_not_called_good(
    demo_corpus: Path, tmp_path: Path
):
    """Weights that have run away are finite for a while, and saved."""
    trainer = fit(tiny(demo_corpus, tmp_path / "run", train={"epochs": 1}))
    trainer.progress.history[0]["valid"]["total"] = 1.5e20
    trainer.progress.best_loss = 3.25
    trainer._unchecked.append((["a", "b"], torch.tensor(float("nan"))))
    with pytest.raises(NotFinite, match=r"a, b; last .* loss of 1\.5e\+20 \(3\.25 at best\)$"):
        trainer._check_finite()


def test_nan_while_scoring_and_in_validation(demo_corpus: Path, tmp_path: Path):
    config = tiny(demo_corpus, tmp_path / "run")
    first = _batch_of(make_trainer(config), 0)
    bad = _poisoned(demo_corpus, tmp_path / "scoring", "train", first[0])
    with pytest.raises(NotFinite, match=f"{first[0]}.*; last checkpoint: none$"):
        make_trainer(tiny(bad, tmp_path / "run")).fit()
    held_out = FeatureDataset(demo_corpus / "valid.safetensors").ids[1]
    bad = _poisoned(demo_corpus, tmp_path / "valid", "valid", held_out)
    with pytest.raises(NotFinite, match=f"after 5 updates.*{held_out}"):
        make_trainer(tiny(bad, tmp_path / "run")).fit()
    assert not checkpoint.exists(tmp_path / "run")


def test_nan_with_accumulation_is_found_before_the_update(demo_corpus: Path, tmp_path: Path):
    settings = {"accumulation": 2, "checkpoint_minutes": 0}
    config = tiny(demo_corpus, tmp_path / "run", train=settings)
    ids = _batch_of(make_trainer(config), 2)
    bad = _poisoned(demo_corpus, tmp_path / "poisoned", "train", ids[0])
    trainer = make_trainer(tiny(bad, tmp_path / "run", train=settings))
    with pytest.raises(NotFinite, match=f"after 1 updates, with the utterances {', '.join(ids)};"):
        trainer.fit()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_best_is_the_lowest_validation_loss(through: Path):
    last, best = (checkpoint.load(through, which).meta["progress"] for which in ("last", "best"))
    losses = [row["valid"]["total"] for row in last["history"]]
    assert best["epoch"] == 1 + int(np.argmin(losses))
    assert last["best_loss"] == min(losses)


def _two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))


@pytest.mark.parametrize(
    "sparsity",
    [
        {"schedule": {0: 0.0}},
        {"schedule": {0: 0.0, 3: 0.0}},
        {"schedule": {0: 0.5}, "schedule_fractions": {0.0: 0.0}},
    ],
)
def test_a_dense_run_has_no_sniper(sparsity: dict):
    model = _two_layers()
    assert make_sniper(model, from_dict({"sparsity": sparsity})) is None
    assert type(model[0]) is nn.Linear


def test_sniper_takes_every_setting():
    settings = SparsityConfig(
        schedule={0: 0.5, 2: 0.25},
        block_size=None,
        max_param_sparsity=0.6,
        spread=None,
        restore_init=False,
        max_lr_scale=3.0,
        paper_exact=True,
        exclude=["0."],
    )
    sniper = make_sniper(_two_layers(), from_dict({"sparsity": dict(settings)}))
    assert sniper.block_size is None and sniper.paper_exact
    assert (sniper.cap, sniper.lr_scale) == (Fixed(0.6), LearningRateScale(3.0))
    assert sniper.new_weights.restore_init is False
    assert set(sniper.densities()) == {"1.weight", "1.bias"}
    assert dict(sniper.schedule) == {0: 0.5, 2: 0.25}


def test_sniper_takes_our_own_settings():
    settings = {"schedule": {0: 0.5}, "block_size": 32, "spread": 0.2, "max_lr_scale": None}
    sniper = make_sniper(_two_layers(), from_dict({"sparsity": settings}))
    assert (sniper.cap, sniper.lr_scale) == (Following(0.2), None)
    assert sniper.new_weights == NewWeights(restore_init=False, prime_moments=16.0)


def test_a_pattern_of_a_preset_that_matches_nothing_is_said():
    settings = {"schedule": {0: 0.5}, "block_size": 32, "exclude": ["norm", "postnet", "0."]}
    with pytest.warns(UserWarning, match="no parameter matches postnet"):
        sniper = make_sniper(_two_layers(), from_dict({"sparsity": settings}))
    assert set(sniper.densities()) == {"1.weight"}


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"block_size": 48}, "64 x 32 does not divide by 48"),
        ({"paper_exact": True}, "expected block_size=None, got 64"),
        ({"exclude": ["weight", "bias"]}, "no trainable parameter is left"),
    ],
)
def test_settings_that_do_not_fit_are_the_users(sparsity: dict, said: str):
    config = from_dict({"sparsity": {"schedule": {0: 0.5}, **sparsity}})
    with pytest.raises(ConfigError, match="^sparsity: ") as error:
        make_sniper(_two_layers(), config)
    assert said in str(error.value)
