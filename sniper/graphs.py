# SPDX-License-Identifier: Apache-2.0
"""A training step as CUDA graphs: recorded once per batch shape, then replayed with one launch.

At FastSpeech2's size a step is thousands of short kernels, and launching them one by one takes
longer than running them. A graph is recorded anew when the layouts of sparse layers, or what runs
them, have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sniper.tts.batch import Batch

WARM_UP = 3

Values = dict[str, Tensor]


class Recorder(Protocol):
    """How work is recorded; tests put another one in its place."""

    def warm_up(self, work: Callable[[], Any]) -> None:
        """Runs `work` once, apart from what is recorded."""

    def record(self, work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        """Records `work`; returns what replays it, and the tensors that it writes."""


class CudaRecorder:
    """`torch.cuda.CUDAGraph` with one memory pool for all graphs."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], Any]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            values = work()
        return graph.replay, values


@dataclass(frozen=True)
class _Recorded:
    """One shape's graph with the tensors that it reads and writes."""

    replay: Callable[[], None]
    batch: Batch
    share: Tensor
    values: Values


class StepGraphs:
    """Forward and backward of each batch shape, recorded at its first use.

    Gradients accumulate into `.grad` tensors that must stay where they are (zero them in place).

    Args:
        work: `(batch, share) -> values`; adds the gradients of `share` (a scalar tensor) times the
            batch's loss, and returns loss terms. It must not wait for the device.
        prepare: puts back what the warm-up runs have changed: gradients, BatchNorm statistics,
            generators. Called with a function that runs them.
        version: changes whenever recorded graphs are out of date.
        recorder: `CudaRecorder(device)` on a GPU.
    """

    def __init__(
        self,
        work: Callable[[Batch, Tensor], Values],
        prepare: Callable[[Callable[[], None]], None],
        version: Callable[[], object],
        recorder: Recorder,
    ):
        self._work, self._prepare, self._version = work, prepare, version
        self._recorder = recorder
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}
        self._of_version: object = None
        self.recordings = 0

    def __call__(self, batch: Batch, share: float) -> Values:
        """Runs one batch, on the host's side without waiting.

        Args:
            batch: in one of a few shapes, on the host (pinned) or on the device.
            share: of its loss in the update.

        Returns:
            Loss terms, valid until the next call with a batch of this shape.
        """
        version = self._version()
        if version != self._of_version:
            self._recorded.clear()
            self._of_version = version
        shape = (*batch.tokens.shape, batch.mel.shape[1])
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch, share)
        recorded = self._recorded[shape]
        _fill(recorded.batch, batch)
        recorded.share.fill_(share)
        recorded.replay()
        return recorded.values

    def _record(self, batch: Batch, share: float) -> _Recorded:
        device_batch = self._to_device(batch)
        share_tensor = torch.full((), share, device=device_batch.mel.device)

        def work() -> Values:
            return self._work(device_batch, share_tensor)

        def warm_up() -> None:
            # The first runs choose executors and make workspaces, none of which can be recorded.
            for _ in range(WARM_UP):
                self._recorder.warm_up(work)

        self._prepare(warm_up)
        replay, values = self._recorder.record(work)
        self.recordings += 1
        return _Recorded(replay, device_batch, share_tensor, values)

    def _to_device(self, batch: Batch) -> Batch:
        device = getattr(self._recorder, "_device", batch.mel.device)
        moved = batch.to(device)
        # Its own memory even where the batch was on the device already.
        own = {n: t.clone() for n, t in _tensors(moved).items()}
        return replace(moved, **own)


def _fill(to: Batch, batch: Batch) -> None:
    source = _tensors(batch)
    for name, tensor in _tensors(to).items():
        tensor.copy_(source[name], non_blocking=True)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: v for name, v in values.items() if isinstance(v, Tensor)}
