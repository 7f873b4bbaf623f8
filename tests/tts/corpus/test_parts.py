# SPDX-License-Identifier: Apache-2.0
"""The parts of a batch are the batch: its utterances, its loss, its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import BucketBatchSampler, FeatureDataset, collate
from sniper.tts.corpus.parts import BatchParts, collate_part
from sniper.tts.corpus.shapes import StaticShapes
from sniper.tts.model.config import MASKINGS
from sniper.tts.model.loss import fastspeech2_loss


@pytest.fixture(scope="module")
def dataset(demo_corpus: Path) -> FeatureDataset:
    return FeatureDataset(demo_corpus / "train.safetensors")


def parts_of(dataset: FeatureDataset, whole: list[int], parts: int, shapes=None) -> list[Batch]:
    """As a loader makes them."""
    found = []
    for part in range(parts):
        loader = DataLoader(
            BatchParts(dataset, part, parts),
            batch_sampler=[whole],
            collate_fn=lambda p: collate_part(p, shapes),
        )
        found += list(loader)
    return found


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_every_utterance_is_in_one_part(dataset: FeatureDataset, parts: int):
    whole = [4, 0, 9, 2, 13]
    batch, found = collate([dataset[i] for i in whole]), parts_of(dataset, whole, parts)
    assert sorted(id for part in found for id in part.ids) == sorted(batch.ids)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    spoken = int((batch.durations > 0).sum())
    totals = [5, batch.n_frames, int(batch.token_lengths.sum()), spoken]
    for part in found:
        assert part.mel.shape[1:] == batch.mel.shape[1:]  # as long as the whole
        assert part.tokens.shape[1:] == batch.tokens.shape[1:]
        assert part.totals is not None and part.totals.tolist() == totals
        for name in ("tokens", "mel", "pitch"):
            assert getattr(part, name).dtype == getattr(batch, name).dtype
    assert sum(part.n_frames or 0 for part in found) == batch.n_frames


@pytest.mark.parametrize("empty_token_loss", [False, True])
@pytest.mark.parametrize("masking", MASKINGS)
def test_losses_and_gradients_add_up(dataset: FeatureDataset, masking: str, empty_token_loss: bool):
    whole = [4, 0, 9, 2, 13]

    def loss(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        shift = torch.zeros(4, requires_grad=True)
        total, _ = fastspeech2_loss(
            batch,
            mel_before=torch.ones_like(batch.mel) * 0.1 + shift[0],
            mel_after=None,
            log_durations=torch.ones_like(batch.pitch) * 0.3 + shift[1],
            pitch=torch.ones_like(batch.pitch) * 0.2 + shift[2],
            energy=torch.ones_like(batch.pitch) * -0.2 + shift[3],
            masking=masking,
            empty_token_loss=empty_token_loss,
        )
        total.backward()
        assert shift.grad is not None
        return total.detach(), shift.grad

    expected = loss(collate([dataset[i] for i in whole]))
    found = [loss(part) for part in parts_of(dataset, whole, 3)]
    for i in range(2):
        torch.testing.assert_close(sum(each[i] for each in found), expected[i])


def test_parts_fit_into_few_shapes(dataset: FeatureDataset):
    sampler = BucketBatchSampler(dataset.mel_lengths, 1300)
    lengths = (dataset.token_lengths, dataset.mel_lengths)
    shapes = StaticShapes.of_buckets(sampler.buckets, *lengths, 3)
    known = set(shapes.shapes)
    for whole in sampler:
        for part in parts_of(dataset, whole, 3, shapes):
            assert not len(part) or (*part.tokens.shape, part.mel.shape[1]) in known
    assert shapes != StaticShapes.of_buckets(sampler.buckets, *lengths)


def test_a_bound_of_each_part(dataset: FeatureDataset):
    lengths, most = dataset.mel_lengths, int(dataset.mel_lengths.max()) + 100
    sampler = BucketBatchSampler(lengths, most, parts=3)
    seen = []
    for whole in sampler:
        seen += whole
        for part in range(3):
            assert len(whole[part::3]) * lengths[whole].max() <= most
    assert sorted(seen) == list(range(len(dataset)))
