# SPDX-License-Identifier: Apache-2.0
"""Work beside the rest of a recorded step, on streams of its own.

Many kernels are too short to fill a GPU, or wait for its memory, and each waits for the one before
it. But nothing in a backward pass reads a weight's gradient, and what a model predicts aside is
read by the loss alone: such work takes what the others leave.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")

# How many gradients may be on their way at once. Each keeps what it reads, which would be free
# already.
MOST = 8


class Aside:
    """The streams of a device for what runs beside the current one, which is asked for at each
    call, since autograd runs backward on threads of its own.

    Torch gives the memory of a tensor that nobody holds to the next one on the stream that it was
    made on, which does not wait for others: so what is read aside is held here.

    Args:
        gradients: for weight gradients.
        branches: for parts of a model.
    """

    def __init__(self, gradients: torch.cuda.Stream, branches: torch.cuda.Stream):
        self._gradients, self.branches = gradients, branches
        self._under_way: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()
        self._held: list[Tensor] = []
        self._branched = False

    def run(self, compute: Callable[[], T], reads: tuple[Tensor, ...]) -> T:
        """What it returns may be used after `join`; what it reads must not be written before."""
        current = torch.cuda.current_stream(self._gradients.device)
        self._gradients.wait_stream(current)
        with torch.cuda.stream(self._gradients):
            result = compute()
            done = torch.cuda.Event()
            done.record(self._gradients)
        if current == self.branches:
            # Some of it may have been made elsewhere, where the wait below would have to be.
            reads, self._held = (), [*self._held, *reads]
        self._under_way.append((done, reads))
        if len(self._under_way) > MOST and current != self.branches:
            current.wait_event(self._under_way.popleft()[0])
        return result

    def branch_off(self) -> None:
        """What the stream of branches is given from now on comes after what the current one was
        given so far.
        """
        self.branches.wait_stream(torch.cuda.current_stream(self.branches.device))
        self._branched = True

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Until `join`."""
        self._held += tensors

    def join(self) -> None:
        """What follows on the current stream comes after everything that ran aside."""
        current = torch.cuda.current_stream(self._gradients.device)
        # A recording must not wait for a stream that has no part in it.
        if self._under_way:
            current.wait_event(self._under_way[-1][0])
        if self._branched:
            current.wait_stream(self.branches)
        self.clear()

    def clear(self) -> None:
        """Forgets what ran aside."""
        self._under_way.clear()
        self._held.clear()
        self._branched = False


class Branch:
    """A part of a model beside what follows it; its backward pass runs there too.

    Args:
        aside: None: in line.
        reads: all tensors that it reads, parameters apart.
    """

    def __init__(self, aside: Aside | None, reads: tuple[Tensor, ...]):
        self._aside, self._inside = aside, contextlib.ExitStack()
        if aside is not None:
            aside.hold(reads)

    def __enter__(self) -> Branch:
        if self._aside is not None:
            self._aside.branch_off()
            self._inside.enter_context(torch.cuda.stream(self._aside.branches))
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    def join(self) -> None:
        """What follows on the current stream may read what was computed inside."""
        if self._aside is not None:
            stream = self._aside.branches
            torch.cuda.current_stream(stream.device).wait_stream(stream)


# Tensors that are no leaves, whose gradients nothing reads before the pass's end all the same.
_unread = WeakTensorKeyDictionary()
# Not a context variable, for the same threads. One step runs at a time in a process.
_aside: Aside | None = None


@contextlib.contextmanager
def working_aside(aside: Aside | None) -> Iterator[None]:
    """Inside runs a forward and backward pass, whose weight gradients are there after `aside.join`.
    Nobody may watch gradients arrive. None: all in line.
    """
    global _aside
    before, _aside = _aside, aside
    try:
        yield
    finally:
        _aside = before
        if aside is not None:
            aside.clear()


def unread(t: Tensor) -> None:
    """Whoever only hands on the gradient of a tensor, and computes nothing of it, says so."""
    _unread[t] = True


def is_unread(t: Tensor | None) -> bool:
    """Whether nothing reads the gradient of this tensor before the pass's end."""
    return t is None or t.is_leaf or t in _unread


def run(compute: Callable[[], T], reads: tuple[Tensor, ...]) -> T:
    """Runs `compute` aside if this step has that, else at once.

    Args:
        compute: writes only what nothing reads before the step's end.
        reads: all tensors that it reads or writes and that may be gone before.
    """
    return compute() if _aside is None or not reads[0].is_cuda else _aside.run(compute, reads)


def hold(tensors: Iterable[Tensor]) -> None:
    """Whoever has made what parts of a model read that run aside, and nobody holds, says so."""
    if _aside is not None:
        _aside.hold(tensors)


def branch(*reads: Tensor) -> Branch:
    """A part of a model that reads these tensors, and is read after `join` alone: aside if this
    step has that, else in line.
    """
    return Branch(_aside if reads[0].is_cuda else None, reads)
