# SPDX-License-Identifier: Apache-2.0
"""The processes of one training: who this one is, what they tell each other, how they end together.

`torchrun` starts one process a device and says in the environment who is who; torch.distributed
carries everything else. A rank that fails leaves its message in the store that all share, where a
thread of every other rank finds it and ends that rank too, whatever it is waiting for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from sniper.sparsity.distributed import RankLost, lost_if_fails
from sniper.training.settings import ConfigError
from sniper.tts.processes import STOP_SIGNALS

T = TypeVar("T")
Told = Callable[[BaseException], tuple[str, int]]

JOIN_SECONDS = 300  # that all ranks have to start in
_POLL = 0.25  # seconds between two looks at the store
_ANSWER = 10.0  # seconds that the store has to answer in
_GRACE = 5.0  # seconds in which a rank may end by itself once another has failed
_SILENCE = 60.0  # seconds without a sign of life after which nobody waits at the end
_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ended(Exception):
    """A rank has failed and said why.

    Attributes:
        status: with which this process is to end.
    """

    def __init__(self, status: int):
        super().__init__(f"a rank has failed with status {status}")
        self.status = status


class Ranks:
    """This process among those that train one model; `ALONE` where it is the only one.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        local: which of this machine's processes it is; None: no one has said.
        store: what all share; None for one process.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local: int | None = None, store: _Store | None = None
    ):
        self.rank, self.size, self.local = rank, size, local
        self._store, self._waits = store, 0
        self._patience = float(JOIN_SECONDS)  # until `connect` says otherwise

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """How its errors begin; empty for one process."""
        return f"rank {self.rank} of {self.size}: " if self.several else ""

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def connect(self, device: torch.device, minutes: float) -> None:
        """Opens the ways between the ranks, for tensors of the host and of the device.

        Args:
            minutes: that an exchange may take before it counts as failed.
        """
        self._patience = 60 * minutes
        if self._store is None or dist.is_initialized():
            return
        cuda = device.type == "cuda"
        if cuda:
            # BatchNorm exchanges within recorded graphs, and ranks record at different times. NCCL
            # would have them meet there to register memory.
            os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
        try:
            with lost_if_fails():
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if cuda else "gloo",
                    store=self._store.store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(minutes=minutes),
                )
                if cuda:
                    _connect_gpus(device)
        except RankLost as error:
            raise RankLost(
                f"{error}; of a machine with several network interfaces set GLOO_SOCKET_IFNAME "
                "(and NCCL_SOCKET_IFNAME for GPUs) to the one by which the others reach it"
            ) from error

    def gather(self, value: T) -> list[T]:
        """A plain value of every rank, in their order."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_if_fails():
            dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Which of the flags is set on some rank."""
        if not self.several:
            return list(flags)
        # On the host: nobody waits for a GPU.
        common = torch.tensor(flags, dtype=torch.uint8)
        with lost_if_fails():
            dist.all_reduce(common, dist.ReduceOp.MAX)
        return [bool(flag) for flag in common.tolist()]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.several:
            with lost_if_fails():
                dist.all_reduce(values)
        return values

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone runs it; the others wait as long as it takes."""
        if not self.several:
            return work()
        assert self._store is not None
        key, self._waits = f"done/{self._waits}", self._waits + 1
        values: list[Any] = [None]
        if self.first:
            values = [work()]
            self._store.ask("set", key, "")
        else:
            self._await_first(key)
        with lost_if_fails():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def _await_first(self, key: str) -> None:
        """Waits for rank 0 as long as it takes and it lives."""
        assert self._store is not None
        beat, since = -1, time.monotonic()
        # Not in an exchange, which has a limit of time: preparing a corpus takes hours.
        with lost_if_fails():
            while not self._store.ask("check", [key]):
                time.sleep(_POLL)
                now = self._store.beat(0)
                if now != beat:
                    beat, since = now, time.monotonic()
                elif time.monotonic() - since > self._patience:
                    raise RankLost(_silent([0], self.size))

    def check_same(self, values: dict[str, str], what_to_do: str) -> None:
        """Refuses ranks that differ, on every rank with the same words.

        Args:
            values: what must be the same everywhere, by what it is called.
            what_to_do: the last words of the error.

        Raises:
            ConfigError: one differs.
        """
        everyone = self.gather(values)
        for name in dict.fromkeys(name for each in everyone for name in each):
            found = [each.get(name, "nothing") for each in everyone]
            for rank, other in enumerate(found):
                if other != found[0]:
                    raise ConfigError(
                        f"ranks: expected the same {name} on every rank, got {found[0]} on rank 0 "
                        f"and {other} on rank {rank}; {what_to_do}"
                    )


ALONE = Ranks()


def restarts() -> int:
    """How often torchrun has started these ranks again after a failure."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def environment() -> tuple[int, int, int | None]:
    """Rank, number of ranks and number on this machine, as torchrun puts them into the environment.

    Raises:
        ConfigError: some of it is missing or makes no sense.
    """
    given = {name: os.environ.get(name) for name in _NAMES}
    # Schedulers leave MASTER_ADDR in the environment of programs that are one process.
    if given["RANK"] is None and given["WORLD_SIZE"] is None:
        return 0, 1, None
    advice = "start with torchrun, or set all of " + ", ".join(_NAMES)
    there = [name for name in ("RANK", "WORLD_SIZE") if given[name] is not None]
    missing = [name for name in _NAMES if not given[name]]
    if missing:
        raise ConfigError(
            f"ranks: {' and '.join(there)} in the environment without {', '.join(missing)}: "
            f"{advice}; for one process unset {', '.join(there)}"
        )
    local = os.environ.get("LOCAL_RANK")
    numbers = {**given, "LOCAL_RANK": given["RANK"] if local is None else local}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        text = numbers[name] or ""
        if not (text.isascii() and text.isdigit()):
            raise ConfigError(f"ranks: {name} expected a whole number, got {text!r}: {advice}")
    rank, size = int(given["RANK"] or 0), int(given["WORLD_SIZE"] or 0)
    if not rank < size:
        raise ConfigError(f"ranks: expected RANK below WORLD_SIZE, got {rank} of {size}: {advice}")
    if not 0 < int(given["MASTER_PORT"] or 0) < 2**16:
        raise ConfigError(f"ranks: MASTER_PORT expected 1 to 65535, got {given['MASTER_PORT']}")
    return rank, size, None if local is None else int(local)


