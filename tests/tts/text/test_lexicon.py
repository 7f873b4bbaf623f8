# SPDX-License-Identifier: Apache-2.0
"""Pronunciations counted and read."""

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.lexicon import harvest, read_dictionary


def test_the_most_frequent_wins_and_ties_are_settled():
    heard = [("the", "DH IY0"), ("the", "DH AH0"), ("a", "EY1"), ("the", "DH AH0"), ("a", "AH0")]
    assert harvest(heard) == {"the": "DH AH0", "a": "AH0"}
    assert harvest(reversed(heard)) == harvest(heard)


def test_mfa_and_cmu_forms(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text(
        ";;; a comment\nHello\tHH AH0 L OW1\nhello\tHH EH0 L OW1\n"
        "world 0.99 0.2 1.0 1.0 W ER1 L D\nREAD(2)  R EH1 D\n\n'tis\t0.5\tT IH1 Z\n",
        encoding="utf-8-sig",
    )
    assert read_dictionary(path) == {
        "hello": "HH AH0 L OW1",
        "world": "W ER1 L D",
        "read": "R EH1 D",
        "'tis": "T IH1 Z",
    }


def test_a_bad_dictionary_names_the_line(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("good G UH1 D\nbad\n")
    with pytest.raises(SpeechError, match=r"words.dict:2: 'bad' has no phonemes"):
        read_dictionary(path)
    with pytest.raises(SpeechError, match="cannot be read"):
        read_dictionary(tmp_path / "none.dict")
