# SPDX-License-Identifier: Apache-2.0
"""What a run shows: the table, TensorBoard's files, the pictures and the sample."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from speech import fit, make_trainer, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sniper.training.progress import EpochEnd, Observer, Progress
from sniper.training.report import (
    HeldOut,
    Observers,
    TensorBoard,
    Terminal,
    compare,
    plot_history,
    plot_mel,
    table_row,
    write_results,
)
from sniper.training.trainer import Trainer
from sniper.tts.corpus.dataset import FeatureDataset
from sniper.tts.speaker import Speaker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def valid(demo_corpus: Path) -> FeatureDataset:
    return FeatureDataset(demo_corpus / "valid.safetensors")


@pytest.fixture(scope="module")
def trained(demo_corpus: Path, valid: FeatureDataset, tmp_path_factory) -> Trainer:
    """Two epochs, then a third after a resume, watched by TensorBoard."""
    run = tmp_path_factory.mktemp("run")
    for epochs in (2, 3):
        config = tiny(demo_corpus, run, train={"epochs": epochs})
        trainer = make_trainer(config)
        trainer.resume()
        board = TensorBoard(run, trainer.progress.update, 2, 2, valid)
        trainer.observer = Observers(Terminal(epochs), board)
        trainer.fit()
        trainer.observer.close()
    return trainer


def _row(**changes) -> dict:
    loss = {"total": 3.25, "mel_before": 0.75, "mel_after": 0.5, "duration": 0.125}
    loss |= {"pitch": 1.5, "energy": 0.25}
    row = {"epoch": 4, "sparsity": 0.8, "density": 0.2345, "train": {"total": 4.5}, "valid": loss}
    return {
        **row,
        "frames_per_second": 12345.6,
        "seconds": 7.89,
        "padding": 0.0625,
        "peak_memory_gib": 1.75,
        **changes,
    }


def test_a_table_row():
    expected = "    5       80%    23.4%    4.500    3.250    0.500     0.125   1.50    0.25"
    assert table_row(_row()) == expected + "    12,346      7.9     6.2%    1.75"
    without_postnet = {k: v for k, v in _row()["valid"].items() if k != "mel_after"}
    assert "0.750" in table_row(_row(valid=without_postnet))


def test_the_terminal_prints_a_header_once(capsys: pytest.CaptureFixture):
    terminal = Terminal(2)
    for epoch in (0, 1):
        terminal.epoch_begins(Progress(epoch=epoch, batch=1), 4, 0.8)
        terminal.updated(Progress(epoch=epoch, batch=2, frames=10, seconds=1.0), {})
        terminal.epoch_ended(EpochEnd(_row(epoch=epoch), 2, epoch == 1, 0, nn.Module()))
    terminal.close()
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["epoch", "sparsity", "density", "train", "valid"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert len({len(line) for line in (header, *rows)}) == 1  # columns line up


def test_the_terminal_says_once_that_validation_has_flattened(capsys: pytest.CaptureFixture):
    terminal = Terminal(30)
    for epoch, flat in enumerate([0, 9, 10, 11], 20):
        terminal.epoch_begins(Progress(epoch=epoch), 4, 0.0)
        terminal.epoch_ended(EpochEnd(_row(epoch=epoch), 2, False, flat, nn.Module()))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("note:")] == [
        "note: the validation loss has not fallen for 10 epochs, since epoch 13; "
        "train.patience=N stops a run after N of them"
    ]


def test_the_terminal_says_what_stopped_a_run_before_its_epochs(capsys: pytest.CaptureFixture):
    terminal = Terminal(30)
    terminal.epoch_begins(Progress(epoch=25), 4, 0.0)
    terminal.epoch_ended(EpochEnd(_row(epoch=25), 2, True, 10, nn.Module()))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "stopped by train.patience: the validation loss has not fallen for 10 epochs, "
        "since epoch 16"
    )


@pytest.mark.parametrize("missing", [["stderr"], ["stdout", "stderr"]])
def test_a_program_without_a_terminal_is_shown_nothing(missing, monkeypatch, capsys):
    """Python has None for its streams."""
    for name in missing:
        monkeypatch.setattr(sys, name, None)
    terminal = Terminal(2)
    terminal.epoch_begins(Progress(), 4, 0.5)
    terminal.updated(Progress(batch=1), {})
    terminal.epoch_ended(EpochEnd(_row(), 2, False, 0, nn.Module()))
    terminal.close()
    assert ("3.250" in capsys.readouterr().out) == ("stdout" not in missing)


def test_a_terminal_that_never_began_can_be_closed():
    Terminal(1).close()


def _events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    return events.Reload()


def test_tensorboard_scalars_are_those_of_the_run(trained: Trainer):
    events = _events(trained.run)
    history = trained.progress.history
    for name in ("total", "mel_after", "duration", "pitch", "energy"):
        points = events.Scalars(f"valid/{name}")
        # 5 updates an epoch; the point at which the run was resumed is still there.
        assert [p.step for p in points] == [5, 10, 15]
        expected = [row["valid"][name] for row in history]
        assert [p.value for p in points] == pytest.approx(expected, rel=1e-6)
    assert [p.step for p in events.Scalars("train/total")] == [2, 4, 6, 8, 10, 12, 14]
    assert [p.value for p in events.Scalars("run/sparsity")] == pytest.approx([0.6, 0.3, 0.0])
    assert events.Scalars("run/lr") and events.Scalars("run/frames_per_second")
    assert all(0 < p.value < 0.5 for p in events.Scalars("run/padding"))
    assert all(0 < p.value < 100 for p in events.Scalars("run/peak_memory_gib"))


def test_tensorboard_pictures_and_sound(trained: Trainer, valid: FeatureDataset):
    events = _events(trained.run)
    # Every second epoch and the last.
    assert [image.step for image in events.Images("mel")] == [10, 15]
    assert all(image.width > 500 for image in events.Images("mel"))
    sounds = events.Audio("held-out")
    assert [sound.step for sound in sounds] == [10, 15]
    assert sounds[0].sample_rate == 22050
    assert sounds[0].length_frames == valid.mel_lengths[0] * 256


def test_points_of_a_lost_part_are_dropped(tmp_path: Path, valid: FeatureDataset):
    for begin, end, value in ((0, 9, 1.0), (6, 8, 2.0)):
        board = TensorBoard(tmp_path, begin, 1, 1, valid)
        for update in range(begin + 1, end + 1):
            board.updated(Progress(update=update), {"total": torch.tensor(value)})
        board.close()
        time.sleep(1.1)  # event files are read in the order of their names, which have the second
    points = _events(tmp_path).Scalars("train/total")
    assert [(p.step, p.value) for p in points] == [(s, 1.0 if s < 7 else 2.0) for s in range(1, 9)]


def test_compare_leaves_the_model_as_it_was(trained: Trainer, valid: FeatureDataset):
    state = torch.get_rng_state()
    trained.model.train()
    before = {n: t.clone() for n, t in trained.model.state_dict().items()}
    held_out = compare(trained.model, valid, 1)
    assert trained.model.training
    assert all(before[n].equal(t) for n, t in trained.model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert held_out.id == valid.ids[1]
    assert held_out.truth.shape == held_out.predicted.shape == (valid.mel_lengths[1], 80)
    assert held_out.mel_l1 == pytest.approx(np.abs(held_out.truth - held_out.predicted).mean())
    assert held_out.mean_l1 == pytest.approx(np.abs(valid[1].mel).mean())


def _png(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG")
    return matplotlib.image.imread(path)


@pytest.mark.parametrize("text", ["The grey horse slept.", "?!"])
def test_results(text: str, trained: Trainer, valid: FeatureDataset, capsys: pytest.CaptureFixture):
    for name in ("loss.png", "mel.png", "sample.wav"):
        (trained.run / name).unlink(missing_ok=True)
    trained.model.eval()
    speaker = Speaker(trained.model, valid.info)
    held_out, said = write_results(trained.run, trained.progress.history, speaker, valid, text)
    assert held_out.id == valid.ids[0]
    for name in ("loss.png", "mel.png"):
        picture = _png(trained.run / name)
        assert picture.shape[0] > 300 and picture.std() > 0.05
    spoken = text
    if text == "?!":  # nothing in it to say: the held-out utterance's phonemes instead
        assert said == valid.texts[0] and "no known phoneme" in capsys.readouterr().out
        symbols = speaker.info.vocabulary.symbols
        spoken = " ".join(["{", *(symbols[i] for i in valid[0].tokens[:-1]), "}"])
    else:
        assert said == text
    audio, rate = soundfile.read(trained.run / "sample.wav")
    frames = speaker.speak(spoken, vocode=False).durations[0].sum()
    assert len(audio) == frames * 256 and rate == 22050
    assert np.abs(audio).max() > 1e-3


def test_plots_hold_the_numbers():
    figure = plot_history([_row(epoch=e, sparsity=0.5 - 0.5 * e) for e in (0, 1)])
    losses, sparsity = figure.axes
    assert [list(line.get_ydata()) for line in losses.lines] == [[4.5, 4.5], [3.25, 3.25]]
    assert list(losses.lines[0].get_xdata()) == [1, 2]
    assert list(sparsity.lines[0].get_ydata()) == [50.0, 0.0]
    mel = np.random.rand(20, 80).astype(np.float32)
    figure = plot_mel(HeldOut("x-1", mel, mel + 1, 1.0, 0.5))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["x-1, recorded", "predicted, L1 1.000"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), mel.T)


def test_observers_tell_everyone(demo_corpus: Path, tmp_path: Path):
    class Count(Observer):
        def __init__(self):
            self.calls = []

        def epoch_begins(self, *args):
            self.calls.append("begins")

        def updated(self, *args):
            self.calls.append("updated")

        def epoch_ended(self, *args):
            self.calls.append("ended")

        def close(self):
            self.calls.append("close")

    one, other = Count(), Count()
    observers = Observers(one, other)
    fit(tiny(demo_corpus, tmp_path, train={"epochs": 1}), observers)
    observers.close()
    assert one.calls == other.calls == ["begins", *["updated"] * 5, "ended", "close"]


_FULL_DISK = """
import resource, sys, torch
import subprocess
import sys
from pathlib import Path
from sniper.training.progress import Progress
from sniper.training.report import TensorBoard
board = TensorBoard(Path(sys.argv[1]), 0, 1, 1, None)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
for update in range(1, 2000):
    board.updated(Progress(update=update), {"total": torch.tensor(1.0)})
board.close()
print("to the end")
"""


def test_a_full_disk_ends_tensorboard_but_not_the_run(tmp_path: Path):
    """In a process of its own: the thread that writes, and what happens at exit, are part of it."""
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "to the end\n"
    folder = tmp_path / "tensorboard"
    said = f"note: {folder} cannot be written: File too large; training goes on without TensorBoard"
    assert done.stderr.strip() == said


def test_a_run_without_a_place_for_tensorboard_goes_on(
    demo_corpus: Path, tmp_path: Path, valid: FeatureDataset, capsys: pytest.CaptureFixture
):
    (tmp_path / "tensorboard").touch()
    board = TensorBoard(tmp_path, 0, 1, 1, valid)
    assert f"note: {tmp_path}/tensorboard cannot be written" in capsys.readouterr().err
    fit(tiny(demo_corpus, tmp_path, train={"epochs": 1}), board)
    board.close()
