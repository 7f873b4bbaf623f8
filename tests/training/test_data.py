# SPDX-License-Identifier: Apache-2.0
"""Epochs of any length, the same batches whoever loads them, and workers that outlast a signal."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sniper.training.config import ConfigError
from sniper.training.data import (
    EpochBatches,
    end_workers,
    loading_error,
    make_loader,
    static_shapes,
    train_batches,
    valid_batches,
)
from sniper.training.progress import Interrupted, LoadingFailed
from sniper.tts.corpus.dataset import BucketBatchSampler, FeatureDataset
from sniper.tts.errors import SpeechError


def _passes() -> BucketBatchSampler:
    return BucketBatchSampler(np.arange(10, 31), 70, seed=3)


def _row(count: int) -> list[list[int]]:
    """The first batches of the endless row of passes."""
    passes, row = _passes(), []
    for number in itertools.count():
        passes.set_epoch(number)
        row += list(passes)
        if len(row) >= count:
            return row[:count]


def _epoch(batches: EpochBatches, epoch: int, skip: int = 0) -> list[list[int]]:
    batches.seek(epoch, skip)
    result = list(batches)
    assert len(result) == len(batches)
    return result


def test_an_epoch_is_one_pass_by_default():
    n = len(_passes())
    batches = EpochBatches(_passes())
    assert _epoch(batches, 0) + _epoch(batches, 1) == _row(2 * n)
    assert sorted(i for b in _epoch(batches, 1) for i in b) == list(range(21))


def test_an_epoch_of_other_ranks_goes_on_with_what_is_left_of_it():
    """Of 2 parts, then 1, then 3, in the middle of the second epoch: all of it once."""
    lengths = np.arange(10, 31)

    def of(parts: int) -> EpochBatches:
        return EpochBatches(BucketBatchSampler(lengths, 35, seed=3, parts=parts))

    dealt: list[tuple[int, int]] = []
    seen: list[int] = []
    for parts, count in ((2, 3), (1, 4), (3, 99)):
        batches = of(parts)
        before = sum(n for _, n in dealt)
        batches.take_up(1, dealt)
        batches.seek(1, before)
        rest = list(batches)
        assert len(batches) == len(rest) == batches.of_epoch(1) - before
        seen += [i for batch in rest[:count] for i in batch]
        # Taken up by as many once more, it is where it was.
        again = of(parts)
        again.take_up(1, dealt)
        again.seek(1, before + 1)
        assert list(again) == rest[1:]
        dealt.append((parts, count))
    assert sorted(seen) == list(range(len(lengths)))
    # Other epochs are passes of their own.
    batches.seek(2)
    assert list(batches) == _epoch(of(3), 2) and len(batches) == batches.per_epoch


@pytest.mark.parametrize("per_epoch", [1, 3, 7, 100])
def test_epochs_of_any_length_cut_the_row(per_epoch: int):
    assert len(_passes()) not in (1, 3, 7, 100)
    batches = EpochBatches(_passes(), per_epoch)
    row = _row(3 * per_epoch)
    for epoch in (2, 0, 1):
        part = row[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert _epoch(batches, epoch) == part
        for skip in {0, per_epoch // 2, per_epoch}:
            assert _epoch(batches, epoch, skip) == part[skip:]


def test_what_an_epoch_begins_with_goes_past_its_end():
    """Up to a pass, or to the end of an epoch that is longer."""
    n = len(_passes())
    for per_epoch, most in ((None, n), (3, n), (2 * n, 2 * n)):
        batches = EpochBatches(_passes(), per_epoch)
        start = batches.per_epoch
        for count in (1, n - 1, 10 * n):
            due = _row(start + 2 * n)[start : start + min(count, most)]
            assert batches.beginning(1, count) == due


def test_workers_change_neither_order_nor_values_nor_the_generator(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    runs = []
    for workers in (0, 1, 2):
        batches = train_batches(dataset, 1300, 7, seed=0)
        loader = make_loader(dataset, batches, workers, pin_memory=False)
        before = torch.get_rng_state()
        seen = []
        for epoch, skip in ((0, 0), (1, 3)):
            batches.seek(epoch, skip)
            seen += [(b.ids, b.mel.clone(), b.pitch.clone()) for b in loader]
        assert torch.get_rng_state().equal(before)
        runs.append(seen)
    assert [len(run) for run in runs] == [11, 11, 11]
    for other in runs[1:]:
        for (ids, mel, pitch), (ids2, mel2, pitch2) in zip(runs[0], other, strict=True):
            assert ids == ids2 and mel.equal(mel2) and pitch.equal(pitch2)


def test_batches_keep_to_the_bound(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    for batch in train_batches(dataset, 700, None, seed=0):
        assert len(batch) * max(dataset.mel_lengths[batch]) <= 700
    one_each = train_batches(dataset, int(dataset.mel_lengths.max()), None, seed=0)
    assert 1 in map(len, one_each)


def test_one_pass_is_counted_however_long_an_epoch_is(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    endless = train_batches(dataset, 700, 10**9, seed=3)
    endless.seek(5, 2)
    assert sorted(sum(endless.one_pass(), [])) == list(range(len(dataset)))
    assert len(endless.one_pass()) == endless.per_pass < endless.per_epoch == 10**9
    assert (endless._epoch, endless._skip) == (5, 2)


def test_an_utterance_too_long_is_named_with_the_setting(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    longest = dataset.mel_lengths.argmax()
    with pytest.raises(ConfigError) as error:
        train_batches(dataset, int(dataset.mel_lengths.max()) - 1, None, seed=0)
    assert str(error.value).startswith("train.max_frames: longer than")
    with pytest.raises(ConfigError, match="^train.max_frames_per_rank: longer than"):
        train_batches(dataset, 100, None, 0, bound="max_frames_per_rank")
    assert dataset.ids[longest] in str(error.value)
    assert f"raise it to at least {dataset.mel_lengths.max()}" in str(error.value)


def test_validation_takes_what_is_too_long_for_training(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "valid.safetensors")
    batches = list(valid_batches(dataset, 1))
    assert sorted(i for b in batches for i in b) == [0, 1, 2]
    assert batches == list(valid_batches(dataset, 1))


def test_an_empty_split_is_named(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "valid.safetensors")
    dataset.ids = []
    for make in (lambda: train_batches(dataset, 100, None, 0), lambda: valid_batches(dataset, 100)):
        with pytest.raises(ConfigError, match=r"valid.safetensors holds no utterance.*--valid 1"):
            make()


def test_workers_may_hold_many_batches(demo_corpus: Path):
    """Each is some open files, and an update of 128 micro-batches more than 1024."""
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
        make_loader(dataset, [[0]], 1, pin_memory=False)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised == (hard if 0 <= hard < 65536 else 65536, hard)


def test_too_few_open_files_for_workers(demo_corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """They would tell of it without end, or have the trainer wait for ever."""
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    monkeypatch.setattr("sniper.training.data.resource.setrlimit", lambda *_: None)
    monkeypatch.setattr("sniper.training.data.resource.getrlimit", lambda _: (24, 24))
    make_loader(dataset, [[0]], 0, pin_memory=False)
    few = "train.workers: 2 expects at least 96 open files, got 24 .*`ulimit -n`.*train.workers=0"
    with pytest.raises(ConfigError, match=few):
        make_loader(dataset, [[0]], 2, pin_memory=False)


def test_signals_to_the_group_leave_workers_alive(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    batches = train_batches(dataset, 1300, 40, seed=0)
    loader = iter(make_loader(dataset, batches, 1, pin_memory=False))
    ids = [next(loader).ids]
    (worker,) = loader._workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    ids += [batch.ids for batch in loader]
    batches.seek(0)
    assert ids == [[dataset.ids[i] for i in batch] for batch in batches]


def test_a_process_that_leaves_with_workers_alive_ends(demo_corpus):
    """Workers ignore the SIGTERM that multiprocessing sends at exit and then waits for."""
    program = f"""
