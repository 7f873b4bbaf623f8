# SPDX-License-Identifier: Apache-2.0
"""Batches for training: how long an epoch is, in which order, and how they are loaded."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import multiprocessing
import multiprocessing.queues
import multiprocessing.util  # its handler at exit must be registered before ours
import os
import re
import resource
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Sampler

from sniper.training.progress import LoadingFailed
from sniper.training.settings import ConfigError
from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import BucketBatchSampler, FeatureDataset, Item, collate
from sniper.tts.corpus.parts import BatchParts, Part, collate_part
from sniper.tts.corpus.shapes import StaticShapes
from sniper.tts.errors import SpeechError
from sniper.tts.processes import STOP_SIGNALS

_OPEN_FILES = 65536
_FEW_OPEN_FILES = 32  # of a trainer or a worker: two batches that wait, pipes, logs


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch of any length, cut from an endless row of passes over the data.

    Args:
        passes: gives the batches of one pass; their number is the same in every pass.
        per_epoch: batches of an epoch; None: one pass.

    Attributes:
        per_epoch: batches of an epoch, from its beginning.
        per_pass: batches of a pass.
    """

    def __init__(self, passes: BucketBatchSampler, per_epoch: int | None = None):
        self._passes = passes
        self.per_pass = len(passes)
        self.per_epoch = per_epoch or self.per_pass
        self._epoch = self._skip = 0
        # An epoch that was begun with other batches: what is left of it, and how many those were.
        self._rest: tuple[int, BucketBatchSampler, int] | None = None

    def take_up(self, epoch: int, dealt: Sequence[tuple[int, int]]) -> None:
        """`epoch`, a pass, goes on with the utterances that no batch has had.

        Args:
            dealt: parts of a batch, and how many batches were of so many, one after the other.
        """
        left, count = None, 0
        for parts, batches in dealt:
            passes = self._passes.of(left, parts)
            passes.set_epoch(epoch)
            done = [i for batch in list(passes)[:batches] for i in batch]
            everyone = np.arange(len(passes.lengths)) if left is None else left
            left, count = np.setdiff1d(everyone, done), count + batches
        rest = self._passes.of(left, self._passes.parts)
        rest.set_epoch(epoch)
        self._rest = epoch, rest, count

    def one_pass(self) -> list[list[int]]:
        """The batches of the first pass."""
        self._passes.set_epoch(0)
        return list(self._passes)

    def of_epoch(self, epoch: int) -> int:
        """How many batches an epoch has, from its beginning."""
        if self._rest is not None and epoch == self._rest[0]:
            return self._rest[2] + len(self._rest[1])
        return self.per_epoch

    def seek(self, epoch: int, skip: int = 0) -> None:
        """The next iteration gives `epoch` from its batch number `skip` on."""
        self._epoch, self._skip = epoch, skip

    def beginning(self, epoch: int, count: int) -> list[list[int]]:
        """`count` batches from the first of an epoch on, past its end where that comes sooner; at
        most a pass, or the epoch where it is longer.
        """
        start = epoch * self.per_epoch
        return list(self._between(start, start + min(count, max(self.per_epoch, self.per_pass))))

    @property
    def buckets(self) -> list[tuple[np.ndarray, int]]:
        """Members and batch size of each length bucket that batches are dealt from."""
        rest = [] if self._rest is None else self._rest[1].buckets
        return [*self._passes.buckets, *rest]

    def __len__(self) -> int:
        return self.of_epoch(self._epoch) - self._skip

    def __iter__(self) -> Iterator[list[int]]:
        if self._rest is not None and self._epoch == self._rest[0]:
            yield from list(self._rest[1])[self._skip - self._rest[2] :]
            return
        # Counted over the whole run, so that an epoch that is cut short or taken up in its middle
        # sees the utterances that are due, whatever was done before.
        start = self._epoch * self.per_epoch
        yield from self._between(start + self._skip, start + self.per_epoch)

    def _between(self, position: int, end: int) -> Iterator[list[int]]:
        """The batches of these numbers, counted over the whole run."""
        while position < end:
            number, offset = divmod(position, len(self._passes))
            self._passes.set_epoch(number)
            batches = list(self._passes)[offset : offset + end - position]
            yield from batches
            position += len(batches)


def train_batches(
    dataset: FeatureDataset,
    max_frames: int,
    per_epoch: int | None,
    seed: int,
    parts: int = 1,
    ranks: int = 1,
    bound: str = "max_frames",
) -> EpochBatches:
    """Length-bucketed, shuffled batches of `parts` times at most `max_frames` padded frames.

    Args:
        ranks: that share each batch.
        bound: the setting that `max_frames` comes from.

    Raises:
        ConfigError: no utterances, one of more frames than a batch may have, or fewer of them than
            ranks.
    """
    _refuse_empty(dataset)
    if len(dataset) < ranks:
        raise ConfigError(
            f"ranks: expected at most as many as there are utterances to learn from, got {ranks} "
            f"ranks and {len(dataset)} utterances in {dataset.path}: start fewer"
        )
    lengths, ids = dataset.mel_lengths, dataset.ids
    try:
        passes = BucketBatchSampler(lengths, max_frames, seed=seed, ids=ids, parts=parts)
    except ValueError as error:
        raise ConfigError(f"train.{bound}: {error}") from None
    return EpochBatches(passes, per_epoch)


def static_shapes(dataset: FeatureDataset, batches: EpochBatches, parts: int = 1) -> StaticShapes:
    """The few shapes that all of `batches` fit into, or of a part of each in so many."""
    lengths = (dataset.token_lengths, dataset.mel_lengths)
    return StaticShapes.of_buckets(batches.buckets, *lengths, parts)