@contextlib.contextmanager
def joined(told: Told) -> Iterator[Ranks]:
    """The ranks of this training, together from here on: what ends one ends all.

    Args:
        told: an error's line for the user and the exit status.

    Raises:
        ConfigError: the environment makes no sense, or the others do not come.
        Ended: a rank has failed, this one or another, and has said why.
    """
    rank, size, local = environment()
    if size == 1:
        yield ALONE
        return
    # Elastic starts give every attempt a store or a prefix; a message of the attempt before must
    # not end this one.
    store = _Store(PrefixStore(f"sniper/{restarts()}", _meet(rank, size)))
    ranks = Ranks(rank, size, local, store)
    failures = _Failures(rank, size, store)
    with _quiet(rank > 0), failures.watched():
        try:
            yield ranks
        except BaseException as error:
            failures.tell(error, told)
        failures.leave()
    if dist.is_initialized():
        dist.destroy_process_group()


def _connect_gpus(device: torch.device) -> None:
    """NCCL connects at the first exchange of a kind, which a recording must not be."""
    values = torch.zeros(1, device=device)
    dist.all_reduce(values)
    dist.all_gather([torch.empty_like(values) for _ in range(dist.get_world_size())], values)
    torch.cuda.synchronize(device)


class _Store:
    """What all ranks share, asked with a limit of time: torch would wait for ever where whoever
    keeps it is stopped or cut off.
    """

    def __init__(self, store: Any):
        self.store = store
        self._gone: RankLost | None = None

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the store returns.

        Raises:
            RankLost: nothing for some seconds, now or before.
        """
        if self._gone is not None:
            raise self._gone
        answers: list[Any] = []
        errors: list[RuntimeError] = []

        def ask() -> None:
            try:
                answers.append(getattr(self.store, method)(*args))
            except RuntimeError as error:
                errors.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_ANSWER)
        if errors:
            raise errors[0]
        if not answers:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            self._gone = RankLost(
                f"the exchange with other ranks failed: {where} (MASTER_ADDR and MASTER_PORT) does "
                "not answer any more; the process there was stopped, or its machine or the network "
                "to it is gone"
            )
            raise self._gone
        return answers[0]

    def beat(self, rank: int) -> int:
        """A number that grows while a rank lives."""
        return self.ask("add", f"beat/{rank}", 0)


def _silent(ranks: Sequence[int], size: int) -> str:
    """What to tell of ranks that were not heard of."""
    # A rack that loses its network is hundreds of them.
    which = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return (
        f"the exchange with other ranks failed: rank {which} of {size} does not answer any more; "
        "it was killed or stopped, or its machine or the network to it is gone"
    )


def _meet(rank: int, size: int) -> Any:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"ranks: rank {rank} of {size} has not met the others at {where} (MASTER_ADDR and "
            f"MASTER_PORT) within {JOIN_SECONDS} s: {reason}; start all of them, with one address "
            "that each can reach"
        ) from None
    return store


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Neither prints nor warns: rank 0 says the same."""
    if not quiet:
        yield
        return
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _ignore_signals() -> None:
    """Nothing stops this process any more: it ends by itself."""
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class _Failures:
    """The first failure of any rank, which all ranks end with."""

    def __init__(self, rank: int, size: int, store: _Store):
        self._rank, self._size, self._store = rank, size, store
        self._host = socket.gethostname()
        self._over = threading.Event()

    def tell(self, error: BaseException, told: Told) -> NoReturn:
        """Says this rank's failure, and leaves it for the others, unless one of them was first.

        Raises:
            Ended: always.
        """
        silent: list[int] = []
        if isinstance(error, RankLost):
            # Whoever was lost has ended for a reason, which it may be about to tell.
            silent, error = self._who_is_lost(error)
        elif self._rank:
            self._wait_for_another(1.0)  # where all end alike, rank 0 says it
        line, status = told(error)
        mine = {"rank": self._rank, "host": self._host, "line": line, "status": status or 1}
        first = mine
        with contextlib.suppress(RuntimeError):  # whoever keeps the store may be gone
            text = json.dumps(mine)
            first = json.loads(self._store.ask("compare_set", "failure", "", text).decode())
        self._over.set()
        if first == mine:
            # Before the others end: then torchrun ends whoever is left.
            if not status:
                traceback.print_exception(error)
            print(line, file=sys.stderr, flush=True)
        _ignore_signals()
        with contextlib.suppress(RuntimeError):
            self._store.ask("add", "seen", 1)
            if self._rank == 0:  # the store may be in this very process
                there = self._size - len(silent)
                self._until(lambda: self._store.ask("add", "seen", 0) >= there, 2 * _GRACE)
        raise Ended(first["status"]) from None

    def leave(self) -> None:
        """All is done here; whoever keeps the store stays until all are, or the rest is silent."""
        self._over.set()
        with contextlib.suppress(RuntimeError):
            self._store.ask("add", "left", 1)
            if self._rank == 0:
                self._stay()

    def _stay(self) -> None:
        """Until all have left. One that died behind the last update is not waited for: what all
        were to do is done.
        """
        heard, since = None, time.monotonic()
        while (left := self._store.ask("add", "left", 0)) < self._size:
            # Whoever has left is silent too, so it is the rest's silence when all are.
            now = left, [self._store.beat(rank) for rank in range(1, self._size)]
            if now != heard:
                heard, since = now, time.monotonic()
            elif time.monotonic() - since > _SILENCE:
                missing = f"{self._size - left} of {self._size}"
                print(
                    f"warning: all is done and saved, but ranks that have not ended: {missing}, "
                    f"of which nothing was heard for {_SILENCE:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                return
            time.sleep(_POLL)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, another rank's failure ends this process."""
        # A client of its own: one that waits keeps others from asking.
        own = self._store.store.clone()
        watcher = threading.Thread(target=self._watch, args=(own,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            # A thread that is inside the store when Python ends aborts the process. It leaves at
            # its next look, unless nobody answers there.
            watcher.join(_GRACE)

    def _watch(self, store: Any) -> None:
        while not self._over.wait(_POLL):
            try:
                store.add(f"beat/{self._rank}", 1)
                if not store.check(["failure"]):
                    continue
                failure = json.loads(store.get("failure").decode())
            except RuntimeError:
                return  # whoever kept the store is gone; exchanges fail by themselves
            if failure["rank"] == self._rank:
                return
            self._show(failure)
            # It may be waiting for the other one, or end by itself.
            if not self._over.wait(_GRACE):
                with contextlib.suppress(RuntimeError):
                    store.add("seen", 1)
                os._exit(failure["status"])
            return

    def _show(self, failure: dict[str, Any]) -> None:
        # On its own machine the rank that failed has said it.
        if self._rank == 0 and failure["host"] != self._host and failure["line"]:
            print(f"{failure['line']} (on {failure['host']})", file=sys.stderr, flush=True)

    def _who_is_lost(self, error: RankLost) -> tuple[list[int], RankLost]:
        """The ranks that nothing is heard of, and the error in better words; none where one has
        said why it failed.
        """
        others = [rank for rank in range(self._size) if rank != self._rank]
        try:
            before = {rank: self._store.beat(rank) for rank in others}
            self._wait_for_another(_GRACE)
            if self._store.ask("check", ["failure"]):
                return [], error
            silent = [rank for rank in others if self._store.beat(rank) == before[rank]]
        except RankLost as lost:
            return others, lost
        except RuntimeError:  # whoever keeps the store is gone
            return others, error
        return silent, RankLost(_silent(silent, self._size)) if silent else error

    def _wait_for_another(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):
            self._until(lambda: self._store.ask("check", ["failure"]), seconds)

    def _until(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(_POLL)
