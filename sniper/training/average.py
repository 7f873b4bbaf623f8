# SPDX-License-Identifier: Apache-2.0
"""A moving average of the weights, which speaks in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """`average += (1 - d) * (weights - average)` after each update, with d = `min(decay, (1 + n) /
    (10 + n))` at update n, so that the first weights are soon forgotten.

    BatchNorm's statistics are averaged as the weights are.

    Args:
        model: whose parameters and buffers in floating point are averaged.
        decay: above 0, below 1.

    Attributes:
        updates: that it has seen.

    Source: Polyak and Juditsky (1992); the growing decay is that of TensorFlow's
        `ExponentialMovingAverage`.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._model, self._decay = model, decay
        self.updates = 0
        self._values: dict[str, Tensor] = {}

    def _own(self) -> dict[str, Tensor]:
        """What is averaged, as it is now."""
        return {n: t for n, t in self._model.state_dict().items() if t.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights into the average; call it after the optimizer's step."""
        own = self._own()
        self.updates += 1
        if not self._values:
            # Of the first update and not before: the first masks have zeroed by then what they
            # prune, and it stays 0 in the average too.
            self._values = {n: t.clone() for n, t in own.items()}
            return
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        own_values = list(own.values())
        torch._foreach_lerp_(list(self._values.values()), own_values, 1 - decay)  # pyright: ignore

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average while the `with` block lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Values move and tensors stay: optimizers and recorded graphs know them by address.
        own = self._own()
        for name, value in self._values.items():
            held = own[name].clone()
            own[name].copy_(value)
            value.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Call it within `in_place`, while the model holds the average.

        Returns:
            `updates`, and `weights`: what is trained, by name.
        """
        return {"updates": self.updates, "weights": {n: t.cpu() for n, t in self._values.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave, when the model holds the saved average and the masks are
        in force; after it the model holds the weights.

        Raises:
            ValueError: weights of another model, or no count of updates.
        """
        updates, weights, own = state["updates"], state["weights"], self._own()
        if type(updates) is not int or updates < 0 or not isinstance(weights, dict):
            raise ValueError(f"expected a number of updates and weights, got {updates!r:.60}")
        if set(weights) != (set(own) if updates else set()):
            raise ValueError(f"expected weights of {len(own)} names, got {len(weights)}")
        for name, value in weights.items():
            here = own[name]
            if not isinstance(value, Tensor) or (value.shape, value.dtype) != (
                here.shape,
                here.dtype,
            ):
                raise ValueError(f"expected {name} of shape {list(here.shape)}")
        self.updates = updates
        self._values = {n: own[n].clone().copy_(value) for n, value in weights.items()}
        self._exchange()
