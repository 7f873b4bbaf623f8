# SPDX-License-Identifier: Apache-2.0
"""A recorder of training steps that needs no GPU, and is as strict as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sniper.layers import layout_versions
from sniper.ops import dispatch

Values = dict[str, Tensor]


class SimulatedRecorder:
    """Replays by running the work again, and refuses where a graph would compute nonsense: when
    masks, or what runs them, are others than at recording, or when a weight, a buffer or a gradient
    lies elsewhere than it did.

    Args:
        model: whose step is recorded; may be set later.

    Attributes:
        warm_ups: how often work ran apart.
        recordings, replays: how often work was recorded, and recorded work ran.
    """

    device = torch.device("cpu")

    def __init__(self, model: nn.Module | None = None):
        self.model = model
        self.warm_ups = self.recordings = self.replays = 0

    def warm_up(self, work: Callable[[], Any]) -> None:
        work()
        self.warm_ups += 1

    def record(self, work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        self.recordings += 1
        recorded, values = self._state(), {}

        def replay() -> None:
            if self._state() != recorded:
                raise AssertionError("a graph was replayed that is out of date")
            self.replays += 1
            for name, value in work().items():
                if name in values:
                    values[name].copy_(value)  # a graph writes to the same place each time
                else:
                    values[name] = value.clone()

        return replay, values

    def _state(self) -> tuple:
        parameters = list(self.model.parameters())
        grads = [None if p.grad is None else p.grad.data_ptr() for p in parameters]
        tensors = [t.data_ptr() for t in [*parameters, *self.model.buffers()]]
        return grads, tensors, layout_versions(self.model), dispatch.forced()
