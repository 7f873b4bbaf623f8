# SPDX-License-Identifier: Apache-2.0
"""Reading prepared features: items, collation, many workers, and the sampler's promises."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sniper.prepare import prepare_demo
from sniper.tts.corpus.dataset import (
    BucketBatchSampler,
    FeatureDataset,
    Item,
    collate,
    load_corpus_info,
)
from sniper.tts.errors import SpeechError
from sniper.tts.text.text import text_to_phones


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "demo"
    prepare_demo(out, utterances=14, valid=3, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def train(folder) -> FeatureDataset:
    return FeatureDataset(folder / "train.safetensors")


def test_items(train):
    assert len(train) == 11 and train.mel_lengths.sum() == sum(len(item.mel) for item in train)
    for item in train:
        assert item.tokens[-1] == train.info.vocabulary.eos == len(train.info.vocabulary) - 1
        assert item.tokens.min() > 0, "0 is padding"
        assert item.durations.sum() == len(item.mel) and item.durations[-1] == 0
        assert item.pitch[-1] == item.energy[-1] == 0
        for array in (item.mel, item.pitch, item.energy):
            assert array.dtype == np.float32 and np.isfinite(array).all()
    assert train[-1].id == train[10].id
    with pytest.raises(IndexError):
        train[11]


def test_training_set_is_normalised(train):
    mel = np.concatenate([item.mel for item in train])
    np.testing.assert_allclose(mel.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(mel.std(0), 1, atol=1e-4)
    real = np.concatenate([item.pitch[item.durations > 0] for item in train])
    assert abs(real.mean()) < 1e-4 and abs(real.std() - 1) < 1e-4


def test_inference_reads_what_training_saw(folder):
    dataset = FeatureDataset(folder / "valid.safetensors")
    for text, item in zip(dataset.texts, dataset, strict=True):
        phones = text_to_phones(text, dataset.info.frontend)
        assert dataset.info.vocabulary.encode(phones).tolist() == item.tokens.tolist()


def test_splits_share_nothing(folder, train):
    valid = FeatureDataset(folder / "valid.safetensors")
    assert len(valid) == 3 and not set(valid.ids) & set(train.ids)


def test_several_workers_read_the_same(train):
    sampler = BucketBatchSampler(train.mel_lengths, 800, seed=1)

    def batches(workers):
        loader = torch.utils.data.DataLoader(
            train, batch_sampler=sampler, collate_fn=collate, num_workers=workers
        )
        return list(loader)

    alone, together = batches(0), batches(2)
    assert [batch.ids for batch in alone] == [batch.ids for batch in together]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.mel, other.mel) and torch.equal(one.pitch, other.pitch)


def test_pickles_as_a_path(train):
    data = pickle.dumps(train)
    assert len(data) < 20_000
    np.testing.assert_array_equal(pickle.loads(data)[3].mel, train[3].mel)


def item(name, tokens, durations) -> Item:
    count = len(tokens)
    return Item(
        name,
        np.array(tokens),
        np.array(durations),
        np.full((sum(durations), 2), 7, dtype=np.float32),
        np.arange(count, dtype=np.float32),
        -np.arange(count, dtype=np.float32),
    )


def test_collate_by_hand():
    batch = collate([item("a", [1, 2, 9], [1, 1, 0]), item("b", [3, 9], [3, 0])])
    assert batch.ids == ["a", "b"] and batch.n_frames == 5
    assert batch.tokens.tolist() == [[1, 2, 9], [3, 9, 0]]
    assert batch.durations.tolist() == [[1, 1, 0], [3, 0, 0]]
    assert batch.pitch.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.energy.tolist() == [[0, -1, -2], [0, -1, 0]]
    assert batch.token_lengths.tolist() == [3, 2] and batch.mel_lengths.tolist() == [2, 3]
    assert batch.mel[..., 0].tolist() == [[7, 7, 0], [7, 7, 7]]
    assert batch.tokens.dtype == batch.durations.dtype == torch.int64
    assert batch.mel.dtype == batch.pitch.dtype == torch.float32
    with pytest.raises(ValueError, match="at least one"):
        collate([])


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=200),
    st.integers(900, 5000),
    st.integers(0, 5),
    st.booleans(),
)
def test_sampler_promises(lengths, max_frames, epoch, shuffle):
    sampler = BucketBatchSampler(lengths, max_frames, seed=3, shuffle=shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert all(len(b) * max(lengths[i] for i in b) <= max_frames for b in batches)
    again = BucketBatchSampler(lengths, max_frames, seed=3, shuffle=shuffle)
    again.set_epoch(epoch)
    assert list(again) == batches


def test_sampler_order_changes_with_epoch_and_seed_only():
    lengths = np.random.default_rng(0).integers(100, 800, size=300)

    def order(seed, epoch):
        sampler = BucketBatchSampler(lengths, 8000, seed)
        for past in range(epoch):  # having iterated before must not matter
            sampler.set_epoch(past)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 2) == order(0, 2) != order(0, 1) != order(1, 1)
    members = [{frozenset(batch) for batch in order(0, epoch)} for epoch in (0, 1)]
    assert members[0] != members[1], "not only the order of batches is new"
    padded = sum(len(b) * max(lengths[i] for i in b) for b in order(0, 0))
    assert lengths.sum() / padded > 0.92


def test_sampler_errors_name_the_utterance():
    with pytest.raises(ValueError, match=r"b \(900 frames\).*at least 900"):
        BucketBatchSampler([10, 900], 500, ids=["a", "b"])
    with pytest.raises(ValueError, match="no utterance"):
        BucketBatchSampler([], 500)
    with pytest.raises(ValueError, match="at least one frame"):
        BucketBatchSampler([0], 500)


def test_missing_or_damaged_corpus_is_said(tmp_path):
    with pytest.raises(SpeechError, match="no prepared corpus"):
        FeatureDataset(tmp_path / "train.safetensors")
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(SpeechError, match="damaged"):
        load_corpus_info(tmp_path)


def test_speakers_are_normalised_each_by_their_own(speakers_corpus, demo_corpus):
    train = FeatureDataset(speakers_corpus / "train.safetensors")
    valid = FeatureDataset(speakers_corpus / "valid.safetensors")
    assert list(train.info.speakers) == ["anna", "ben", "clara"]
    assert len({p.pitch_mean for p in train.info.speakers.values()}) == 3
    by_id = {name: i % 3 for i, name in enumerate(sorted(train.ids + valid.ids))}
    for number in range(3):
        items = [item for item in train if item.speaker == number]
        assert {by_id[item.id] for item in items} == {number}
        for name in ("pitch", "energy"):
            values = np.concatenate([getattr(i, name)[i.durations > 0] for i in items])
            assert abs(values.mean()) < 1e-4 and values.std() == pytest.approx(1, abs=1e-4)
    batch = collate([train[0], train[1]])
    assert batch.speakers.tolist() == [train[0].speaker, train[1].speaker]
    # One speaker: nothing of this is written, so old and new corpora are alike.
    alone = FeatureDataset(demo_corpus / "train.safetensors")
    assert alone[0].speaker is None and collate([alone[0]]).speakers is None
    assert "speakers" not in alone.info.to_json()


def test_a_file_that_is_written_to_while_it_is_mapped(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "corpus")
    path = tmp_path / "corpus" / "train.safetensors"
    content, dataset = path.read_bytes(), FeatureDataset(path)
    mel = dataset[0].mel
    os.utime(path, ns=(1, 1))  # as it was, at another time
    assert np.array_equal(dataset[0].mel, mel)
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(SpeechError, match="train.safetensors is damaged .* checksum is another"):
        dataset[0]
    with path.open("r+b") as file:
        file.truncate(len(content) // 2)  # reading what was mapped would end the process
    with pytest.raises(SpeechError, match="train.safetensors is damaged .*while it was in use"):
        dataset[0]
    path.write_bytes(content)
    dataset = FeatureDataset(path)
    # Prepared anew, or moved away: what is mapped stays.
    (tmp_path / "new").write_bytes(b"of another preparation")
    os.replace(tmp_path / "new", path)
    assert np.array_equal(dataset[0].mel, mel)
    path.unlink()
    assert np.array_equal(dataset[0].mel, mel)
