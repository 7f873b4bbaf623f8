# SPDX-License-Identifier: Apache-2.0
"""What `concurrent.futures` leaves to its users: workers that do not outlive a killed parent, do
not run the caller's script again, and leave Ctrl-C to it.
"""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from sniper.tts.errors import SpeechError

# Forking a process that has run torch can deadlock its threads.
SPAWN = multiprocessing.get_context("spawn")

# Ctrl-C, a scheduler's or the system's wish, and a terminal or connection that is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes in here: they then do not run the caller's script again.

    A spawned process imports the main module of its parent, which fails for a script without
    `if __name__ == "__main__"` or one read from standard input, and costs a trainer's imports.
    """
    # The first process of all starts this helper, which lets Ctrl-C through again when it is up.
    multiprocessing.resource_tracker.ensure_running()
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    # Ctrl-C is held back meanwhile, and in the worker until `end_with_parent`: in the middle of its
    # imports it would print a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP do `act`; where SIGHUP is ignored, as under nohup, it stays so."""
    asked = False

    def handle(number: int, _: object) -> None:
        nonlocal asked
        # When a terminal is closed both the shell and the system say so, and that somebody closes
        # it while a run that they have stopped is saved is no second wish either.
        if number != signal.SIGHUP or not asked:
            asked = True
            act()

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or not ignored]
    # Kept to be put back: whoever calls us from a program of their own has handlers.
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP count when this ends, not in it.

    For calls into libraries that swallow what a handler raises, and fail with an error of their own
    or end the process.
    """
    # Another thread runs no handlers, and may not set any.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {}
    # By a handler and not by a mask: a mask is one thread's, and the system gives a signal to any
    # other thread of torch's, whereupon Python runs the handler in this one.
    try:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not None:  # one that is not Python's cannot be put back
                before[number] = signal.signal(number, lambda number, _: caught.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(caught):
            signal.raise_signal(number)


def end_with_parent() -> None:
    """To be called first in a worker: it ends when its parent does, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()

    def watch(sentinel: int) -> None:
        # A killed parent cannot end its workers, and they would wait for work for ever.
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, args=[parent.sentinel], daemon=True).start()


def run_in_fresh_process(function: Callable[..., None], *args) -> None:
    """Call a module-level function in a new process and wait for it.

    An executor of one worker could not be ended in the middle of its call, which Ctrl-C wants
    (`kill_workers` comes with Python 3.14), nor say with which status its process died.

    Raises:
        SpeechError: what the function raised as such, what it raised unexpectedly, or that its
            process died.
        OSError: what it raised as such.
    """
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_call, args=(sender, function, args), daemon=True)
    with without_main_module():
        process.start()
    # As long as this end is open, recv waits for a process that has died.
    sender.close()
    try:
        error = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        error = SpeechError(f"the process for it ended with exit code {process.exitcode}")
    finally:
        # It still runs only after Ctrl-C, when nobody wants its result any more.
        if process.is_alive():
            process.terminate()
            process.join()
    if error is not None:
        raise error


def map_in_processes(
    function: Callable, items: Iterable, workers: int, start: Callable[..., None], *args
) -> Iterator:
    """Call a module-level function on each item in `workers` processes; results come in order.

    Args:
        workers: 1 works in this process.
        start: called first in each process, with `args`.

    Raises:
        SpeechError: a worker process was killed.
    """
    if workers <= 1:
        start(*args)
        yield from map(function, items)
        return
    begin = (start, args)
    pool = ProcessPoolExecutor(workers, mp_context=SPAWN, initializer=_begin, initargs=begin)
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            with without_main_module():  # workers start here, when there is work for them
                waiting.append(pool.submit(function, item))
            # A bounded queue: results of a whole corpus may not fit in memory.
            if len(waiting) >= 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SpeechError(
            "a worker process was killed (out of memory?); what is done is kept: run the same "
            "command again, perhaps with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., None], args: tuple) -> None:
    end_with_parent()
    start(*args)


def _call(sender, function: Callable[..., None], args: tuple) -> None:
    end_with_parent()
    try:
        function(*args)
    except (SpeechError, OSError) as error:
        sender.send(error)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sender.send(SpeechError(f"unexpected error in {function.__name__}: {reason}"))
    else:
        sender.send(None)


def default_workers() -> int:
    """Number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
