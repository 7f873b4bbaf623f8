# SPDX-License-Identifier: Apache-2.0
"""Weight gradients on a stream of their own, beside the rest of a backward pass.

Nothing in a backward pass reads a weight's gradient, while every other kernel waits for the one
before it: many are too short to fill a GPU, or wait for its memory. What runs beside them takes
what they leave.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")

# How many may be on their way at once. Each keeps what it reads, which would be free already.
MOST = 8


class Aside:
    """Runs functions on a second stream, each after what the current one was given before it.

    Args:
        stream: the second one; the current one is asked for at each call, since autograd runs
            backward on threads of its own.
    """

    def __init__(self, stream: torch.cuda.Stream):
        self._stream = stream
        self._under_way: deque[tuple[torch.cuda.Event, tuple[Tensor, ...]]] = deque()

    def run(self, compute: Callable[[], T], reads: tuple[Tensor, ...]) -> T:
        """What it returns may be used after `join`; what it reads must not be written before.

        Nothing here holds what it returns: autograd would copy a gradient that somebody holds, and
        so read it at once.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = compute()
            # Torch would give the memory to the next on the current stream, which does not wait.
            done = torch.cuda.Event()
            done.record(self._stream)
            self._under_way.append((done, reads))
        if len(self._under_way) > MOST:
            current.wait_event(self._under_way.popleft()[0])
        return result

    def join(self) -> None:
        """What follows on the current stream comes after everything that ran aside."""
        if self._under_way:  # a recording must not wait for a stream that has no part in it
            last, _ = self._under_way[-1]
            torch.cuda.current_stream(self._stream.device).wait_event(last)
        self.forget()

    def forget(self) -> None:
        """Holds nothing any more, and waits for nothing that ran so far."""
        self._under_way.clear()


# Tensors that are no leaves, whose gradients nothing reads before the pass's end all the same.
_unread = WeakTensorKeyDictionary()
# Not a context variable, for the same threads. One step runs at a time in a process.
_aside: Aside | None = None


@contextlib.contextmanager
def weight_gradients_aside(aside: Aside | None) -> Iterator[None]:
    """Inside runs a backward pass, whose weight gradients are added to `.grad` aside; at the end
    they are there. None: in line. Nobody may watch gradients arrive.
    """
    global _aside
    before, _aside = _aside, aside
    try:
        yield
    except BaseException:
        # Also of a pass that failed: a recording cannot end before every stream has come back to
        # its own, and would tell of that in place of the failure.
        if aside is not None:
            with contextlib.suppress(RuntimeError):
                aside.join()
        raise
    else:
        if aside is not None:
            aside.join()
    finally:
        _aside = before
        if aside is not None:
            aside.forget()  # the next pass must not wait for events of this one


def unread(t: Tensor) -> None:
    """Whoever only hands on the gradient of a tensor, and computes nothing of it, says so."""
    _unread[t] = True


def is_unread(t: Tensor | None) -> bool:
    """Whether nothing reads the gradient of this tensor before the pass's end."""
    return t is None or t.is_leaf or t in _unread


def run(compute: Callable[[], T], reads: tuple[Tensor, ...]) -> T:
    """Runs `compute` aside if this pass has that, else at once.

    Args:
        compute: writes only what nothing reads before the pass's end.
        reads: all tensors that it reads and that may be gone before.
    """
    return compute() if _aside is None or not reads[0].is_cuda else _aside.run(compute, reads)
