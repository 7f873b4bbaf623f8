# SPDX-License-Identifier: Apache-2.0
"""Words that a voice learns later: by a dictionary, and by espeak-ng where nothing else knows."""

from __future__ import annotations

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text import new_words
from sniper.tts.text.new_words import Guess, add_words, speakable
from sniper.tts.text.text import EspeakFrontend, LexiconFrontend, Vocabulary, frontend_from_json

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
    words = {"hole": "HH OW1 L", "he": "HH IY1"}
    assert speakable(words, bare) == ({"hole": "HH OW1 L"}, {"he": ["IY1"]})
    assert Guess(FRONTEND, bare)("hole") == ["HH", "OW1", "L"]


def test_espeak_reads_what_the_lexicon_lacks_and_says_so(monkeypatch):
    guess = Guess(FRONTEND, VOCABULARY)
    frontend = FRONTEND.guessing(guess)
    assert frontend == FRONTEND and frontend.to_json() == FRONTEND.to_json()
    assert frontend.phones("Hello, zebra zebra") == (
        "HH AH0 L OW1 sil Z IY1 B R AH0 Z IY1 B R AH0 sil".split()
    )
    assert guess.read == {"zebra": "Z IY1 B R AH0"}
    # Vowels that the voice never learned, another script: still an error that names them.
    with pytest.raises(SpeechError, match=r"lexicon: cat, зебра \(Cyrillic\); write them to"):
        frontend.phones("zebra cat зебра")
    assert guess.lacking == {"cat": ["K", "AE1", "T"]}
    other = Vocabulary.from_phones([*PHONES, "ə"])
    assert Guess(FRONTEND, other)("zebra") is None, "its phonemes are not ARPAbet"
    monkeypatch.setattr(new_words, "has_espeak", lambda: False)
    assert Guess(FRONTEND, VOCABULARY)("zebra") is None
    with pytest.raises(SpeechError, match="lexicon: zebra"):
        FRONTEND.phones("zebra")


def test_a_word_in_capitals_is_read_once():
    """Its letters have no names in this voice, so espeak-ng reads it as a whole."""
    spoken = FRONTEND.guessing(Guess(FRONTEND, VOCABULARY)).phones("Hello RED world")
    assert spoken == "HH AH0 L OW1 R EH1 D W ER1 L D sil".split()


def test_phonemes_of_espeak_itself():
    """Of an aligner that learned a language by them: no English is written into its texts."""
    frontend = LexiconFrontend({"zug": "ts ˈuː k", "straße": "ʃ t ɾ ˈɑː s ə"}, language="de")
    assert frontend_from_json(frontend.to_json()) == frontend
    phones = "ts ˈuː k f ˈʏ n".split()
    guess = Guess(frontend, Vocabulary.from_phones([*phones, "sil"]))
    spoken = frontend.guessing(guess).phones("Zug 5")
    assert spoken[:3] == "ts ˈuː k".split() and list(guess.read) == ["5"], "not as five"
    assert spoken[3:-1] == guess.read["5"].split() and spoken[3] == "f"


def test_letters_where_they_are_the_phonemes(monkeypatch):
    monkeypatch.setattr(new_words, "has_espeak", lambda: False)
    frontend = LexiconFrontend({"ça": "ç a", "на": "н а"}, language="xx", characters=True)
    assert frontend_from_json(frontend.to_json()) == frontend
    guess = Guess(frontend, Vocabulary.from_phones(["ç", "a", "н", "а", "sil"]))
    assert frontend.guessing(guess).phones("Aç, на")[:2] == ["a", "ç"]
    with pytest.raises(SpeechError, match="lexicon: ab; "):
        frontend.guessing(guess).phones("ab ça")
    assert guess.read == {"aç": "a ç"}
