# SPDX-License-Identifier: Apache-2.0
"""Words that a voice learns later: by a dictionary, and by espeak-ng where nothing else knows."""

from __future__ import annotations

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text import new_words
from sniper.tts.text.new_words import EspeakGuess, add_words, speakable
from sniper.tts.text.text import EspeakFrontend, LexiconFrontend, Vocabulary

PHONES = "sil spn HH AH0 L OW1 W ER1 D Z IY1 B R EH1".split()
VOCABULARY = Vocabulary.from_phones(PHONES)
FRONTEND = LexiconFrontend({"hello": "HH AH0 L OW1", "world": "W ER1 L D"})


def test_a_dictionary_goes_first_and_what_cannot_be_spoken_is_named():
    words = {"hello": "HH OW1", "hole": "HH OW1 L", "her": "HH ER0", "azure": "AE1 ZH ER0"}
    frontend, added = add_words(FRONTEND, words, VOCABULARY)
    assert frontend.phones("Hello hole")[:5] == "HH OW1 HH OW1 L".split()
    assert frontend.lexicon["world"] == "W ER1 L D" and "azure" not in frontend.lexicon
    # A vowel in another stress is spoken for one that nobody spoke.
    assert frontend.lexicon["her"] == "HH ER0"
    said = "2 words added, 1 changed; 1 left out, nobody spoke their phonemes AE1 ZH: azure"
    assert str(added) == said
    assert add_words(frontend, {"hole": "HH OW1 L"}, VOCABULARY)[1].new == 0
    assert FRONTEND.lexicon["hello"] == "HH AH0 L OW1", "the frontend that was given is unchanged"


def test_a_dictionary_of_other_phonemes_or_none_is_refused():
    with pytest.raises(SpeechError, match="adds nothing: 1 left out, .* l ə: ale; the voice's .*D"):
        add_words(FRONTEND, {"ale": "ə l"}, VOCABULARY)
    with pytest.raises(SpeechError, match="adds nothing: it holds no word"):
        add_words(FRONTEND, {}, VOCABULARY)
    with pytest.raises(SpeechError, match="reads text by espeak-ng and has no lexicon"):
        add_words(EspeakFrontend(), {"a": "AH0"}, VOCABULARY)


def test_without_stress():
    bare = Vocabulary.from_phones(["HH", "OW", "L"])
    assert speakable({"hole": "HH OW1 L", "he": "HH IY1"}, bare) == (
        {"hole": "HH OW1 L"},
        {"he": ["IY1"]},
    )
    assert EspeakGuess(bare)("hole") is not None


def test_espeak_reads_what_the_lexicon_lacks_and_says_so(monkeypatch):
    guess = EspeakGuess(VOCABULARY)
    frontend = FRONTEND.guessing(guess)
    assert frontend == FRONTEND and frontend.to_json() == FRONTEND.to_json()
    assert frontend.phones("Hello, zebra zebra") == (
        "HH AH0 L OW1 sil Z IY1 B R AH0 Z IY1 B R AH0 sil".split()
    )
    assert guess.read == {"zebra": "Z IY1 B R AH0"}
    # Vowels that the voice never learned, another script: still an error that names them.
    with pytest.raises(SpeechError, match=r"lexicon: cat, зебра \(Cyrillic\); write them to"):
        frontend.phones("zebra cat зебра")
    other = Vocabulary.from_phones([*PHONES, "ə"])
    assert EspeakGuess(other)("zebra") is None, "its phonemes are not ARPAbet"
    monkeypatch.setattr(new_words, "has_espeak", lambda: False)
    assert EspeakGuess(VOCABULARY)("zebra") is None
    with pytest.raises(SpeechError, match="lexicon: zebra"):
        FRONTEND.phones("zebra")
