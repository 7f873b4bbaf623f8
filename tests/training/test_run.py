# SPDX-License-Identifier: Apache-2.0
"""What is refused before a run begins, what it says, and what of a folder it leaves alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from speech import everything, make_trainer, tiny

from sniper.ops import selfcheck
from sniper.ops.backends.triton import launch
from sniper.ops.selfcheck import Verdict
from sniper.training import checkpoint
from sniper.training.config import Config, from_dict
from sniper.training.files import only_run
from sniper.training.ranks import ALONE
from sniper.training.restore import saved_progress
from sniper.training.run import (
    _how_batches_are_shared,
    _stop_soon,
    _what_runs,
    ends_sparse,
    open_run,
    signals,
)
from sniper.training.settings import ConfigError
from sniper.training.trainer import Trainer
from sniper.tts.locks import LOCK

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"schedule": {0: 0.0}}, None),
        ({"schedule": {0: 0.8, 9: 0.0}}, None),
        ({"schedule_fractions": {0: 0.8, 0.5: 0.0}}, None),
        (
            {"schedule": {0: 0.8, 5: 0.4, 10: 0.2, 20: 0.0}},
            "note: training ends 40% sparse: the schedule's 20% at epoch 10, 0% at epoch 20 comes "
            "after the last of 10 epochs",
        ),
        (
            {"schedule": {0: 0.8, 5: 0.4}},
            "note: training ends 40% sparse: the schedule does not come down to 0",
        ),
        (
            {"schedule_fractions": {0: 0.8, 0.97: 0.0}},
            "note: training ends 80% sparse: the schedule's 0% at epoch 10 comes after the last of "
            "10 epochs",
        ),
    ],
)
def test_a_schedule_that_ends_sparse_is_said(sparsity: dict, said: str | None):
    config = from_dict({"train": {"epochs": 10}, "sparsity": sparsity})
    assert ends_sparse(config) == said


def run(config: Config, fresh: bool = False) -> Trainer:
    """Trains to the end, as the command does."""
    with open_run(config, fresh) as trainer:
        trainer.fit()
    return trainer


def test_it_is_said_at_the_start(demo_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    config = tiny(demo_corpus, tmp_path, train={"epochs": 1, "device": "auto"})
    run(config)
    said = capsys.readouterr().out
    assert "note: training ends 60% sparse: the schedule's 30% at epoch 1, 0% at epoch 2" in said
    if not torch.cuda.is_available():
        assert "on CPU, 1 threads (" in said
    assert not (tmp_path / LOCK).exists()


def test_a_warning_on_the_sparsity_names_settings(demo_corpus: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="60.0% was asked for") as told:
        run(tiny(demo_corpus, tmp_path, train={"epochs": 1}))
    (said,) = [str(w.message) for w in told if "was asked for" in str(w.message)]
    assert "the cap, sparsity.max_param_sparsity=0.9, and" in said
    assert "use sparsity.spread=0.1, which" in said and "Following" not in said


@pytest.mark.parametrize("per_epoch", [None, 10**9])
def test_what_several_ranks_share(demo_corpus: Path, tmp_path: Path, per_epoch: int | None):
    config = tiny(demo_corpus, tmp_path, train={"batches_per_epoch": per_epoch, "max_frames": 700})
    trainer = make_trainer(config)
    trainer.ranks = SimpleNamespace(size=4)
    line, note = _how_batches_are_shared(trainer).splitlines()
    count = trainer.batches_per_pass
    whole = line.endswith(f"; {count} updates an epoch, with every utterance in one of them")
    assert whole == (per_epoch is None)
    assert whole or line.endswith(
        "; 1,000,000,000 updates an epoch, as train.batches_per_epoch says"
    )
    assert f" of {count} batches have fewer utterances" in note


def test_the_folder_of_a_run_is_its_own(demo_corpus: Path, tmp_path: Path):
    """The lock is of the process, so another one holds it."""
    program = "import sys, pathlib; from sniper.training.files import only_run\n"
    program += "with only_run(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "in\n"
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=f"in use by process {other.pid}"):
            run(tiny(demo_corpus, tmp_path), fresh)
    other.communicate("\n")
    with only_run(tmp_path):
        pass


def _user_file(config: Config) -> dict:
    """The tiny run as a user's own file that says nothing of what had other defaults."""
    data = config.to_dict()
    for name in ("spread", "restore_init", "prime_moments", "max_lr_scale", "max_param_sparsity"):
        del data["sparsity"][name]
    return data


def test_a_run_of_older_defaults_and_keys_goes_on(demo_corpus: Path, tmp_path: Path):
    """A run as it was saved before the defaults changed, and the file it was begun with."""
    begun = tiny(demo_corpus, tmp_path, sparsity={"max_param_sparsity": 0.75}, train={"epochs": 1})
    run(begun)
    file = checkpoint.find(tmp_path) / "meta.json"
    meta = json.loads(file.read_text())
    del meta["checksums"]
    meta["config"]["sparsity"]["scale_lr"] = True
    meta["config"]["train"]["cuda_graphs"] = True
    file.write_text(json.dumps(meta))
    now = _user_file(begun)
    now["train"]["epochs"] = 2
    trainer = run(from_dict(now))
    assert [row["sparsity"] for row in trainer.progress.history] == [0.6, 0.3]
    assert trainer.config.sparsity == begun.sparsity
    assert checkpoint.load(tmp_path).meta["config"]["sparsity"]["restore_init"] is True
    # What a user says is another run.
    now["sparsity"]["restore_init"] = False
    with pytest.raises(ConfigError, match="restore_init: True there, False now"):
        run(from_dict(now))


