# SPDX-License-Identifier: Apache-2.0
"""What every callback is told, and how it makes a `Sniper` of it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sniper.sparsity import Sniper, SparsitySchedule
from sniper.sparsity.ddp import compress_gradients
from sniper.sparsity.deprecated import new_names
from sniper.sparsity.distributed import several
from sniper.sparsity.exchange import DTYPES, GradientExchange


class SniperSettings:
    """Mixin of the callbacks.

    Args:
        schedule: a `SparsitySchedule` or `{epoch: sparsity}`.
        score_batches: training batches that the weights are scored on (on each process).
        loss_fn: `(model, batch) -> scalar loss` to score with; None: the one that the callback's
            own page names.
        exchange: torch.float32 or torch.bfloat16: where DDP trains in several processes, gradients
            of active weights alone are exchanged, in this dtype. None leaves that to DDP.
        options: of `Sniper`: `block_size`, `exclude`, `cap`, ...

    Attributes:
        sniper: the `Sniper` in use; None before training.
        gradient_exchange: what `exchange` asked for, whose `bytes` count; None before training, and
            in a single process.

    Raises:
        ValueError: a schedule, number of batches or dtype that cannot be.
        TypeError: an option that `Sniper` does not have.
    """

    def __init__(
        self,
        schedule: SparsitySchedule | Mapping[int, float],
        *,
        score_batches: int = 8,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        exchange: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        ready = isinstance(schedule, SparsitySchedule)
        self.schedule = schedule if ready else SparsitySchedule(schedule)
        whole = isinstance(score_batches, int) and not isinstance(score_batches, bool)
        if not whole or score_batches < 1:
            raise ValueError(f"score_batches: expected a whole number >= 1, got {score_batches!r}")
        if loss_fn is not None and not callable(loss_fn):
            raise ValueError(f"loss_fn: expected (model, batch) -> loss or None, got {loss_fn!r}")
        if exchange is not None and exchange not in DTYPES:
            raise ValueError(
                f"exchange: expected torch.float32, torch.bfloat16 or None, got {exchange!r}"
            )
        known = [n for n in inspect.signature(Sniper).parameters if n not in ("model", "schedule")]
        self.score_batches = score_batches
        self.loss_fn = loss_fn
        self.exchange = exchange
        self.gradient_exchange: GradientExchange | None = None
        self.options = new_names(options, known, stacklevel=4)
        if self.options.get("growth", "score") != "score":
            raise ValueError(
                f"growth: expected 'score' in a callback, got {self.options['growth']!r}, which "
                "needs batches at each change of the sparsity: call Sniper.step in a loop of yours"
            )
        self.sniper: Sniper | None = None

    def attach_to(self, model: nn.Module) -> bool:
        """Makes the `Sniper` of this model, unless it is there; returns whether it was made."""
        if self.sniper is not None and self.sniper.model is model and not self.sniper.detached:
            return False
        self.sniper = Sniper(model, self.schedule, **self.options)
        return True

    @property
    def attached(self) -> Sniper:
        """The `Sniper` of the model in training.

        Raises:
            ValueError: training has not begun.
        """
        if self.sniper is None:
            raise ValueError("SniperCallback: expected a training that has begun, got none yet")
        return self.sniper

    def compress(self, ddp: Any) -> None:
        """Has DDP exchange what is active, where `exchange` asks for it and there are several
        processes.

        Raises:
            ValueError: `ddp` is no DDP around the model, or has another communication hook.
        """
        if self.exchange is not None and several():
            self.gradient_exchange = compress_gradients(ddp, self.attached, self.exchange)

    def check_start(self, epoch: int, resumed: bool = False) -> None:
        """Refuses a training that begins where the schedule is sparser than the model.

        Args:
            epoch: that the trainer begins with.
            resumed: whether it goes on from a checkpoint.

        Raises:
            ValueError: an earlier training went further in the schedule.
        """
        sparsity, asked = self.attached.sparsity, self.schedule.sparsity_at(epoch)
        if sparsity is None or asked <= sparsity:
            return
        if resumed:
            raise ValueError(
                f"SniperCallback: expected a checkpoint of epoch {epoch}, where the schedule has "
                f"sparsity {asked:g}, got one with masks of sparsity {sparsity:g}: resume with the "
                "batch size and schedule that it was saved with"
            )
        raise ValueError(
            f"SniperCallback: expected a model at the start of its schedule (sparsity {asked:g} in "
            f"epoch {epoch}), got one that an earlier training left at {sparsity:g}: to train on "
            "like this remove the callback; to go through the schedule again call "
            "callback.sniper.detach() first; to resume name a checkpoint"
        )

    def warn_at_end(self) -> None:
        """Says that training ended before the schedule did."""
        last = self.schedule.sparsities[-1]
        if self.sniper is not None and (self.sniper.sparsity or 0) > last:
            when = next(epoch for epoch, sparsity in self.schedule if sparsity == last)
            warnings.warn(
                f"SniperCallback: training ended at sparsity {self.sniper.sparsity:.0%}; the "
                f"schedule goes on to {last:.0%} at epoch {when}: train longer, or shorten it",
                stacklevel=3,
            )


def refuse(kind: str) -> ValueError:
    """For trainers that keep a parameter in pieces."""
    return ValueError(
        f"SniperCallback: expected whole parameters on every process (one device or DDP), got "
        f"{kind}, which shards them"
    )
