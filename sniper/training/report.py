# SPDX-License-Identifier: Apache-2.0
"""What a run shows: a table on the terminal, TensorBoard, and pictures and sound at the end."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sniper.training.files import write_file
from sniper.training.progress import EpochEnd, Observer, Progress
from sniper.tts.audio.vocoder import GriffinLim, Vocoder
from sniper.tts.audio.writing import limit_peak, save_wav
from sniper.tts.corpus.dataset import FeatureDataset, collate
from sniper.tts.errors import SpeechError
from sniper.tts.speaker import Speaker

_COLUMNS = (
    "epoch  sparsity  density    train    valid      mel  duration  pitch  energy"
    "  frames/s  seconds  padding     GiB"
)

FLAT = 10  # epochs without a lower validation loss, after which one line says so

_RUN_SCALARS = ("sparsity", "density", "frames_per_second", "padding", "peak_memory_gib", "lr")


class Terminal(Observer):
    """A progress bar with frames/s and time left, and one table row an epoch."""

    def __init__(self, epochs: int):
        self._epochs = epochs
        self._bar: tqdm | None = None
        self._header = self._said_flat = False

    def epoch_begins(self, progress: Progress, batches: int, sparsity: float) -> None:
        self._bar = tqdm(
            total=progress.batch + batches,
            initial=progress.batch,
            desc=f"epoch {progress.epoch + 1}/{self._epochs}, sparsity {sparsity:.0%}",
            unit="batch",
            leave=False,
            disable=None if sys.stderr else True,  # no bar where nobody looks
        )

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None:
        assert self._bar is not None  # an epoch has begun
        self._bar.update(progress.batch - self._bar.n)
        rate = progress.frames / max(progress.seconds, 1e-9)
        # Without a refresh of its own: the bar draws itself often enough.
        self._bar.set_postfix_str(f"{rate:,.0f} frames/s", refresh=False)

    def epoch_ended(self, end: EpochEnd) -> None:
        if self._bar is not None:
            self._bar.close()
        if not self._header:
            _say(_COLUMNS)
            self._header = True
        # Not print, which would write into the middle of a bar.
        _say(table_row(end.row))
        epoch = end.row["epoch"] + 1
        flat = f"the validation loss has not fallen for {end.flat} epochs, since epoch"
        if end.last and epoch < self._epochs:  # nothing but patience ends a run before its epochs
            _say(f"stopped by train.patience: {flat} {epoch - end.flat}")
        elif end.flat >= FLAT and not self._said_flat:
            self._said_flat = True
            _say(f"note: {flat} {epoch - end.flat}; train.patience=N stops a run after N of them")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _say(line: str, stream: str = "stdout") -> None:
    """A line that does not break into a bar; to nobody in a program without a terminal."""
    if getattr(sys, stream) is not None:
        tqdm.write(line, file=getattr(sys, stream))


def table_row(row: dict[str, Any]) -> str:
    """One epoch under the columns of the terminal's table."""
    valid = row["valid"]
    return (
        f"{row['epoch'] + 1:5d}  {row['sparsity']:8.0%}  {row['density']:7.1%}"
        f"  {row['train'].get('total', float('nan')):7.3f}  {valid['total']:7.3f}"
        f"  {valid.get('mel_after', valid['mel_before']):7.3f}  {valid['duration']:8.3f}"
        f"  {valid['pitch']:5.2f}  {valid['energy']:6.2f}"
        f"  {row['frames_per_second']:8,.0f}  {row['seconds']:7.1f}"
        f"  {row['padding']:7.1%}  {row['peak_memory_gib']:6.2f}"
    )


