# SPDX-License-Identifier: Apache-2.0
"""Few shapes for all batches: they hold every batch, add padding only, and not much of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import BucketBatchSampler
from sniper.tts.corpus.shapes import StaticShapes


def make_batch(tokens: list[int], frames: list[int]) -> Batch:
    """Ones where there is something, zeros in padding."""

    def filled(lengths: list[int], dtype: torch.dtype) -> torch.Tensor:
        rows = [torch.ones(n, dtype=dtype) for n in lengths]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    return Batch(
        ids=[str(i) for i in range(len(tokens))],
        tokens=filled(tokens, torch.int64),
        token_lengths=torch.tensor(tokens),
        mel=filled(frames, torch.float32).unsqueeze(2).repeat(1, 1, 4),
        mel_lengths=torch.tensor(frames),
        durations=filled(tokens, torch.int64),
        pitch=filled(tokens, torch.float32),
        energy=filled(tokens, torch.float32),
    )


def test_a_bucket_has_one_shape_and_its_last_batch_another():
    # 5 utterances in batches of 2: one is left over. The other bucket fills no batch.
    tokens, frames = [5, 9, 7, 8, 3, 20, 17], [50, 64, 57, 60, 49, 130, 128]
    buckets = [(np.array([0, 1, 2, 3, 4]), 2), (np.array([5, 6]), 4)]
    shapes = StaticShapes.of_buckets(buckets, tokens, frames)
    assert shapes.shapes == ((1, 16, 64), (2, 16, 64), (2, 24, 136))


def test_padding_is_all_that_is_added():
    batch = make_batch([3, 5], [20, 30])
    padded = StaticShapes(((3, 8, 32), (2, 8, 40), (2, 16, 64))).pad(batch)
    assert padded.tokens.shape == padded.pitch.shape == (2, 8)
    assert padded.mel.shape == (2, 40, 4)
    assert padded.ids == batch.ids and padded.n_frames == batch.n_frames == 50
    assert torch.equal(padded.mel_lengths, batch.mel_lengths)
    assert torch.equal(padded.token_lengths, batch.token_lengths)
    for name in ("tokens", "durations", "pitch", "energy"):
        values = getattr(padded, name)
        assert torch.equal(values[:, :5], getattr(batch, name)) and not values[:, 5:].any()
    assert torch.equal(padded.mel[:, :30], batch.mel) and not padded.mel[:, 30:].any()


@pytest.mark.parametrize(
    ("tokens", "frames", "expected"),
    [
        ([8, 8], [32, 9], (2, 8, 32)),
        ([8, 8], [33, 9], (2, 8, 64)),
        ([9, 8], [32, 9], (2, 16, 64)),
        ([8], [32], (1, 24, 48)),
    ],
)
def test_the_smallest_that_holds_it(tokens, frames, expected):
    shapes = StaticShapes(((2, 8, 32), (1, 24, 48), (2, 8, 64), (2, 16, 64)))
    padded = shapes.pad(make_batch(tokens, frames))
    assert (*padded.tokens.shape, padded.mel.shape[1]) == expected


def test_a_batch_that_fits_nowhere_is_refused():
    shapes = StaticShapes(((2, 8, 32), (1, 8, 64)))
    with pytest.raises(ValueError, match=r"within \[\(2, 8, 32\), .*, got \(2, 8, 33\)"):
        shapes.pad(make_batch([8, 8], [33, 1]))


@pytest.mark.parametrize("seed", range(4))
def test_every_batch_of_a_corpus_fits_and_little_is_wasted(seed: int):
    """Speech like LJSpeech's: up to ten seconds, about seven frames a token."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(90, 870, 1000)
    tokens = np.maximum(2, frames // 7 + rng.integers(-9, 10, 1000))
    sampler = BucketBatchSampler(frames, 11_000, seed=seed)
    shapes = StaticShapes.of_buckets(sampler.buckets, tokens, frames)
    assert len(shapes.shapes) < 60
    spoken = computed = alone = 0
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for members in sampler:
            batch = make_batch(tokens[members].tolist(), frames[members].tolist())
            padded = shapes.pad(batch)
            assert len(padded) == len(batch)
            spoken += batch.n_frames
            computed += padded.mel.shape[0] * padded.mel.shape[1]
            alone += batch.mel.shape[0] * batch.mel.shape[1]
    assert spoken < alone <= computed
    assert 1 - spoken / computed < 0.08  # a bucket's lengths differ by a tenth at most
