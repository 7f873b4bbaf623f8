# SPDX-License-Identifier: Apache-2.0
"""What every callback is told, and how it makes a `Sniper` of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sniper.sparsity import Sniper, SparsitySchedule


class SniperSettings:
    """Mixin of the callbacks; `sniper` is the `Sniper` at work, None before training.

    Args:
        schedule: a `SparsitySchedule` or `{epoch: sparsity}`.
        score_batches: training batches that the weights are scored on (on each process).
        loss_fn: `(model, batch) -> scalar loss` to score with; None: the loss that the trainer
            trains with.
        options: of `Sniper`: `block_size`, `exclude`, `max_param_sparsity`, ...

    Raises:
        ValueError: a schedule or number of batches that cannot be.
        TypeError: an option that `Sniper` does not have.
    """

    def __init__(
        self,
        schedule: SparsitySchedule | Mapping[int, float],
        *,
        score_batches: int = 8,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        **options: Any,
    ):
        super().__init__()
        self.schedule = SparsitySchedule(schedule)
        whole = isinstance(score_batches, int) and not isinstance(score_batches, bool)
        if not whole or score_batches < 1:
            raise ValueError(f"score_batches: expected a whole number >= 1, got {score_batches!r}")
        inspect.signature(Sniper).bind(None, schedule, **options)
        self.score_batches = score_batches
        self.loss_fn = loss_fn
        self.options = options
        self.sniper: Sniper | None = None

    def attach_to(self, model: nn.Module) -> bool:
        """Makes the `Sniper` of this model, unless it is there; returns whether it was made."""
        if self.sniper is not None and self.sniper.model is model:
            return False
        self.sniper = Sniper(model, self.schedule, **self.options)
        return True


def refuse(kind: str) -> ValueError:
    """For trainers that keep a parameter in pieces."""
    return ValueError(
        f"SniperCallback: expected whole parameters on every process (one device or DDP), got "
        f"{kind}, which shards them"
    )