def valid_batches(dataset: FeatureDataset, max_frames: int) -> EpochBatches:
    """The held-out utterances in a fixed order, in batches of `max_frames` or one utterance.

    Raises:
        ConfigError: no utterances.
    """
    _refuse_empty(dataset)
    # Without gradients an utterance that is too long for training fits into memory.
    limit = max(max_frames, int(dataset.mel_lengths.max()))
    return EpochBatches(BucketBatchSampler(dataset.mel_lengths, limit, shuffle=False))


def _refuse_empty(dataset: FeatureDataset) -> None:
    if len(dataset) == 0:
        raise ConfigError(
            f"{dataset.path} holds no utterance: training needs some to learn from and some to "
            "validate on; prepare the corpus again with --valid 1 or more"
        )


def make_loader(
    dataset: FeatureDataset | BatchParts,
    batches: Iterable[list[int]],
    workers: int,
    pin_memory: bool,
    shapes: StaticShapes | None = None,
) -> DataLoader:
    """A loader that draws nothing from the global random number generator.

    Each batch is a `Batch`, padded to one of `shapes` if there are some; of `BatchParts` this
    rank's part of it. Workers stay alive over epochs.
    """
    if workers:
        _end_workers_at_exit()
        _allow_open_files(workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=functools.partial(_collate, shapes),
        num_workers=workers,
        pin_memory=pin_memory,
        # Starting a worker imports torch again, which takes longer than an epoch of a small corpus.
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
        # A loader seeds its workers from a generator at each epoch. From the global one that would
        # change dropout after a resume in the middle of an epoch.
        generator=torch.Generator().manual_seed(0),
    )


def end_workers(loader: DataLoader) -> None:
    """Ends a loader's processes at once; the next epoch, if there is one, starts others.

    Left to the garbage collector, which may first close the queues by which they are told to end,
    each would be waited for in vain for ten seconds, in the middle of whatever runs then.
    """
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
        loader._iterator = None


def grouped(loader: Iterable[Batch], count: int, size: int) -> Iterator[list[Batch]]:
    """The micro-batches of one update each; the last may have fewer."""
    group: list[Batch] = []
    # A worker that has not yet put its signals aside would answer Ctrl-C as the trainer does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number, batch in enumerate(batches, 1):
        group.append(batch)
        # An epoch's last update may have fewer micro-batches; dropping them would lose utterances.
        if len(group) == size or number == count:
            yield group
            group = []


def loading_error(error: Exception, path: Path) -> Exception | None:
    """What a worker's end or exception means, in a line; None where `error` has another origin.

    A loader gives an exception on with its traceback as text, and that a worker has died even in
    the middle of something else, from a signal handler.

    Args:
        path: of the data, for the message.
    """
    text = str(error)
    if os.strerror(errno.EMFILE) in text:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return LoadingFailed(
            f"{path}: the batches of an update need more open files than the {most} that this "
            "process may have; the same command continues with a larger `ulimit -n`, or with "
            "train.workers=0, which needs none"
        )
    if found := re.match(r"Caught (\w+) in DataLoader worker process", text):
        reason = text.rpartition(f"{found[1]}: ")[2].strip()
        if isinstance(error, SpeechError):
            return SpeechError(reason)
        return LoadingFailed(
            f"{path}: a batch could not be loaded ({found[1]}: {' '.join(reason.split())}); with "
            "train.workers=0 the same command continues and shows where that happens"
        )
    if text.startswith("DataLoader worker"):
        how = " ".join(text.split()).partition(". ")[0].rstrip(".")
        return LoadingFailed(
            f"{path}: a process that loads batches has died ({how}), perhaps for want of memory or "
            "of shared memory (/dev/shm); the same command continues from the last checkpoint, "
            "with train.workers=0 without such processes"
        )
    return None


def _collate(shapes: StaticShapes | None, items: Sequence[Item] | Part) -> Batch:
    if isinstance(items, Part):
        return collate_part(items, shapes)
    return collate(items) if shapes is None else shapes.pad(collate(items))


def _begin_worker(worker: int) -> None:
    # Ctrl-C, a job scheduler's SIGTERM and a closed terminal's SIGHUP reach the whole process
    # group; the parent needs its workers until it has saved, and they end with it.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A batch that cannot be sent, for want of open files or of shared memory, would be dropped with
    # a traceback, and the trainer would wait for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # pyright: ignore


def _send_error(queue: multiprocessing.queues.Queue, error: Exception, message: Any) -> None:
    """Called in the thread that could not send `message`, the number of a batch and the batch."""
    queue.put((message[0], ExceptionWrapper(where="in DataLoader worker process")))


def _allow_open_files(workers: int) -> None:
    """Lets this process open more files than the usual 1024, where it may.

    A batch that a worker has loaded is eight of them while it is held, as all batches of an update
    are.

    Raises:
        ConfigError: there are too few even to start with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    # A worker that can accept no connection says so without end, and nobody else would.
    least, most = _FEW_OPEN_FILES * (1 + workers), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < least:
        raise ConfigError(
            f"train.workers: {workers} expects at least {least} open files, got {most} that this "
            "process may have; raise `ulimit -n`, or take train.workers=0, which needs none"
        )


@functools.cache
def _end_workers_at_exit() -> None:
    # At exit multiprocessing sends its children SIGTERM, which these ignore, and waits for them
    # for ever. Handlers run in reverse order, so this one comes before that one.
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
