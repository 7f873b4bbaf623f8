# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, who is told, and how it may stop before its end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sniper.training.config import Config


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite; the text is the whole message."""


class OutOfMemory(Exception):
    """A GPU whose memory a step does not fit into; the text is the whole message."""


class LoadingFailed(Exception):
    """A process that loads batches died or raised something; the text is the whole message."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        epoch: the one running, or the next.
        batch: micro-batches of it that are done.
        update: optimizer updates since the beginning.
        seconds, frames, loss_sums: of the running epoch so far; training only. The sums are those
            of the micro-batches' losses.
        padded_frames: mel frames of its batches with the padding, which is computed too.
        best_loss: lowest validation loss.
        history: one row an epoch, as `Trainer.run_epoch` returns it.
        score_seconds: time that scoring took.
        change_seconds: time that changing the sparsity took in the running epoch.
        save_seconds: time that checkpoints took since the history's last row.
        within: of the running epoch, pairs of an update and the validation loss after it.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    seconds: float = 0.0
    frames: int = 0
    padded_frames: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)
    score_seconds: float = 0.0
    change_seconds: float = 0.0
    save_seconds: float = 0.0
    within: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class EpochEnd:
    """What there is to tell of an epoch that is done.

    Args:
        row: of the history, as `Trainer.run_epoch` returns it.
        update: optimizer updates since the beginning of the run.
        last: whether it is the run's last epoch.
        flat: epochs since the lowest validation loss, at the present sparsity.
        model: what is trained; to be read, not changed.
    """

    row: dict[str, Any]
    update: int
    last: bool
    flat: int
    model: nn.Module


def flat_epochs(history: list[dict[str, Any]]) -> int:
    """Epochs since the lowest validation loss of the present sparsity.

    A change of sparsity starts the count anew: what comes after it may be higher at first, and
    falls on its own.

    Args:
        history: one row an epoch, as `Trainer.run_epoch` returns it.
    """
    # By neighbours, which is enough: sparsity never rises, so no stage comes twice.
    stages = [list(rows) for _, rows in itertools.groupby(history, lambda row: row["sparsity"])]
    losses = [row["valid"]["total"] for row in stages[-1]] if stages else [0.0]
    # The first of equal losses counts: reaching the lowest again is no improvement.
    return len(losses) - 1 - losses.index(min(losses))


def is_done(progress: Progress, config: Config) -> bool:
    """Whether a run has come to its end: all its epochs, or `train.patience` ran out."""
    if progress.epoch >= config.train.epochs:
        return True
    history, patience = progress.history, config.train.patience
    if patience is None or not history:
        return False
    # At the last sparsity alone: stopping before would leave the model sparser than the schedule
    # asks.
    at_last = history[-1]["sparsity"] == config.sparsity_schedule().sparsities[-1]
    return at_last and flat_epochs(history) >= patience


class Observer:
    """What a run tells while it goes on; the base class says nothing."""

    def epoch_begins(self, progress: Progress, batches: int, sparsity: float) -> None: ...

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None: ...

    def epoch_ended(self, end: EpochEnd) -> None: ...

    def close(self) -> None:
        """The run is over, however it ended."""
