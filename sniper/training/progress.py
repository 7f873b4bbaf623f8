# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, who is told, and how it may stop before its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite; the text is the whole message."""


class OutOfMemory(Exception):
    """A GPU whose memory a step does not fit into; the text is the whole message."""


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


@dataclass(frozen=True)
class EpochEnd:
    """What there is to tell of an epoch that is done.

    Args:
        row: of the history, as `Trainer.run_epoch` returns it.
        update: optimizer updates since the beginning of the run.
        last: whether it is the run's last epoch.
        model: what is trained; to be read, not changed.
    """

    row: dict[str, Any]
    update: int
    last: bool
    model: nn.Module


class Observer:
    """What a run tells while it goes on; the base class says nothing."""

    def epoch_begins(self, progress: Progress, batches: int, sparsity: float) -> None: ...

    def updated(self, progress: Progress, values: dict[str, Tensor]) -> None: ...

    def epoch_ended(self, end: EpochEnd) -> None: ...

    def close(self) -> None:
        """The run is over, however it ended."""
