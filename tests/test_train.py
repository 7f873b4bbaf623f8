# SPDX-License-Identifier: Apache-2.0
"""The command that trains: resumed by itself, stopped cleanly, clear about what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
import yaml
from speech import command, differences, everything, fit, tiny
from vocoders import write_jik876

from sniper.synthesize import load_speaker
from sniper.train import main
from sniper.training import checkpoint
from sniper.training.config import dump, load
from sniper.training.step import TrainingStep
from sniper.training.trainer import Trainer
from sniper.tts.corpus.dataset import FeatureDataset


@pytest.fixture
def config_file(demo_corpus: Path, tmp_path: Path) -> Path:
    """The tiny run as a user's own file; its output is `run` beside it."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny(demo_corpus, tmp_path / "run")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config file and a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny(demo_corpus, folder / "run", train={"epochs": 1})
    (folder / "tiny.yaml").write_text(dump(config), encoding="utf-8")
    fit(config)
    return folder


def _main(config: Path, *arguments: object) -> int:
    return main(["--config", str(config), *map(str, arguments)])


def _error(capsys: pytest.CaptureFixture, lines: int = 1) -> str:
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == lines, said
    return said


def _wait_for(process: subprocess.Popen, beginning: str) -> None:
    for line in process.stdout:
        if line.lstrip().startswith(beginning):
            return
    pytest.fail(f"{beginning!r} did not come: {process.stderr.read()}")


