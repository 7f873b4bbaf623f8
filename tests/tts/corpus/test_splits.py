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


def test_nobody_is_held_out_whole():
    """As of a corpus where many have spoken one clip."""
    ids = [f"u{number}" for number in range(30)]
    speakers = [f"s{number}" for number in range(20)] + ["many"] * 10
    for seed in range(5):
        parts = split(ids, {"valid": 6, "test": 3}, seed, speakers=speakers)
        assert [len(parts[name]) for name in ("valid", "test")] == [6, 3]
        assert {speakers[i] for i in parts["train"]} == set(speakers)
        assert sorted(sum(parts.values(), [])) == list(range(30))
    with pytest.raises(SpeechError, match="10 utterances are to be held out, and 9 may be: 21"):
        split(ids, {"valid": 10, "test": 0}, 0, speakers=speakers)


def test_short_and_long_ones_are_held_out_alike():
    """Half of the utterances are of one word, and one is as long as a third of them."""
    ids = [f"u{number}" for number in range(200)]
    frames = [60] * 100 + [600] * 98 + [2700] * 2
    for seed in range(5):
        parts = split(ids, {"valid": 20, "test": 10}, seed, frames)
        assert [len(parts[name]) for name in ("train", "valid", "test")] == [170, 20, 10]
        assert sorted(sum(parts.values(), [])) == list(range(200))
        for name, count in (("valid", 20), ("test", 10)):
            short = sum(frames[i] == 60 for i in parts[name])
            assert abs(short - count / 2) <= 1, (name, short)
            assert sum(frames[i] == 2700 for i in parts[name]) <= 1
    held = {ids[i] for i in parts["valid"]}
    fewer = [i for i in range(200) if i != parts["train"][0]]
    again = split([ids[i] for i in fewer], {"valid": 20, "test": 10}, 4, [frames[i] for i in fewer])
    assert len(held & {ids[fewer[i]] for i in again["valid"]}) >= 19


def test_more_classes_than_are_held_out():
    frames = [2**n for n in range(1, 9)]
    parts = split([str(n) for n in frames], {"valid": 3, "test": 0}, 0, frames)
    assert len(parts["valid"]) == 3 and len(parts["train"]) == 5
