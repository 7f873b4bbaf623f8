# SPDX-License-Identifier: Apache-2.0
"""A recorder of training steps that needs no GPU, and is as strict as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sniper.layers import layout_versions
from sniper.ops import dispatch

Values = dict[str, Tensor]

# What makes the host wait for a GPU, for a value or for the size of a result.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
}


class Launches(TorchDispatchMode):
    """Lists what runs with its arguments, and refuses what would wait for a GPU.

    A tensor stands in the list with its memory, shape, strides and dtype. Memory that was there
    before is named by its address: a graph would read and write there again. What is taken inside
    is named by the launch that took it, for a graph's pool gives it the same place each time.
    Numbers are listed as they are: a graph has them for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []
        self._taken: dict[int, tuple[int, int]] = {}  # by address, the launch and which result
        self._kept: list[Tensor] = []  # no address is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in WAITING or (name == "aten::index" and _by_mask(args)):
            raise AssertionError(f"{name} waits for the device inside a recording")
        given = tree_leaves((args, kwargs or {}))
        launch = (name, *(self._named(value) for value in given))
        before = {_address(t) for t in given if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for i, t in enumerate(tree_leaves(result)):
            if isinstance(t, Tensor) and _address(t) not in before:
                self._taken[_address(t)] = (len(self.seen), i)
                self._kept.append(t.detach())
        self.seen.append(launch)
        return result

    def _named(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return (
                value if isinstance(value, int | float | str | torch.dtype | None) else str(value)
            )
        memory = _address(value)
        place = self._taken.get(memory, memory) if value.numel() else None
        return place, value.storage_offset(), tuple(value.shape), value.stride(), value.dtype


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _by_mask(args: tuple) -> bool:
    return any(i is not None and i.dtype == torch.bool for i in args[1])


class SimulatedRecorder:
    """Replays by running the work again, and refuses where a graph would compute nonsense.

    That is: masks, or what runs them, are others than at recording; a weight, a buffer or a
    gradient lies elsewhere than it did; something inside waits for the device; what is launched,
    or the memory, shape, stride or dtype of any tensor that it takes, or a number, differs from
    what was recorded; launches are missing or more. Values of graphs
    that were cleared turn to NaN, as their memory would hold something else.

    Args:
        model: whose step is recorded; may be set later.

    Attributes:
        warm_ups: how often work ran apart.
        recordings, replays: how often work was recorded, and recorded work ran.
        clears: how often all graphs were dropped.
    """

    device, aside = torch.device("cpu"), None

    def __init__(self, model: nn.Module | None = None):
        self.model = model
        self.warm_ups = self.recordings = self.replays = self.clears = 0
        self._written: list[Values] = []

    def warm_up(self, work: Callable[[], Any]) -> None:
        work()
        self.warm_ups += 1

    def bring(self, own: list[Tensor], given: list[Tensor]) -> None:
        for tensor, source in zip(own, given, strict=True):
            tensor.copy_(source)

    def clear(self) -> None:
        self.clears += 1
        for values in self._written:
            for value in values.values():
                value.fill_(float("nan"))
        self._written = []

    def record(self, work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        self.recordings += 1
        recorded, values, generation = self._state(), {}, self.clears
        launches: list[tuple] = []
        self._written.append(values)

        def replay() -> None:
            if self._state() != recorded:
                raise AssertionError("a graph was replayed that is out of date")
            if self.clears != generation:
                raise AssertionError("a graph was replayed after its memory was given up")
            self.replays += 1
            with Launches() as seen:
                results = work()
            if launches and launches != seen.seen:
                pairs = zip_longest(launches, seen.seen)
                was, now = next((a, b) for a, b in pairs if a != b)
                raise AssertionError(f"recorded {was}, replayed {now}")
            launches[:] = seen.seen
            for name, value in results.items():
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
