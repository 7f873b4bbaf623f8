# SPDX-License-Identifier: Apache-2.0
"""What a preparation says at its end of the utterances that it took."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.features import Features
from sniper.tts.corpus.health import Census
from sniper.tts.corpus.workfile import Record

CONFIG = FeatureConfig(n_mels=2)


def record(
    number: int,
    hz: float = 150.0,
    voiced: float = 0.5,
    sound: tuple[int, float, float] | None = (22050, 0.5, 0.0),
    level: float = -2.0,
    energy: float = 1.0,
    frames: int = 100,
) -> Record:
    rng = np.random.default_rng(number)
    pitch = np.log(hz) + rng.normal(0, 0.1, 3).astype(np.float32)
    features = Features(
        mel=rng.normal(level, 1, (frames, 2)).astype(np.float32),
        durations=np.array([10, frames - 20, 10], np.int32),
        pitch=pitch if voiced else np.full(3, np.nan, np.float32),
        energy=energy * rng.uniform(0.5, 1.5, 3).astype(np.float32),
        voiced=voiced,
    )
    return Record(f"u{number}", "x", ("sil", "a", "sil"), features=features, sound=sound)


def census(count: int = 12, odd: Callable[[int], Record] = record, which=(5,)) -> Census:
    found = Census(CONFIG)
    for number in range(count):
        found.add(odd(number) if number in which else record(number))
    return found


def test_an_ordinary_corpus_has_nothing_unusual():
    for count in (0, 1, 2, 12, 200):
        assert census(count).lines() == []
    assert Census(CONFIG).summary() == ""


def test_summary_in_numbers():
    found = Census(CONFIG)
    for number, frames in enumerate((100, 862, 50)):
        found.add(record(number, frames=frames, sound=(16000 if number else 22050, 0.5, 0)))
    said = found.summary()
    assert said.startswith("0.00 h; shortest 0.58 s (u2), longest 10.01 s (u1, 862 frames, which ")
    assert "train.max_frames must hold); 2 resampled from 16000 Hz; F0 1" in said
    # One phoneme an utterance, of all its frames but twenty.
    frame = 1000 * 256 / 22050
    middle, longest = f"{80 * frame:.0f}", f"{842 * frame / 1000:.2f}"
    assert said.endswith(
        f"phonemes of {middle} ms in the median, 0% of at most 35 ms, the longest of {longest} s"
    )


def test_the_summary_counts_speakers():
    minute = round(60 * 22050 / 256)
    spoken = {"ben": [2 * minute], "anna": [minute, minute // 2], "cleo": [3 * minute]}
    many, alone = Census(CONFIG), Census(CONFIG)
    for number, (name, lengths) in enumerate(spoken.items()):
        for frames in lengths:
            many.add(record(number, frames=frames), name)
    alone.add(record(0, frames=minute), "ben")
    said = "0.11 h by 3 speakers, from 1.5 min (anna) to 3.0 min (cleo); shortest 30.00 s"
    assert many.summary().startswith(said)
    assert alone.summary().startswith("0.02 h by one speaker (ben); shortest ")


@pytest.mark.parametrize("frames", [3, 12, 25])
def test_a_transcript_that_says_something_else(frames):
    """By the length of its phonemes: far from the others', which are of 10 frames."""

    def spoken(number: int, length: int = 10, count: int = 8) -> Record:
        durations = np.array([length] * count + [5], np.int32)
        about = {"pitch": np.full(count + 1, 5.0, np.float32)}
        about |= {"energy": np.ones(count + 1, np.float32), "durations": durations}
        about["mel"] = np.random.default_rng(number).normal(size=(durations.sum(), 2))
        features = Features(**about, voiced=0.5)
        return Record(f"u{number}", "x", ("AH0",) * count + ("sil",), features=features)

    found, few = Census(CONFIG), Census(CONFIG)
    for number in range(6):
        found.add(spoken(number, frames if number == 4 else 10))
        few.add(spoken(number, frames if number == 4 else 10, count=4))
    assert found.lines() == (
        []
        if frames == 12
        else [
            "phonemes 2 times as long or short as in the others in 1 of 6 utterances (u4): look "
            "whether the transcript says what is spoken"
        ]
    )
    assert few.lines() == [], "in a word or two one long vowel is no sign"
    assert ("17% of at most 35 ms" in found.summary()) == (frames == 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"voiced": 0.0}, "no voiced frame between 80 and 400 Hz in 1 of 12 utterances (u5): set"),
        ({"voiced": 0.05}, "fewer than 10% of the frames are voiced in 1 of 12 utterances (u5)"),
        ({"sound": (22050, 3.2, 0.0)}, "samples outside -1 to 1 in 1 of 12 utterances (u5)"),
        ({"sound": (22050, 1.0, 0.02)}, "are at full scale in 1 of 12 utterances (u5)"),
        ({"frames": 3000}, "longer than 30 s in 1 of 12 utterances (u5)"),
        ({"energy": 40.0}, "u5 alone moves the corpus' energy: mean"),
        ({"level": -10.0}, "u5 alone moves the corpus' loudness: mean"),
        ({"hz": 390.0}, "u5 alone moves the corpus' pitch: mean"),
    ],
)
def test_one_utterance_is_named(change, said):
    lines = census(odd=lambda n: record(n, **change)).lines()
    assert any(said in line for line in lines), lines
    assert all("u5" in line for line in lines)


def test_a_long_pause_is_named():
    def odd(number):
        features = record(number, frames=900).features
        durations = np.array([600, 290, 10], np.int32)
        return Record("u5", "x", ("sil", "a", "sil"), features=Features(
            features.mel, durations, features.pitch, features.energy, 0.5))  # fmt: skip

    assert any("a pause longer than 5 s" in line for line in census(odd=odd).lines())


@pytest.mark.parametrize(("voiced", "said"), [(0.2, "20% of the frames"), (0.97, "97% of the")])
def test_an_unusual_share_of_voiced_frames_of_the_whole_corpus(voiced, said):
    lines = census(odd=lambda n: record(n, voiced=voiced), which=range(12)).lines()
    assert len(lines) == 1 and lines[0].startswith(said) and "--f0-min" in lines[0]


@pytest.mark.parametrize(("hz", "option"), [(84, "--f0-min"), (396, "--f0-max")])
def test_a_voice_that_goes_beyond_the_limits(hz, option):
    lines = census(odd=lambda n: record(n, hz=hz), which=range(12)).lines()
    assert len(lines) == 1 and f"within 3 % of {option}" in lines[0]


def test_many_are_counted_and_ten_are_named():
    lines = census(30, lambda n: record(n, voiced=0.0), range(30)).lines()
    assert len(lines) == 1
    assert "in 30 of 30 utterances (u0, u1, " in lines[0] and "u9 and 20 more)" in lines[0]


def test_work_of_earlier_versions_is_taken_as_it_is():
    found = Census(CONFIG)
    for number in range(12):
        found.add(record(number, voiced=math.nan, sound=None))
    assert found.lines() == [] and "0 resampled;" in found.summary()
