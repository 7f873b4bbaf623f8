# SPDX-License-Identifier: Apache-2.0
"""Prepared data that are damaged, or of another shape than a preparation writes, are one line with
the file and the remedy, with checksums and without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.dataset import CORPUS, CorpusInfo, FeatureDataset
from sniper.tts.corpus.features import Statistics
from sniper.tts.corpus.store import TensorStream, write_tensors
from sniper.tts.errors import SpeechError
from sniper.tts.files import sealed, write_json
from sniper.tts.text.text import LexiconFrontend, Vocabulary

ARRAYS = {
    "mel_offsets": np.array([0, 3, 5]),
    "token_offsets": np.array([0, 2, 4]),
    "mel": np.arange(20, dtype=np.float32).reshape(5, 4),
    "pitch": np.array([5, np.nan, 5.1, 5.2], np.float32),
    "energy": np.array([1, 2, 3, 4], np.float32),
    "tokens": np.array([1, 2, 2, 1], np.int32),
    "durations": np.array([3, 0, 1, 1], np.int32),
}
METADATA = {"ids": '["a", "b"]', "texts": '["A.", "B."]'}
INFO = CorpusInfo(
    Vocabulary.from_phones(["AH", "B"]),
    FeatureConfig(n_mels=4),
    Statistics(np.zeros(4, np.float32), np.ones(4, np.float32), 5.0, 0.2, 2.0, 1.0),
    LexiconFrontend({"a": "AH", "b": "B"}),
    "a test",
)


def write(
    folder: Path, arrays: dict, metadata: dict = METADATA, about: Any = None, seal: bool = False
) -> Path:
    path = folder / "train.safetensors"
    streams = {n: TensorStream(a.dtype, a.shape, [a]) for n, a in arrays.items()}
    write_tensors(path, streams, metadata)
    about = INFO.to_json() if about is None else about
    write_json(folder / CORPUS, sealed(about, CORPUS, folder, [path.name]) if seal else about)
    return path


def refused(path: Path, file: str) -> str:
    with pytest.raises(SpeechError) as error:
        FeatureDataset(path)
    said = str(error.value)
    assert "\n" not in said and str(path.with_name(file)) in said, said
    assert "python -m sniper.prepare" in said and "--force" in said, said
    return said


@pytest.mark.parametrize("seal", [True, False])
def test_whole_data_are_read_with_checksums_and_from_before_there_were_any(tmp_path, seal):
    dataset = FeatureDataset(write(tmp_path, ARRAYS, seal=seal))
    assert dataset.ids == ["a", "b"] and dataset.texts == ["A.", "B."]
    assert dataset[0].tokens.tolist() == [1, 2, 3] and len(dataset[1].mel) == 2


@pytest.mark.parametrize("file", ["train.safetensors", CORPUS])
def test_any_flipped_bit_is_noticed(tmp_path, file):
    """What stays as it was is either the checksum's own name, without which there is none to
    compare, or what other bytes say as well."""
    path = write(tmp_path, ARRAYS, seal=True)
    whole = (tmp_path / file).read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        (tmp_path / file).write_bytes(data)
        try:
            dataset = FeatureDataset(path)
        except SpeechError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            assert np.array_equal(dataset._tensors["mel"], ARRAYS["mel"])
            assert dataset.info.to_json() == INFO.to_json() and dataset.ids == ["a", "b"]
            unnoticed.append(place)
    # White space between values, and the names of the two entries that say what to compare.
    assert len(unnoticed) < (1 if file != CORPUS else 120)


def changed(**arrays: Any) -> Callable[[], dict]:
    return lambda: {n: a for n, a in {**ARRAYS, **arrays}.items() if a is not None}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        *((changed(**{name: None}), f"{name} is missing") for name in ARRAYS),
        (changed(mel=ARRAYS["mel"][:, :3]), "mel: expected float32 [any, 4], got float32 [5, 3]"),
        (changed(mel=ARRAYS["mel"][0]), "mel: expected float32"),
        (changed(mel=ARRAYS["mel"][:4]), "mel_offsets do not rise from 0 to 4"),
        (changed(tokens=ARRAYS["tokens"].astype(np.int64)), "tokens: expected int32"),
        (changed(tokens=np.array([1, 2, 2, 3], np.int32)), "tokens: expected 1 to 2, got 1 to 3"),
        (changed(tokens=np.array([0, 2, 2, 1], np.int32)), "tokens: expected 1 to 2, got 0 to 2"),
        (changed(tokens=np.array([1, 2, 2, -9], np.int32)), "tokens: expected 1 to 2, got -9 to"),
        (changed(durations=np.array([4, -1, 1, 1], np.int32)), "durations: expected 0 frames"),
        (changed(durations=np.array([3, 0, 1, 2], np.int32)), "the durations of b do not add up"),
        (changed(durations=np.array([3, 0], np.int32)), "durations: expected int32 [4]"),
        (changed(energy=np.array([1, 2, np.inf, 4], np.float32)), "energy is infinite"),
        (changed(pitch=ARRAYS["pitch"][:3]), "pitch: expected float32 [4], got float32 [3]"),
        (changed(mel_offsets=np.array([0, 5])), "mel_offsets: expected int64 [3]"),
        (changed(mel_offsets=np.array([0, 6, 5])), "mel_offsets do not rise"),
        (changed(mel_offsets=np.array([1, 3, 5])), "mel_offsets do not rise"),
        (changed(token_offsets=np.array([0, 0, 4])), "token_offsets do not rise"),
    ],
)
def test_tensors_of_another_shape(tmp_path, arrays, said):
    assert said in refused(write(tmp_path, arrays()), "train.safetensors")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"ids": '["a", "b"]'}, "it has no list of texts"),
        ({**METADATA, "ids": '["a"'}, "it has no list of ids"),
        ({**METADATA, "ids": '["a"]'}, "1 ids and 2 texts"),
        ({"ids": "[]", "texts": "[]"}, "mel_offsets: expected int64 [1]"),
        ({**METADATA, "ids": "[1, 2]"}, "expected text for the ids, got [1, 2]"),
        ({**METADATA, "ids": "3"}, "expected text for the ids, got 3"),
        ({**METADATA, "texts": "[" * 100_000}, "it has no list of texts"),
        ("text", "it has no list of ids"),
        ([1], "it has no list of ids"),
    ],
)
def test_metadata_of_another_kind(tmp_path, metadata, said):
    assert said in refused(write(tmp_path, ARRAYS, metadata), "train.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F64"},
        {"shape": [5, 3]},
        {"shape": [-5, -4]},
        {"shape": "ab"},
        {"shape": [5.0, 4.0]},
        {"data_offsets": [0, 10**9]},
        {"data_offsets": [-80, 0]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_a_header_that_points_elsewhere(tmp_path, entry):
    path = write(tmp_path, ARRAYS)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["mel"] |= entry
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "is cut off or not a feature file" in refused(path, "train.safetensors")


def without(name: str) -> dict:
    return {key: value for key, value in INFO.to_json().items() if key != name}


def with_statistics(**values: Any) -> dict:
    data = INFO.to_json()
    return {**data, "statistics": {**data["statistics"], **values}}


@pytest.mark.parametrize(
    ("about", "said"),
    [
        *((without(name), f"'{name}' is missing") for name in INFO.to_json()),
        ([1], "expected a mapping, got [1]"),
        ({**without("speech"), "speech": 3}, "expected text"),
        ({**without("vocabulary"), "vocabulary": ["<pad>", 7, "<eos>"]}, "expected text"),
        ({**without("vocabulary"), "vocabulary": 7}, "not iterable"),
        ({**without("vocabulary"), "vocabulary": ["a"]}, "a vocabulary goes"),
        ({**without("features"), "features": {"n_mels": "4"}}, "n_mels must be"),
        ({**without("features"), "features": []}, "features|mapping|list"),
        ({**without("frontend"), "frontend": {"kind": "none"}}, "unknown text frontend"),
        ({**without("frontend"), "frontend": None}, "NoneType"),
        (with_statistics(mel_mean=[0.0] * 3), "mel_mean cannot be"),
        (with_statistics(mel_std=[0.0, 1, 1, 1]), "mel_std cannot be"),
        (with_statistics(mel_std=["a"]), "could not convert"),
        (with_statistics(pitch_std=-1.0), "pitch_std cannot be -1.0"),
        (with_statistics(pitch_mean=float("nan")), "pitch_mean cannot be nan"),
        (with_statistics(energy_mean="2"), "energy_mean cannot be '2'"),
        (with_statistics(more=1), "more"),
    ],
)
def test_corpus_json_of_another_kind(tmp_path, about, said):
    found = refused(write(tmp_path, ARRAYS, about=about), CORPUS)
    assert re.search(said if "|" in said else re.escape(said), found), found


@pytest.mark.parametrize("text", ["", "{", "null", "[" * 100_000, "\x00" * 50, "\udcff"])
def test_corpus_json_that_is_none(tmp_path, text):
    path = write(tmp_path, ARRAYS)
    (tmp_path / CORPUS).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "is damaged" in refused(path, CORPUS)


def test_another_split_in_its_place(tmp_path):
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", {**ARRAYS, "energy": ARRAYS["energy"] + 1})
    path = write(tmp_path, ARRAYS, seal=True)
    path.write_bytes(other.read_bytes())
    assert "its checksum is another" in refused(path, "train.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(SpeechError, match="train.safetensors cannot be read: Is a directory"):
        FeatureDataset(path)
