# SPDX-License-Identifier: Apache-2.0
"""Pronunciations counted and read."""

import pytest

from sniper.tts.aligners.pronounce import read_variants
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


@pytest.mark.parametrize(
    ("line", "word", "phones"),
    [
        ("the\te l", "the", "e l"),
        ("e\te", "e", "e"),
        ("E\t0.99\tE E", "e", "E E"),
        ("öffnen 9 f n @ n", "öffnen", "9 f n @ n"),
        ("öffnen\t9 f n @ n", "öffnen", "9 f n @ n"),
        ("euh 2", "euh", "2"),
        ("1 1", "1", "1"),
        ("男 nan", "男", "nan"),
        ("inf 1.0 inf", "inf", "inf"),
        ("a\t1\t0\t1.0\t2.5e-05\tEY1", "a", "EY1"),
        ("a 1e-05 EY1", "a", "EY1"),
        ("a 0.1 0.2 0.3 0.4 0.5", "a", "0.5"),
        ("read(2) R EH1 D", "read", "R EH1 D"),
        ("aalborg AO1 L B AO0 R G # place, danish", "aalborg", "AO1 L B AO0 R G"),
        ("sharp SH #1 F\t#", "sharp", "SH #1 F"),
        ("#tag T AE1 G", "#tag", "T AE1 G"),
    ],
)
def test_a_line(tmp_path, line, word, phones):
    path = tmp_path / "words.dict"
    path.write_text(f"# my words\n#\n;;; theirs\n{line}\n", encoding="utf-8")
    assert read_dictionary(path) == {word: phones}
    assert read_variants(path) == {word: [phones]}


@pytest.mark.parametrize("line", ["bad 0.5", "bad\t0.5\t1.0", "bad # good"])
def test_what_has_no_phonemes(tmp_path, line):
    path = tmp_path / "words.dict"
    path.write_text(line)
    with pytest.raises(SpeechError, match=r"words.dict:1: 'bad' has no phonemes"):
        read_dictionary(path)


def test_a_dictionary_in_utf16_is_named(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("hello h\n", encoding="utf-16")
    with pytest.raises(SpeechError, match="words.dict is UTF-16, .*: save it as UTF-8"):
        read_dictionary(path)


def test_a_bad_dictionary_names_the_line(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text("good G UH1 D\nbad\n")
    with pytest.raises(SpeechError, match=r"words.dict:2: 'bad' has no phonemes"):
        read_dictionary(path)
    with pytest.raises(SpeechError, match="cannot be read"):
        read_dictionary(tmp_path / "none.dict")