from sniper.training.data import make_loader, train_batches
from sniper.tts.corpus.dataset import FeatureDataset
dataset = FeatureDataset({str(demo_corpus / "train.safetensors")!r})
loader = make_loader(dataset, train_batches(dataset, 4000, None, 0), 2, False)
batches = iter(loader)
print(len(next(batches)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and int(done.stdout) > 0 and not done.stderr, done.stderr


def test_static_shapes_hold_every_batch_and_are_few(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    batches = train_batches(dataset, 1300, None, seed=0)
    shapes = static_shapes(dataset, batches)
    plain = list(make_loader(dataset, batches, 0, pin_memory=False))
    padded = list(make_loader(dataset, batches, 0, pin_memory=False, shapes=shapes))
    assert len(plain) == len(padded) == len(batches)
    for one, other in zip(plain, padded, strict=True):
        assert (*other.tokens.shape, other.mel.shape[1]) in shapes.shapes
        L, T = one.tokens.shape[1], one.mel.shape[1]
        assert one.ids == other.ids and torch.equal(one.mel, other.mel[:, :T])
        assert torch.equal(one.durations, other.durations[:, :L])
        assert torch.equal(one.mel_lengths, other.mel_lengths)


def test_token_lengths_are_those_of_the_items(demo_corpus: Path):
    dataset = FeatureDataset(demo_corpus / "train.safetensors")
    assert dataset.token_lengths.tolist() == [len(dataset[i].tokens) for i in range(len(dataset))]


class Failing(FeatureDataset):
    """Its third utterance does `harm` in whichever process loads it."""

    harm = None

    def __getitem__(self, index: int):
        if index == 2:
            self.harm()
        return super().__getitem__(index)


def _divide():
    raise ZeroDivisionError("one line\nand another")


def _damaged():
    raise SpeechError("train.safetensors is damaged (why); prepare it again")


def _open_no_more_files():
    # Only sending the batch, which shares memory, needs more; Python's queue would drop the batch.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.parametrize(
    ("harm", "kind", "said"),
    [
        (_divide, LoadingFailed, "could not be loaded (ZeroDivisionError: one line and another)"),
        (_damaged, SpeechError, "train.safetensors is damaged (why); prepare it again"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), LoadingFailed, "has died (DataLoader wor"),
        (lambda: os._exit(3), LoadingFailed, "has died (DataLoader worker (pid"),
        (_open_no_more_files, LoadingFailed, "with a larger `ulimit -n`"),
    ],
    ids=["exception", "damage", "killed", "exited", "open files"],
)
def test_a_workers_end_is_one_line(demo_corpus: Path, harm, kind, said):
    dataset = Failing(demo_corpus / "train.safetensors")
    dataset.harm = harm
    loader = make_loader(dataset, [[0, 1], [2, 3]], 1, pin_memory=False)
    loader.timeout = 60.0  # where nothing is said
    with pytest.raises(Exception) as raised:
        list(loader)
    end_workers(loader)
    found = loading_error(raised.value, dataset.path)
    assert type(found) is kind and said in str(found) and "\n" not in str(found)
    assert kind is SpeechError or "train.workers=0" in str(found)


def test_too_many_open_files_is_told_with_what_helps():
    torchs = RuntimeError("Too many open files. Communication with the workers is no longer ...")
    for error in (torchs, OSError(errno.EMFILE, os.strerror(errno.EMFILE))):
        found = loading_error(error, Path("x"))
        assert isinstance(found, LoadingFailed) and "a larger `ulimit -n`" in str(found)
        assert "train.workers=0" in str(found)


def test_an_error_that_is_no_workers_is_left_alone():
    for error in (RuntimeError("shapes cannot be multiplied"), Interrupted(), OSError(5)):
        assert loading_error(error, Path("x")) is None