class TensorBoard(Observer):
    """Scalars, mel plots and audio under RUN/tensorboard.

    A run does not end for want of them: when they cannot be written, one line says so, and the rest
    of the run goes unwatched.

    Args:
        run: the run's folder.
        update: where the run takes up; points after it, from a part that was lost, are dropped.
        log_every: updates between two training points.
        sample_every: epochs between two plots and sounds; the last epoch has some too.
        dataset: its first utterance is plotted and spoken.
        vocoder: speaks it; None: Griffin-Lim.
    """

    def __init__(
        self,
        run: Path,
        update: int,
        log_every: int,
        sample_every: int,
        dataset: FeatureDataset,
        vocoder: Vocoder | None = None,
    ):
        from torch.utils.tensorboard import SummaryWriter

        _pyplot()  # if it is not installed, that should show before the training
        self._folder = run / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._log_every, self._sample_every = log_every, sample_every
        self._dataset, self._vocoder = dataset, vocoder
        self._hook = threading.excepthook
        with self._unless_full():
            # TensorBoard drops the points at purge_step too, and those of the last update are to
            # stay.
            purge_step = update + 1 if update else None
            self._writer = SummaryWriter(self._folder, purge_step=purge_step)
            threading.excepthook = self._quietly

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None:
        if self._writer is None or progress.update % self._log_every:
            return
        with self._unless_full():
            for name, value in values.items():
                self._writer.add_scalar(f"train/{name}", float(value), progress.update)

    def epoch_ended(self, end: EpochEnd) -> None:
        if self._writer is None:
            return
        row, step = end.row, end.update
        with self._unless_full():
            for name, value in row["valid"].items():
                self._writer.add_scalar(f"valid/{name}", value, step)
            for name in _RUN_SCALARS:
                self._writer.add_scalar(f"run/{name}", row[name], step)
            if (row["epoch"] + 1) % self._sample_every == 0 or end.last:
                held_out = compare(end.model, self._dataset)
                self._writer.add_figure("mel", plot_mel(held_out), step)
                info = self._dataset.info
                mel = info.statistics.denormalize_mel(held_out.predicted)
                vocoder = self._vocoder or GriffinLim(info.features)
                audio = limit_peak(vocoder(mel))
                self._writer.add_audio("held-out", audio[None], step, info.features.sample_rate)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._unless_full():
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _unless_full(self) -> Iterator[None]:
        """Goes on without TensorBoard where its files cannot be written."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            _say(
                f"note: {self._folder} cannot be written: {reason}; training goes on without "
                "TensorBoard",
                "stderr",
            )
            writer, self._writer = self._writer, None
            if writer is not None:
                # Once it has failed to close it is closed, and will not try again at exit.
                with contextlib.suppress(OSError):
                    writer.close()

    def _quietly(self, failed: threading.ExceptHookArgs) -> None:
        # TensorBoard's writing thread passes its error on to our calls, and would print a traceback
        # as well.
        if type(failed.thread).__module__.startswith("tensorboard."):
            return
        self._hook(failed)


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, *observers: Observer):
        self._all = observers

    def epoch_begins(self, progress: Progress, batches: int, sparsity: float) -> None:
        for each in self._all:
            each.epoch_begins(progress, batches, sparsity)

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None:
        for each in self._all:
            each.updated(progress, values)

    def epoch_ended(self, end: EpochEnd) -> None:
        for each in self._all:
            each.epoch_ended(end)

    def close(self) -> None:
        for each in self._all:
            each.close()


@dataclass(frozen=True)
class HeldOut:
    """A held-out utterance, predicted with its own durations, pitch and energy.

    Args:
        id: its name.
        truth, predicted: normalised log-mels `[T, n_mels]`.
        mel_l1: mean absolute difference of the two.
        mean_l1: the same with the training set's mean mel (0 when normalised) as the prediction.
    """

    id: str
    truth: np.ndarray
    predicted: np.ndarray
    mel_l1: float
    mean_l1: float


@torch.no_grad()
def compare(model: torch.nn.Module, dataset: FeatureDataset, index: int = 0) -> HeldOut:
    """Predicts one utterance of a split beside its truth; leaves the model's mode as it was."""
    was_training = model.training
    batch = collate([dataset[index]])
    device = next(model.parameters()).device
    predicted = model.eval()(batch.to(device)).mel[0].float().cpu().numpy()
    model.train(was_training)
    truth = batch.mel[0].numpy()
    return HeldOut(
        id=batch.ids[0],
        truth=truth,
        predicted=predicted,
        mel_l1=float(np.abs(predicted - truth).mean()),
        mean_l1=float(np.abs(truth).mean()),
    )


def _pyplot():
    import matplotlib

    # The default may want a screen, which a training machine does not have.
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot_mel(held_out: HeldOut):
    """Truth above prediction."""
    figure, axes = _pyplot().subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    # The colours of both follow the recording: a prediction that is too flat is to look flat.
    low, high = np.percentile(held_out.truth, (1, 99))
    titles = (f"{held_out.id}, recorded", f"predicted, L1 {held_out.mel_l1:.3f}")
    for axis, mel, title in zip(axes, (held_out.truth, held_out.predicted), titles, strict=True):
        axis.imshow(mel.T, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")
        axis.set(title=title, ylabel="mel bin")
    axes[-1].set_xlabel("frame")
    return figure


def plot_history(history: list[dict[str, Any]]):
    """Losses and sparsity by epoch."""
    figure, axis = _pyplot().subplots(figsize=(9, 5), layout="constrained")
    epochs = [row["epoch"] + 1 for row in history]
    axis.plot(epochs, [row["train"].get("total", np.nan) for row in history], label="training loss")
    axis.plot(epochs, [row["valid"]["total"] for row in history], label="validation loss")
    axis.set(xlabel="epoch", ylabel="loss")
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper center")
    other = axis.twinx()
    sparsity = [100 * row["sparsity"] for row in history]
    other.step(epochs, sparsity, where="mid", color="gray", linestyle="--")
    other.set(ylabel="sparsity, % (dashed)", ylim=(-2, 102))
    return figure


def write_results(
    run: Path, history: list[dict[str, Any]], speaker: Speaker, dataset: FeatureDataset, text: str
) -> tuple[HeldOut, str]:
    """Writes loss.png, mel.png and sample.wav into the run's folder.

    Args:
        run: that folder.
        history: one row an epoch.
        speaker: with the weights to show.
        dataset: the held-out split.
        text: spoken to sample.wav; if it cannot be read, the held-out utterance is, from its
            phonemes.

    Returns:
        The held-out utterance, and what sample.wav says.
    """
    held_out = compare(speaker.model, dataset)
    for name, figure in (
        ("loss.png", plot_history(history)),
        ("mel.png", plot_mel(held_out)),
    ):
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100, format="png")
        # pyplot keeps every figure that nobody closes.
        _pyplot().close(figure)
        write_file(run / name, picture.getvalue())
    try:
        speech = speaker.speak(text)
        if speech.guessed:
            print(f"sample_text: {speaker.how_guessed(speech.guessed)}")
    except SpeechError as error:
        print(f"sample_text cannot be spoken: {error}; {dataset.ids[0]} is, from its phonemes")
        symbols = speaker.info.vocabulary.symbols
        # Without the end of sentence, which speaking adds itself.
        phonemes = " ".join(symbols[i] for i in dataset[0].tokens[:-1])
        speech, text = speaker.speak(f"{{ {phonemes} }}"), dataset.texts[0]
    save_wav(run / "sample.wav", speech.audio, speaker.info.features.sample_rate)
    return held_out, text