def test_a_lost_index_and_what_others_keep(demo_corpus: Path, tmp_path: Path):
    config = tiny(demo_corpus, tmp_path, train={"epochs": 1})
    run(config)
    before = everything(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "index.json").unlink()
    for mine in (folder / "notes", tmp_path / "tensorboard" / "mine"):
        mine.mkdir()
        (mine / "a.txt").write_text("mine")
    more = tiny(demo_corpus, tmp_path, train={"epochs": 2})
    trainer = run(more)
    assert trainer.progress.history[0] == before["history"][0] | {
        k: v for k, v in trainer.progress.history[0].items() if "second" in k or "memory" in k
    }
    assert saved_progress(checkpoint.load(tmp_path)).epoch == 2
    run(config, fresh=True)
    assert saved_progress(checkpoint.load(tmp_path)).epoch == 1
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
    for mine in (folder / "notes", tmp_path / "tensorboard" / "mine"):
        assert (mine / "a.txt").read_text() == "mine"


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as in a terminal, however these tests were started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_stops_once(hang_up: None):
    """Shell and system each send SIGHUP, and who closes a terminal while a run that they have
    stopped is saved has not asked twice.
    """
    asked: list[str] = []
    with signals(lambda: asked.append("once")):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert len(asked) == 1
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert len(asked) == 3
    with signals(lambda: asked.append("again")):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
    assert asked[3:] == ["again"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_closed_terminal_is_ignored_under_nohup(hang_up: None):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals(lambda: pytest.fail("stopped")):
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_run_stops_where_nobody_can_read_that_it_does(monkeypatch: pytest.MonkeyPatch):
    """The terminal is closed, or Ctrl-C has ended the `tee` behind a pipe as well."""

    def gone(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("sniper.training.run.os.write", gone)
    trainer = SimpleNamespace(stop=False, ranks=ALONE)
    _stop_soon(trainer, relayed=False)
    assert trainer.stop
    _stop_soon(trainer, relayed=True)
    with pytest.raises(KeyboardInterrupt):
        _stop_soon(trainer, relayed=False)


def on_a_gpu(**settings) -> SimpleNamespace:
    """As much of a trainer as the summary reads."""
    train = {"precision": "bf16"}
    return SimpleNamespace(
        config=from_dict({"train": {**train, **settings}}),
        device=torch.device("cuda", 0),
        sniper=SimpleNamespace(block_size=64),
        step=SimpleNamespace(graphs=object()),
    )


@pytest.mark.filterwarnings("error")
def test_the_summary_names_kernels_that_are_left_out(monkeypatch: pytest.MonkeyPatch):
    verdicts = {"tma product": Verdict(True), "tma wgrad": Verdict(False, message="it raises")}
    monkeypatch.setattr(launch, "why_not", lambda index: None)
    monkeypatch.setattr(selfcheck, "check", lambda *args: verdicts)
    first, second = _what_runs(on_a_gpu()).splitlines()
    assert "steps recorded as CUDA graphs" in first
    assert second == (
        "Triton kernels for bf16 in 64-blocks: left out by their check: tma wgrad (it raises)"
    )
    verdicts["tma wgrad"] = Verdict(True)
    assert _what_runs(on_a_gpu()).endswith("64-blocks: all passed their check")


def played_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """One GPU as far as the checks before a run look at it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0)
    )


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"device": "cuda:7"}, r"device: expected one of cuda:0, got cuda:7"),
        (
            {"device": "cuda:0", "precision": "bf16"},
            r"train.precision: bf16 expects a GPU from sm_80, got Some GPU \(sm_75\); use fp32",
        ),
    ],
)
def test_what_a_gpu_does_not_have_is_refused_before_anything_is_touched(
    train: dict, said: str, demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    played_gpu(monkeypatch, (7, 5))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    with pytest.raises(ConfigError, match=said):
        run(tiny(demo_corpus, tmp_path / "run", train=train), fresh=True)
    assert not (tmp_path / "run").exists()


def test_no_visible_gpu_is_said(demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="found none: CUDA_VISIBLE_DEVICES is ''; use cpu or"):
        run(tiny(demo_corpus, tmp_path / "run", train={"device": "cuda"}))


@pytest.mark.parametrize(
    ("capability", "hip", "said"),
    [
        ((7, 5), None, "Some GPU is sm_75, older than sm_80"),
        ((9, 4), "6.4", "this torch is built for ROCm, and the kernels are for NVIDIA GPUs"),
    ],
)
def test_a_gpu_without_our_kernels_runs_torchs(
    capability: tuple[int, int], hip: str | None, said: str, monkeypatch: pytest.MonkeyPatch
):
    played_gpu(monkeypatch, capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    launch.why_not.cache_clear()
    with pytest.warns(UserWarning, match=f"block-sparse layers run dense: {said}") as warned:
        assert _what_runs(on_a_gpu()) == f"products by torch: {said}"
        assert _what_runs(on_a_gpu()) == f"products by torch: {said}"
    launch.why_not.cache_clear()
    assert len(warned) == 1
