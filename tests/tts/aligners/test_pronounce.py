# SPDX-License-Identifier: Apache-2.0
"""English words: which a text holds, and how each may be spoken."""

from __future__ import annotations

import pytest

from sniper.tts.aligners.pronounce import (
    EnglishWords,
    acoustic_model,
    read_variants,
)
from sniper.tts.errors import SpeechError, UtteranceError
from sniper.tts.text.arpabet import espeak_phones, without_stress
from sniper.tts.text.espeak import has_espeak

DICTIONARY = {
    "cold": ["K OW L D"],
    "hearted": ["HH AA R T IH D", "HH AA R T AH D"],
    "church": ["CH ER CH"],
    "cat": ["K AE T"],
    "cafe": ["K AH F EY"],
    "three": ["TH R IY"],
    "and": ["AH N D", "AE N D"],
    "'cause": ["K AH Z"],
}


def test_words_are_cut_as_they_are_looked_up_later():
    words = EnglishWords(DICTIONARY)
    text = "‘Cold-hearted,’ 3 cats & Church's…"
    assert words.words(text) == ["cold", "hearted", "three", "cats", "and", "church's"]
    assert words.words("'cause cat'") == ["'cause", "cat"]
    assert words.variants("hearted") == ("HH AA R T IH D", "HH AA R T AH D")


def test_guesses_are_named():
    words = EnglishWords(DICTIONARY)
    assert words.variants("church's") == ("CH ER CH IH Z",)
    assert words.variants("cat's") == ("K AE T S",)
    assert words.variants("café") == ("K AH F EY",)
    assert words.variants("zib") == ("Z IH B",)
    assert words.guessed == {
        "church's": "from church",
        "cat's": "from cat",
        "café": "as cafe",
        "zib": "by its letters",
    }


def test_what_cannot_be_read_is_named():
    words = EnglishWords(DICTIONARY)
    with pytest.raises(UtteranceError, match="not in Latin letters: он, зол$"):
        words.words("он cat зол он")
    with pytest.raises(UtteranceError, match="signs that cannot be read: ☃"):
        words.words("cat ☃")
    with pytest.raises(UtteranceError, match="no word"):
        words.words("...")


def test_stress_by_the_lexicon_or_by_espeak():
    lexicon = {"cat": ["K AE1 T"], "kita": ["K IY1 T AH0"]}
    words = EnglishWords(DICTIONARY, lexicon)
    assert words.stress and not EnglishWords(DICTIONARY).stress
    assert words.variants("cat") == ("K AE1 T",) and words.variants("kita") == ("K IY1 T AH0",)
    assert words.variants("hearted")[0] == "HH AA1 R T IH0 D", "on the first where nothing says it"
    spoken = EnglishWords(DICTIONARY, espeak=True)
    assert spoken.variants("cafe") == ("K AH0 F EY1",)
    assert spoken.variants("and") == ("AH0 N D", "AE0 N D") and not spoken.guessed


def test_a_lexicon_of_other_phones_is_refused():
    with pytest.raises(SpeechError, match="says tʃ for 'cat'.*--align learned"):
        EnglishWords(DICTIONARY, {"cat": ["K AE tʃ"]})
    with pytest.raises(SpeechError, match="says 2 for 'euh'"):
        EnglishWords(DICTIONARY, {"euh": ["2"]})


def test_dictionaries_of_both_kinds(tmp_path):
    path = tmp_path / "words.dict"
    path.write_text(";;; a comment\nREAD 0.9 0.1 1.0 1.0 R IY1 D\nread(2) R EH1 D\n(ah) AA1\n")
    assert read_variants(path) == {"read": ["R IY1 D", "R EH1 D"], "(ah)": ["AA1"]}
    path.write_text("word\n")
    with pytest.raises(SpeechError, match=r"words.dict:1: 'word' has no phonemes"):
        read_variants(path)


def test_espeak_agrees_with_the_dictionary_of_the_acoustic_model():
    """The table of phones: the same consonants in most words, and all phones are known."""
    assert has_espeak()
    dictionary = read_variants(acoustic_model()[1])
    words = list(dictionary)[::400]
    assert len(words) > 250
    vowels = tuple("AEIOU")
    same = 0
    for word in words:
        phones = espeak_phones(word)
        assert phones, word
        ours = [p for p in without_stress(phones) if not p.startswith(vowels)]
        theirs = [[p for p in v.split() if not p.startswith(vowels)] for v in dictionary[word]]
        same += ours in theirs
    assert same / len(words) > 0.7
