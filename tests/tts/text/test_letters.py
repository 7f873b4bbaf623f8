# SPDX-License-Identifier: Apache-2.0
"""Letters and endings that a lexicon does not hold as they stand."""

from __future__ import annotations

from sniper.tts.text.letters import LetterNames

ARPABET = {
    "dog": "D AO1 G",
    "cat": "K AE1 T",
    "bus": "B AH1 S",
    "this": "DH IH1 S",
    "very": "V EH1 R IY0",
    "zoo": "Z UW1",
    "a": "AH0",
}


def test_names_of_letters():
    names = LetterNames(ARPABET)
    assert names.one("d") == ["D", "IY1"] and names.one("v") == ["V", "IY1"]
    assert names.one("x") == ["EH1", "K", "S"] and names.one("i") is None, "no AY was ever heard"
    assert names.one("a") == ["AH0"], "no EY was heard, so the article must do"
    assert LetterNames({**ARPABET, "say": "S EY1"}).one("a") == ["EY1"]


def test_a_dictionary_that_names_letters_is_followed():
    names = LetterNames({"a.": "EY", "b": "b iː", "a": "ə"})
    assert names.one("a") == ["EY"] and names.one("b") == ["b", "iː"] and names.one("c") is None


def test_spelling_and_plural():
    names = LetterNames(ARPABET)
    assert [phones for phones, _ in names.spell("DVDs")] == [
        ["D", "IY1"], ["V", "IY1"], ["D", "IY1"], ["Z"],
    ]  # fmt: skip
    # F and I cannot be said, and B could: the word is one, for whoever reads it as a whole.
    assert names.spell("FBI") == names.spell("fbi") == [(None, "fbi")]


def test_possessives_sound_after_their_last_phoneme():
    names = LetterNames(ARPABET)
    assert names.possessive("dog's") == ["D", "AO1", "G", "Z"]
    assert names.possessive("cat's") == ["K", "AE1", "T", "S"]
    assert names.possessive("bus's") == ["B", "AH1", "S", "IH0", "Z"]
    assert names.possessive("cow's") is None and names.possessive("dog") is None
    assert LetterNames({"hund": "h ʊ n t"}).possessive("hund's") is None