def test_stopped_by_signals_and_resumed_by_the_same_command(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    # The signal reaches the data worker too, as Ctrl-C in a terminal and a scheduler's do.
    more = ("train.batches_per_epoch=16", "train.workers=1")
    for epoch, number in ((1, signal.SIGINT), (2, signal.SIGTERM)):
        process = command("train", "--config", config_file, *more)
        try:
            _wait_for(process, f"{epoch}  ")  # its row of the table
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                process.kill()
        assert process.returncode == 130, said
        assert said.count("stopping after this update") == 1
        assert "stopped, saved; the same command continues" in said
        assert "Traceback" not in said
        progress = checkpoint.load(tmp_path / "run").meta["progress"]
        assert progress["epoch"] == epoch and 0 < progress["batch"] < 16
    assert _main(config_file, *more) == 0
    assert "resumed at epoch 3, batch" in capsys.readouterr().out
    assert _main(config_file, *more, f"output={tmp_path / 'through'}") == 0
    stopped, through = everything(tmp_path / "run"), everything(tmp_path / "through")
    assert differences(stopped, through) == []
    assert len(through["history"]) == 3 and through["update"] == 48


def test_a_run_that_ends_prints_where_everything_lies(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    assert _main(config_file) == 0
    out = capsys.readouterr().out
    assert f"all in {run}/: sample.wav mel.png loss.png config.yaml checkpoints/" in out
    assert f'python -m sniper.synthesize --checkpoint {run} "Some text."' in out
    assert 'sample.wav says: "The grey horse slept by the river."; sound by Griffin-Lim' in out
    assert "sparsity of 16-blocks: 60% from epoch 0 -> 30% from epoch 1 -> 0% from epoch 2" in out
    history = checkpoint.load(run).meta["progress"]["history"]
    assert f"{history[0]['valid']['total']:.3f} after the first epoch" in out
    outputs = ("sample.wav", "mel.png", "loss.png")
    for name in ("mel.png", "loss.png"):
        assert matplotlib.image.imread(run / name).std() > 0.05
    assert soundfile.info(run / "sample.wav").duration > 0
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    # What it wrote is a config itself, and resolved: nothing is left to a base or a default.
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert "base" not in written and written["train"]["grad_clip"] == 1.0
    assert load(str(run / "config.yaml")) == load(str(config_file))

    before = everything(run)
    for name in outputs:
        (run / name).unlink()
    assert _main(run / "config.yaml") == 0
    out = capsys.readouterr().out
    assert "finished already, after 3 epochs" in out and "resumed at" not in out
    assert differences(everything(run), before) == []
    assert all((run / name).exists() for name in outputs)


def test_other_settings_are_refused_with_the_difference(
    trained: Path, capsys: pytest.CaptureFixture
):
    before = everything(trained / "run")
    overrides = ["train.lr=0.5", "model.ffn_dim=128", "sparsity.schedule={0: 0.5}"]
    assert _main(trained / "tiny.yaml", *overrides) == 2
    said = _error(capsys, lines=5)
    assert "run holds a run with other settings:" in said
    assert "\n  model.ffn_dim: 64 there, 128 now\n" in said
    assert "\n  sparsity.schedule: {0: 0.6, 1: 0.3, 2: 0.0} there, {0: 0.5} now\n" in said
    assert "\n  train.lr: 1.0 there, 0.5 now\n" in said
    assert "--fresh" in said
    for override in ("data.utterances=30", "train.seed=1", "train.accumulation=2"):
        assert _main(trained / "tiny.yaml", override) == 2
        assert override.partition("=")[0] in _error(capsys, lines=3)
    (trained / "run" / "config.yaml").unlink(missing_ok=True)  # the checkpoint knows it
    assert _main(trained / "tiny.yaml", "train.warmup=7") == 2
    assert differences(everything(trained / "run"), before) == []


def test_settings_that_may_change(
    trained: Path, demo_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(demo_corpus, tmp_path / "moved")
    overrides = [
        f"output={tmp_path / 'run'}",
        f"data.root={tmp_path / 'moved'}",
        "name=renamed",
        "train.epochs=2",
        "train.workers=1",
        "train.log_every=3",
        "sparsity.block_size=8",
        "sample_text=Two children laughed.",
        f"vocoder={tmp_path / 'voc'}",
    ]
    write_jik876(tmp_path / "voc")
    assert _main(trained / "tiny.yaml", *overrides) == 0
    out = capsys.readouterr().out
    assert "resumed at epoch 2, batch 1" in out and "Two children laughed." in out
    assert f"sound by the HiFi-GAN {tmp_path / 'voc'}" in out
    speaker = load_speaker(tmp_path / "run", vocoder=tmp_path / "voc")
    wanted = speaker.speak("Two children laughed.").audio
    np.testing.assert_allclose(soundfile.read(tmp_path / "run/sample.wav")[0], wanted, atol=1e-4)
    history = checkpoint.load(tmp_path / "run").meta["progress"]["history"]
    assert [row["sparsity"] for row in history] == [0.6, 0.3]


def test_fresh_starts_anew_but_only_when_it_can(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    before = everything(run)
    changed = ["--fresh", f"output={run}", "train.seed=5"]
    for broken in (
        ["train.max_frames=10"],
        ["data.kind=ljspeech", "data.root=/nowhere"],
        ["vocoder=/nowhere"],
    ):
        assert _main(trained / "tiny.yaml", *changed, *broken) == 2
        _error(capsys)
        assert differences(everything(run), before) == []
    assert _main(trained / "tiny.yaml", *changed) == 0
    assert differences(everything(run)["weights"], before["weights"])
    assert checkpoint.load(run).meta["config"]["train"]["seed"] == 5


def test_a_corpus_prepared_anew_is_noticed(
    trained: Path, demo_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(demo_corpus, tmp_path / "other")
    path = tmp_path / "other" / "corpus.json"
    corpus = json.loads(path.read_text(encoding="utf-8"))
    corpus["statistics"]["pitch_mean"] += 0.5
    del corpus["checksums"]
    path.write_text(json.dumps(corpus), encoding="utf-8")
    assert _main(trained / "tiny.yaml", f"data.root={tmp_path / 'other'}") == 2
    assert "trained on other speech: the prepared corpus has other statistics" in _error(capsys)


def test_data_that_cannot_be_used(
    config_file: Path, demo_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    def said(*overrides: object) -> str:
        assert _main(config_file, *overrides) == 2
        assert not (tmp_path / "run" / "checkpoints").exists()
        return _error(capsys)

    longest = "train.max_frames: longer than max_frames_per_batch = 300: demo-000"
    assert longest in said("train.max_frames=300")
    missing = said("data.kind=ljspeech", f"data.root={tmp_path / 'nowhere'}")
    assert f"no such folder: {tmp_path / 'nowhere'}" in missing
    other = said("data.utterances=25")
    assert "utterances is 24 there, 25 now" in other
    assert "--out is data.root; --force belongs to python -m sniper.prepare" in other
    elsewhere = said("data.utterances=25", "data.root=/nowhere", f"data.prepared={demo_corpus}")
    assert "--out is data.prepared; --force belongs" in elsewhere
    prepared = ["data.kind=ljspeech", "data.root=/nowhere", f"data.prepared={demo_corpus}"]
    assert "features.hop_length: " in said(*prepared, "features.hop_length=300")
    damaged = tmp_path / "damaged"
    shutil.copytree(demo_corpus, damaged)
    (damaged / "valid.safetensors").write_bytes(b"cut off")
    assert "valid.safetensors is damaged" in said(f"data.root={damaged}")
    (damaged / "valid.safetensors").unlink()
    assert "lacks a file" in said(f"data.root={damaged}")
    for content in ("{", "[]", "{}"):
        (damaged / "corpus.json").write_text(content)
        assert "corpus.json is damaged" in said(f"data.root={damaged}")


def test_settings_and_places_that_cannot_be_used(
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "a file").touch()
    for arguments, said in (
        (["train.epoch=3"], "did you mean train.epochs?"),
        (["train.device=cuda"], "expected a CUDA device, found none"),
        (["train.cuda_graphs=on"], "train.cuda_graphs: on expects a CUDA device, got a CPU"),
        (["train.threads=100000"], "train.threads: expected at most 1024, got 100000"),
        ([f"output={tmp_path / 'a file'}"], "a file"),
        ([f"output={tmp_path / 'a file' / 'run'}"], "a file"),
        (["sparsity.paper_exact=true"], "expected block_size=None, got 16"),
    ):
        assert _main(config_file, *arguments) == 2
        assert said in _error(capsys)
    assert main(["--config", "nowhere"]) == 2
    assert "expected a preset (demo, " in _error(capsys)
    with pytest.raises(SystemExit) as exit:
        main(["--conf-ig"])
    assert exit.value.code == 2


def test_a_damaged_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(trained / "run", tmp_path / "run")
    state = checkpoint.find(tmp_path / "run") / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert _main(trained / "tiny.yaml", f"output={tmp_path / 'run'}") == 1
    assert "damaged or incomplete" in _error(capsys)


def test_nan_and_a_full_disk_exit_with_1(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", no_space)
        assert _main(config_file) == 1
    assert "cannot be written: [Errno 28] No space left on device" in _error(capsys)

    update = Trainer._update

    def poisoned(trainer: Trainer, ids: list[str]):
        update(trainer, ids)
        if trainer.progress.update == 7:
            trainer.model.mel_out.bias.data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_update", poisoned)
    assert _main(config_file) == 1
    said = _error(capsys)
    assert "not finite in epoch 2, after 7 updates, with the utterances demo-000" in said
    assert "last checkpoint: " in said and "step-00000005, with a validation loss of " in said


def test_settings_may_stand_on_both_sides_of_an_option(
    config_file: Path, capsys: pytest.CaptureFixture
):
    assert main(["train.lr=-1", "--config", str(config_file), "--fresh", "train.epochs=0"]) == 2
    said = _error(capsys, lines=2)
    assert "train.lr: expected a number above 0" in said and "train.epochs: expected at" in said


def test_a_reader_that_has_gone_is_no_error_but_a_worker_is(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """`exit_with` ends as of SIGPIPE; `error: [Errno 32] Broken pipe` would be a wrong argument."""

    def gone(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sniper.training.run._announce", gone)
    assert _main(config_file) == 2 and "Broken pipe" in _error(capsys)
    monkeypatch.setattr("sniper.command.reader_has_gone", lambda: True)
    with pytest.raises(BrokenPipeError):
        _main(config_file)


@pytest.mark.parametrize("init", ["nowhere", "empty"])
def test_weights_to_start_from_that_are_not_there(
    config_file: Path, tmp_path: Path, init: str, capsys: pytest.CaptureFixture
):
    (tmp_path / "empty").mkdir()
    assert _main(config_file, "--init", tmp_path / init) == 2
    assert "error: init: checkpoint: expected the folder of a run" in _error(capsys)
    assert not (tmp_path / "run").exists()


def test_an_init_that_is_empty_is_refused(config_file: Path, capsys: pytest.CaptureFixture):
    """As `--init "$UNSET"` is, which must not start from fresh weights without a word."""
    for nothing in ("", " ", "null"):
        assert _main(config_file, "--init", nothing) == 2
        assert "error: init: " in _error(capsys)


def test_fresh_does_not_delete_what_it_starts_from(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (tmp_path / "link").symlink_to(run)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint.find(run).iterdir():
        (copy / file.name).symlink_to(file)
    before = everything(run)
    for init in (run, tmp_path / "link", checkpoint.find(run), copy):
        assert _main(trained / "tiny.yaml", "--init", init, "--fresh", f"output={run}") == 2
        said = _error(capsys)
        assert f"error: init: {init} holds the weights that --fresh deletes from {run}" in said
    assert differences(everything(run), before) == []


def test_an_output_that_is_a_file(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").touch()
    for output in ("file", "file/run"):
        assert _main(config_file, f"output={tmp_path / output}") == 2
        assert f"output: expected a folder, got {tmp_path / 'file'}, a file" in _error(capsys)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output in ("link", "link/run"):
        assert _main(config_file, f"output={tmp_path / output}") == 2
        expected = f"{tmp_path / 'link'}, a link to {tmp_path / 'nowhere'}, where nothing is"
        assert expected in _error(capsys)


def test_init_of_a_run_that_goes_on_is_not_looked_at(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained / "run", tmp_path / "run")
    other = ["--init", tmp_path / "nowhere", f"output={tmp_path / 'run'}"]
    assert _main(trained / "tiny.yaml", *other) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"note: init={tmp_path / 'nowhere'} is not looked at: {tmp_path / 'run'}"
    )
    assert load(str(tmp_path / "run/config.yaml")).init is None


def test_a_second_signal_stops_at_once(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    before = signal.getsignal(signal.SIGINT)

    def fit(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert trainer.stop
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("still here")

    monkeypatch.setattr(Trainer, "fit", fit)
    assert _main(config_file) == 130
    said = capfd.readouterr().err
    assert said.count("stopping after this update") == 1
    assert "stopped; the same command continues from what was saved" in said
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_before_training(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(
        "sniper.training.run.prepare_data", lambda config: signal.raise_signal(signal.SIGTERM)
    )
    assert _main(config_file, "--fresh") == 130
    assert "the same command without --fresh continues" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    def bug(trainer: Trainer) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Trainer, "fit", bug)
    with pytest.raises(ValueError, match="a bug"):
        _main(config_file)


@pytest.mark.parametrize("module", ["yaml", "safetensors", "matplotlib", "tensorboard", "tqdm"])
def test_a_missing_package_says_what_to_install(
    module: str,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: Callable[..., None],
    capsys: pytest.CaptureFixture,
):
    if module in ("yaml", "safetensors"):
        script = f"import sys; sys.modules[{module!r}] = None; from sniper.train import main; "
        script += f"sys.exit(main(['--config', {str(config_file)!r}]))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        said = done.stderr
    else:
        forgotten(*[name for name in sys.modules if name.split(".")[0] == module])
        forgotten("sniper.training.report", "torch.utils.tensorboard")
        monkeypatch.setitem(sys.modules, module, None)
        assert _main(config_file) == 2
        said = capsys.readouterr().err
    assert module in said and "pip install 'sniper-tts[" in said
    assert said.count("\n") == 1


def test_a_full_gpu_is_one_line_and_what_is_saved_goes_on(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    """In the second epoch; then, as with graphs turned off, there is room."""
    inner, full = TrainingStep.backward, [True]

    def backward(self, batch, share):
        if full[0] and checkpoint.exists(tmp_path / "run"):
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
                "79.18 GiB of which 1.06 GiB is free."
            )
        return inner(self, batch, share)

    monkeypatch.setattr(TrainingStep, "backward", backward)
    assert _main(config_file) == 1
    said = _error(capsys)
    assert "out of memory in epoch 2" in said and "Tried to allocate 2.00 GiB" in said
    assert "train.max_frames=1300 takes more than the" in said
    assert "a smaller train.max_frames (now 1300) with a larger train.accumulation (now 1)" in said
    path = checkpoint.find(tmp_path / "run")
    assert f"Last checkpoint: {path}, from which the same command continues" in said
    full[0] = False
    assert _main(config_file, "train.cuda_graphs=off") == 0
    assert "resumed at epoch 2, batch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("harm", "status", "said"),
    [
        (lambda path: os.truncate(path, 1000), 2, "written to while it was in use"),
        (lambda path: 1 // 0, 1, "could not be loaded (ZeroDivisionError: "),
        (lambda path: os.kill(os.getpid(), signal.SIGKILL), 1, "has died (DataLoader worker "),
    ],
    ids=["damaged", "exception", "killed"],
)
def test_data_that_fail_in_a_worker_are_one_line(
    config_file: Path, demo_corpus: Path, tmp_path: Path, monkeypatch, capsys, harm, status, said
):
    corpus = shutil.copytree(demo_corpus, tmp_path / "corpus")
    run = [f"data.root={corpus}", "train.workers=1", "sparsity.schedule={0: 0}"]
    intact = FeatureDataset.__getitem__

    def load(self, index):
        if self.path.name == "train.safetensors" and multiprocessing.parent_process():
            harm(self.path)
        return intact(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureDataset, "__getitem__", load)
        assert _main(config_file, *run) == status
    error = _error(capsys)
    assert f"{corpus}/train.safetensors" in error and said in error
    if status == 1:  # the remedy works
        assert _main(config_file, *run, "train.workers=0", "train.epochs=1") == 0
