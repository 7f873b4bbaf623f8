# SPDX-License-Identifier: Apache-2.0
"""What is recorded, when it is recorded anew, and that a replay sees the new batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sniper.ops import aside, timings
from sniper.ops.aside import weight_gradients_aside
from sniper.training.graphs import WARM_UP, CudaRecorder, NotRecorded, StepGraphs
from sniper.tts.corpus.batch import Batch


class Recorder:
    """Keeps a list of what happened."""

    device, aside = torch.device("cpu"), None

    def __init__(self):
        self.log: list[str] = []

    def bring(self, own: list, given: list) -> None:
        for tensor, source in zip(own, given, strict=True):
            tensor.copy_(source)

    def warm_up(self, work: Callable) -> None:
        self.log.append("warm up")
        work()

    def clear(self) -> None:
        pass

    def record(self, work: Callable) -> tuple[Callable[[], None], dict[str, Tensor]]:
        self.log.append("record")
        values: dict[str, Tensor] = {}

        def replay() -> None:
            self.log.append("replay")
            values.update(work())

        return replay, values


def make_batch(size: int, frames: int, value: float = 1.0) -> Batch:
    tokens = torch.ones(size, 3, dtype=torch.int64)
    return Batch(
        ids=[f"{value}-{i}" for i in range(size)],
        tokens=tokens,
        token_lengths=torch.full((size,), 3),
        mel=torch.full((size, frames, 2), value),
        mel_lengths=torch.full((size,), frames),
        durations=tokens,
        pitch=torch.zeros(size, 3),
        energy=torch.zeros(size, 3),
    )


class Case:
    """Work that sums the mel, and counts into a "gradient"."""

    def __init__(self):
        self.recorder, self.version, self.total = Recorder(), 0, torch.zeros(())
        self.graphs = StepGraphs(self.work, self.apart, lambda: self.version, self.recorder)

    def work(self, batch: Batch, share: Tensor) -> dict[str, Tensor]:
        self.total += share * batch.mel.sum()
        return {"total": batch.mel.sum()}

    def apart(self, run: Callable[[], None]) -> None:
        before = self.total.clone()
        run()
        self.total.copy_(before)

    def happened(self) -> list[str]:
        log, self.recorder.log = self.recorder.log, []
        return log


FIRST = ["warm up"] * WARM_UP + ["record", "replay"]


def test_a_shape_is_recorded_once_and_then_replayed():
    case = Case()
    assert float(case.graphs(make_batch(2, 4), 1.0)["total"]) == 16
    assert case.happened() == FIRST
    assert float(case.graphs(make_batch(2, 4, 3.0), 0.5)["total"]) == 48
    assert case.happened() == ["replay"]
    assert float(case.total) == 16 + 24  # the warm-up has left nothing
    case.graphs(make_batch(2, 5), 1.0)
    case.graphs(make_batch(1, 4), 1.0)
    assert case.happened() == 2 * FIRST
    for size, frames in ((2, 4), (2, 5), (1, 4)):
        case.graphs(make_batch(size, frames), 1.0)
    assert case.happened() == 3 * ["replay"] and case.graphs.recordings == 3


def test_all_is_recorded_anew_when_the_version_changes():
    case = Case()
    for _ in range(2):
        case.graphs(make_batch(2, 4), 1.0)
        case.graphs(make_batch(2, 5), 1.0)
    case.happened()
    case.version = 1
    case.graphs(make_batch(2, 4), 1.0)
    case.graphs(make_batch(2, 5), 1.0)
    assert case.happened() == 2 * FIRST
    case.graphs(make_batch(2, 4), 1.0)
    assert case.happened() == ["replay"]


def test_what_a_warm_up_outdates_is_recorded_anew_and_the_new_graph_stays():
    """Tile sizes that are tuned, or a buffer that grows, change what older graphs launch."""
    case = Case()
    case.graphs(make_batch(2, 4), 1.0)
    case.happened()
    before = case.recorder.warm_up

    def tuning(work: Callable) -> None:
        before(work)
        case.version = 1

    case.recorder.warm_up = tuning
    case.graphs(make_batch(2, 5), 1.0)
    case.graphs(make_batch(2, 5), 1.0)
    assert case.happened() == [*FIRST, "replay"]
    case.graphs(make_batch(2, 4), 1.0)
    assert case.happened() == FIRST


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_cudnn_searches_while_a_step_is_recorded_alone(monkeypatch, deterministic, before, fails):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    case, seen = Case(), []

    def work(batch, share):
        seen.append(torch.backends.cudnn.benchmark)
        if fails and len(seen) == WARM_UP:
            raise RuntimeError("no")
        return {"total": batch.mel.sum()}

    case.graphs._compute = work
    with contextlib.suppress(RuntimeError):
        case.graphs(make_batch(2, 4), 1.0)
    assert len(seen) >= WARM_UP and set(seen[:WARM_UP]) == {before or not deterministic}
    assert torch.backends.cudnn.benchmark == before


def test_choices_of_a_recorded_step_are_by_device_time():
    case, seen = Case(), []
    inner = case.work
    case.graphs._compute = lambda *args: seen.append(timings._device_time) or inner(*args)
    case.graphs(make_batch(2, 4), 1.0)
    assert seen[:WARM_UP] == [True] * WARM_UP and not timings._device_time


def test_the_callers_batch_is_only_read():
    case = Case()
    batches = [make_batch(2, 4, value) for value in (1.0, 2.0)]
    for batch in batches:
        case.graphs(batch, 1.0)
    assert [float(b.mel.sum()) for b in batches] == [16, 32]


def test_a_failed_recording_says_how_to_train_without():
    case = Case()

    def fail(work: Callable) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    case.recorder.record = fail
    message = r"shape \[2, 4, 2\].*train.cuda_graphs=off.*not permitted"
    with pytest.raises(NotRecorded, match=message):
        case.graphs(make_batch(2, 4), 1.0)
    del case.recorder.record
    assert float(case.graphs(make_batch(2, 4), 1.0)["total"]) == 16


@pytest.mark.gpu
def test_a_recording_that_fails_beside_work_aside_leaves_nothing_behind():
    """As out of memory in a backward pass: its own words come out, and the next recording works."""
    recorder = CudaRecorder(torch.device("cuda"))
    x, current = torch.ones(1 << 20, device="cuda"), torch.cuda.current_stream()

    def fails() -> dict[str, Tensor]:
        with weight_gradients_aside(recorder.aside):
            aside.run(lambda: x.mul_(2), (x,))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        recorder.record(fails)
    assert torch.cuda.current_stream() == current
    replay, values = recorder.record(lambda: {"total": x + 1})
    x.fill_(3)
    replay()
    assert values["total"].eq(4).all()


@pytest.mark.gpu
def test_cuda_replays_what_it_recorded():
    device = torch.device("cuda")
    case = Case()
    case.total = case.total.to(device)
    graphs = StepGraphs(case.work, case.apart, lambda: case.version, CudaRecorder(device))
    for value in (1.0, 2.0, 3.0):
        assert float(graphs(make_batch(2, 4, value).pin_memory(), 0.5)["total"]) == 16 * value
    assert float(case.total) == 8 * (1 + 2 + 3) and graphs.recordings == 1
