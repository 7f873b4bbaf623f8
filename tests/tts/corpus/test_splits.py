# SPDX-License-Identifier: Apache-2.0
"""Who is held out, and how many."""

import pytest

from sniper.tts.corpus.splits import split, split_sizes
from sniper.tts.errors import SpeechError


def test_sizes():
    assert split_sizes(13_100, None, None) == {"valid": 250, "test": 0}
    assert split_sizes(600, None, None) == {"valid": 30, "test": 0}
    assert split_sizes(2, None, None) == {"valid": 1, "test": 0}
    assert split_sizes(1, None, None) == {"valid": 0, "test": 0}
    assert split_sizes(13_100, 100, 250) == {"valid": 100, "test": 250}
    with pytest.raises(SpeechError, match="12 held-out utterances of 12 usable"):
        split_sizes(12, 10, 2)


def test_a_pure_function_of_ids_and_seed():
    ids = [f"u{number}" for number in range(100)]
    sizes = {"valid": 10, "test": 5}
    parts = split(ids, sizes, seed=1)
    assert {name: len(members) for name, members in parts.items()} == {
        "train": 85,
        "valid": 10,
        "test": 5,
    }
    assert sorted(sum(parts.values(), [])) == list(range(100))
    assert split(ids, sizes, seed=1) == parts != split(ids, sizes, seed=2)
    assert list(split(ids, {"valid": 10, "test": 0}, seed=1)) == ["train", "valid"]


def test_one_utterance_less_moves_no_other():
    ids = [f"u{number}" for number in range(100)]
    sizes = {"valid": 10, "test": 5}
    parts = split(ids, sizes, seed=1)
    held = {ids[index] for index in parts["valid"]}
    fewer = [name for name in ids if name != ids[parts["train"][0]]]
    assert {fewer[index] for index in split(fewer, sizes, seed=1)["valid"]} == held
