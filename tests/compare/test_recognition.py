# SPDX-License-Identifier: Apache-2.0
"""Word errors, and a recogniser that hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sniper.compare import recognition
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.reading import read_audio
from sniper.tts.corpus.dataset import load_corpus_info


@pytest.mark.parametrize(
    ("spoken", "heard", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b b c", 1),
        ("a b c", "", 3),
        ("", "a", 1),
        ("the cat sat", "cat sat down", 2),
    ],
)
def test_word_errors(spoken: str, heard: str, errors: int):
    assert recognition.word_errors(spoken.split(), heard.split()) == errors


def test_words_are_as_a_recogniser_writes_them():
    assert recognition.words_of("Dr. Smith’s 21 cats, don't!") == (
        ["doctor", "smith's", "twenty", "one", "cats", "don't"]
    )


def test_a_corpus_of_another_language_has_no_word_error_rate(demo_corpus: Path):
    info = load_corpus_info(demo_corpus)
    assert recognition.why_not(info) is None
    german = replace(info, frontend=replace(info.frontend, voice="de"))
    assert "this corpus is not" in str(recognition.why_not(german))


def test_without_pocketsphinx_it_is_said(demo_corpus: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "sniper-tts[align]" in str(recognition.why_not(load_corpus_info(demo_corpus)))


def test_it_hears_and_forgets_what_it_heard_before(demo_corpus: Path):
    features = FeatureConfig()
    paths = sorted((demo_corpus / "corpus/wavs").glob("*.wav"))[:2]
    first, second = (read_audio(path, features) for path in paths)
    alone = recognition.heard(second, features)
    recognition.heard(first, features)
    assert recognition.heard(second, features) == alone
    assert alone and all(word.isascii() for word in alone)
    assert len(recognition.heard(np.zeros(22050, np.float32), features)) <= 1
