# SPDX-License-Identifier: Apache-2.0
"""Forward and backward as CUDA graphs: recorded once per batch shape, then replayed in one launch.

At FastSpeech2's size a step is thousands of short kernels, and launching them one by one takes
longer than running them. Graphs are recorded anew when what they launch is out of date: the layout
of a sparse layer, the choice of what runs it, or the place of a parameter, a gradient or a buffer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sniper.ops import timings
from sniper.ops.aside import Aside
from sniper.tts.corpus.batch import Batch

# The first run chooses backends and compiles kernels, the second finds workspaces in place.
WARM_UP = 2

Values = dict[str, Tensor]
Compute = Callable[[Batch, Tensor], Values]


class NotRecorded(RuntimeError):
    """A step that cannot be recorded; the text is the whole message."""


class Recorder(Protocol):
    """How a step is recorded; tests put another one in the place of `CudaRecorder`."""

    device: torch.device
    # Where weight gradients run beside the rest; None: in line.
    aside: Aside | None

    def warm_up(self, step: Callable[[], Any]) -> None:
        """Runs `step` once, where recording will happen."""

    def record(self, step: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        """Records `step` without running it; returns what replays it, and what it writes to."""
        ...

    def bring(self, own: list[Tensor], given: list[Tensor]) -> None:
        """Copies what a replay is to read to where it reads it."""

    def clear(self) -> None:
        """What was recorded so far is not replayed any more."""


class CudaRecorder:
    """`torch.cuda.CUDAGraph`, with one memory pool for all graphs: only one runs at a time."""

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()
        # The default stream cannot be recorded. What runs aside is to take what this one leaves.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._copies = torch.cuda.Stream(device)
        self.aside: Aside | None = Aside(torch.cuda.Stream(device))

    def bring(self, own: list[Tensor], given: list[Tensor]) -> None:
        # From the host on a stream of their own, while the step before still runs: that reads what
        # would be overwritten, so they wait aside.
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            aside = [t if t.is_cuda else t.to(self.device, non_blocking=True) for t in given]
        current.wait_stream(self._copies)
        for mine, theirs in _by_dtype(own, aside):
            torch._foreach_copy_(mine, theirs)  # pyright: ignore[reportPrivateImportUsage]
        for t, source in zip(aside, given, strict=True):
            if t is not source:
                t.record_stream(current)  # or its memory would be taken before it is read

    def clear(self) -> None:
        # Memory of graphs that are gone, and what cuDNN's search has tried its algorithms in, stays
        # with torch otherwise: tens of gigabytes after a few stages.
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
        # A caller may still hold values of a graph that is gone. Torch counts them as users of the
        # pool and refuses to record into it again, so each generation of graphs has its own.
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], Any]) -> None:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
        # What follows on the current stream may read what the warm-up has written.
        current.wait_stream(self._stream)

    def record(self, step: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()
            # The search may take whatever is free, which says nothing of what a run needs.
            torch.cuda.reset_peak_memory_stats()
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory for the next batches meanwhile.
        mode = "thread_local"
        current = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode=mode
            ):
                values = step()
        finally:
            # A recording that cannot be ended leaves its stream the current one.
            torch.cuda.set_stream(current)
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

    Args:
        compute: `(batch, share) -> values`; adds the gradients of `share` (a scalar tensor) times
            the batch's loss to `.grad` tensors that stay where they are, and returns the loss and
            its terms. It must not wait for the device.
        undone: runs a function and undoes what it did to gradients, buffers and generators.
        version: changes whenever recorded graphs are out of date.
        recorder: `CudaRecorder(device)` on a GPU.

    Attributes:
        recordings: how many graphs were recorded so far.
        aside: the recorder's.
    """

    def __init__(
        self,
        compute: Compute,
        undone: Callable[[Callable[[], None]], None],
        version: Callable[[], object],
        recorder: Recorder,
    ):
        self._compute, self._undone, self._version = compute, undone, version
        self._recorder = recorder
        self.aside = recorder.aside
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._of_version: object = None
        self.recordings = 0

    def __call__(self, batch: Batch, share: float) -> Values:
        """Runs one batch; the host does not wait.

        Args:
            batch: in one of a few shapes, in pinned memory of the host or on the device.
            share: of its loss in the update.

        Returns:
            Loss and terms; overwritten by the next batch of this shape.

        Raises:
            NotRecorded: recording failed; gradients, buffers and generators are as before.
        """
        self._forget_what_is_out_of_date()
        # Batch size, tokens, frames and bands: a graph holds the sizes of everything that it
        # launches.
        shape = (*batch.tokens.shape, *batch.mel.shape[1:])
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch, share)
        recorded = self._recorded[shape]
        own, source = _tensors(recorded.batch), _tensors(batch)
        # A graph reads the addresses that it was recorded with, so the batch comes to them.
        self._recorder.bring(list(own.values()), [source[name] for name in own])
        # A tensor, not a number: a number would be fixed in the recording, and an epoch's last
        # update may have fewer micro-batches.
        recorded.share.fill_(share)
        recorded.replay()
        return recorded.values

    def _forget_what_is_out_of_date(self) -> None:
        version = self._version()
        if version != self._of_version:
            self._recorded.clear()
            self._recorder.clear()
            self._of_version = version

    def _record(self, batch: Batch, share: float) -> _Recorded:
        device = self._recorder.device
        # Its own memory, even where the batch is on the device already.
        own = {n: t.to(device, copy=True) for n, t in _tensors(batch).items()}
        static, static_share = replace(batch, **own), torch.full((), share, device=device)

        def step() -> Values:
            return self._compute(static, static_share)

        def warm_up() -> None:
            for _ in range(WARM_UP):
                self._recorder.warm_up(step)

        # Backends are chosen by the time that they take on the device: replays launch nothing.
        with timings.device_time(), _cudnn_searches():
            self._undone(warm_up)
            # Tuning, or a buffer that had to grow for a longer sequence, has outdated older graphs.
            self._forget_what_is_out_of_date()
            try:
                replay, values = self._recorder.record(step)
            except RuntimeError as error:
                raise self._not_recorded(batch, error) from error
        self.recordings += 1
        return _Recorded(replay, static, static_share, values)

    def _not_recorded(self, batch: Batch, error: RuntimeError) -> NotRecorded:
        return NotRecorded(
            f"a training step of shape {list(batch.mel.shape)} cannot be recorded as a CUDA "
            f"graph; train.cuda_graphs=off trains without: {error}"
        )


@contextlib.contextmanager
def _cudnn_searches() -> Iterator[None]:
    """Inside, cuDNN times its algorithms at each new shape: a recorded step has few, and keeps
    them. Not where the same bits are asked for twice, which its choice may change.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    if not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled()):
        cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before


def _by_dtype(
    own: list[Tensor], given: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Both lists in parts of one dtype, which one launch copies."""
    for dtype in {t.dtype for t in own}:
        pairs = [(a, b) for a, b in zip(own, given, strict=True) if a.dtype == dtype]
        yield [a for a, _ in pairs], [b for _, b in pairs]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: v for name, v in values.items() if isinstance(v, Tensor)}
