# SPDX-License-Identifier: Apache-2.0
"""What a lexicon and espeak-ng make of English as people write it."""

from __future__ import annotations

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.frontends import EspeakFrontend, LexiconFrontend, UnknownWords, read_all
from sniper.tts.text.ssml import ssml_utterances

WORDS = """a it is the us u s army in nasa and f b i d v n p m at five to ten twenty dog well
known new york i saw plan percent wait j smith nineteen fourteen eighteen three x""".split()
# Phonemes that are the words themselves show which words were looked up.
PLAIN = LexiconFrontend({word: f"<{word}>" for word in WORDS}, trailing_pause=False)


def spoken(text: str, frontend: LexiconFrontend = PLAIN) -> str:
    return " ".join(frontend.phones(text)).replace("<", "").replace(">", "").replace("sil", "|")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("in the U.S. It is", "in the u s | it is"),
        ("the U.S. Army", "the u s army"),
        ("the US and us", "the u s and us"),
        ("NASA and the FBI", "nasa and the f b i"),
        ("DVDs", "d v d s"),
        ("10-20 at 5 p.m. It is", "ten to twenty at five p m | it is"),
        ("1914–1918", "nineteen fourteen to nineteen eighteen"),
        ("J. Smith", "j smith"),
        ("well-known New York-dog", "well known new york dog"),
        ("Plan B. It is", "plan b | it is"),
        ("wait — wait... wait (dog)", "wait | wait | wait | dog"),
        ("IT IS THE DOG", "it is the dog"),
        ("“dog” 'dog' «dog»", "dog dog dog"),
    ],
)
def test_words_and_pauses(text, words):
    assert spoken(text) == words


def test_the_letter_a_is_not_the_article():
    frontend = LexiconFrontend(
        {"a": "AH0", "say": "S EY1", "yes": "Y EH1 S", "plan": "P L AE1 N", "is": "IH1 Z"}
    )
    assert frontend.phones("A plan")[0] == "AH0" and frontend.phones("Is a plan")[2] == "AH0"
    assert frontend.phones("Plan A is")[4] == "EY1" and frontend.phones("S.A. is")[2] == "EY1"
    assert frontend.phones("SAY A PLAN")[2] == "AH0", "capitals all over say nothing"


def test_what_an_aligner_heard_as_it_stands_is_looked_up_as_it_stands():
    lexicon = {
        "mr": "m",
        "dog": "d",
        "u.s.": "us",
        "at&t": "at",
        "1920": "y",
        "is": "i",
        "the": "t",
    }
    frontend = LexiconFrontend(lexicon, trailing_pause=False)
    assert frontend.phones("Mr. Dog is") == ["m", "d", "i"]
    assert frontend.phones("the U.S. dog is AT&T 1920") == ["t", "us", "d", "i", "at", "y"]
    assert frontend.phones("the U.S. The dog") == ["t", "us", "sil", "t", "d"]
    with pytest.raises(SpeechError, match="nineteen"):
        frontend.phones("is 1921")


def test_unknown_words_are_named_with_their_script():
    with pytest.raises(SpeechError, match=r"lexicon: привет \(Cyrillic\), 你好 \(Cjk\), zebra;"):
        PLAIN.phones("the Привет 你好 zebra")
    with pytest.raises(SpeechError, match="lexicon: shouted, zebra; "):
        PLAIN.phones("SHOUTED ZEBRA")


def test_the_unknown_words_of_all_sentences_are_named_at_once():
    with pytest.raises(UnknownWords) as error:
        read_all(["the zebra", "the dog", "a zebra and gnu"], PLAIN.phones)
    assert error.value.words == ("zebra", "gnu") and "lexicon: zebra, gnu;" in str(error.value)
    assert read_all(["dog", "the dog"], PLAIN.phones) == [["<dog>"], ["<the>", "<dog>"]]
    with pytest.raises(UnknownWords, match="lexicon: zebra, gnu;"):
        ssml_utterances('<speak>A zebra. <prosody rate="80%">A gnu.</prosody></speak>', PLAIN)


def test_espeak_reads_english_as_the_lexicon_does():
    frontend = EspeakFrontend()
    assert frontend.phones("10-20 km/h") == frontend.phones("ten to twenty kilometers per hour")
    assert "." not in frontend.phones("J. Smith in the U.S. Army")[:-1]
    assert EspeakFrontend("de").phones("5 %") != EspeakFrontend("de").phones("five percent")


def test_an_older_corpus_with_other_spellings_loads():
    assert LexiconFrontend({"Don’t": "d"}).phones("don't") == ["d", "sil"]
