# SPDX-License-Identifier: Apache-2.0
"""Vocabulary, frontends and sentence splitting."""

import json

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.text import (
    PAUSE,
    EspeakFrontend,
    LexiconFrontend,
    Vocabulary,
    frontend_from_json,
    known_marks,
    split_sentences,
    text_to_phones,
)

LEXICON = {
    "hello": "HH AH0 L OW1",
    "world": "W ER1 L D",
    "two": "T UW1",
    "don't": "D OW1 N T",
    "dog": "D AO1 G",
    "'s": "Z",
}


def test_vocabulary_layout():
    vocabulary = Vocabulary.from_phones(["b", "a", "b", "."])
    assert vocabulary.symbols == ("<pad>", ".", "a", "b", "<eos>")
    assert vocabulary.encode(["b", "."]).tolist() == [3, 1, 4]
    assert vocabulary.ids(["a"]).tolist() == [2] and vocabulary.eos == 4 and "b" in vocabulary
    with pytest.raises(KeyError):
        vocabulary.ids(["c"])
    with pytest.raises(ValueError, match="twice"):
        Vocabulary(["<pad>", "a", "a", "<eos>"])
    with pytest.raises(ValueError, match="goes <pad>"):
        Vocabulary(["a", "b", "c"])


def test_unseen_stress_is_replaced_and_the_rest_is_named():
    vocabulary = Vocabulary.from_phones(["ˈoʊ", "AH0", "t"])
    assert vocabulary.encode(["ˌoʊ", "oʊ", "AH1"])[:-1].tolist() == [
        *vocabulary.ids(["ˈoʊ", "ˈoʊ", "AH0"])
    ]
    with pytest.raises(SpeechError, match="these phonemes: q x"):
        vocabulary.encode(["x", "t", "q"])
    with pytest.raises(SpeechError, match="no known phoneme"):
        vocabulary.encode([])


def test_the_nearest_stress_is_taken():
    vocabulary = Vocabulary.from_phones(["AH0", "AH1", "IY0", "IY2", "EH1"])
    wanted = {"AH2": "AH1", "IY1": "IY2", "EH0": "EH1", "EH2": "EH1", "IY0": "IY0", "OW1": None}
    assert {phone: vocabulary.variant(phone) for phone in wanted} == wanted


def test_marks_that_nobody_spoke_become_the_nearest_or_go():
    espeak, lexicon = EspeakFrontend(), LexiconFrontend(LEXICON)
    few = Vocabulary.from_phones(["a", ".", ","])
    assert known_marks(list("a!a?a:a;a.") + [PAUSE], few, espeak) == (list("a.a.a,a,a.,"), [])
    assert known_marks(["a", "!"], Vocabulary.from_phones(["a", ";"]), espeak) == (["a", ";"], [])
    assert known_marks(["a", "!"], Vocabulary.from_phones("a"), espeak) == (["a"], ["!"])
    assert known_marks(["a", ","], Vocabulary.from_phones(["a", PAUSE]), espeak)[0] == ["a", PAUSE]
    # Of a lexicon these are phonemes, to be refused: SAMPA's "?" is a stop, and "!" a click.
    assert known_marks([PAUSE, "a", "?"], few, lexicon) == (["a", "?"], [PAUSE])


def test_a_digit_by_itself_is_no_stress():
    """SAMPA's 2 is a vowel, and 1 another one."""
    assert Vocabulary.from_phones(["1", "0", "a"]).variant("2") is None


def test_lexicon_frontend():
    frontend = LexiconFrontend(LEXICON)
    assert frontend.phones("Hello, 'World'!") == "HH AH0 L OW1 sil W ER1 L D sil".split()
    assert frontend.phones("2 - ' Don’t") == "T UW1 sil D OW1 N T sil".split()
    assert frontend.phones("dog's hello-world")[:4] == "D AO1 G Z".split()
    both = LexiconFrontend(LEXICON, leading_pause=True, trailing_pause=False)
    assert both.phones("... two ...") == "sil T UW1".split()


def test_all_unknown_words_are_named_at_once():
    with pytest.raises(SpeechError, match="lexicon: zebra, quux; .*--lexicon"):
        LexiconFrontend(LEXICON).phones("Hello zebra, zebra quux")
    with pytest.raises(SpeechError, match="no known phoneme"):
        LexiconFrontend(LEXICON).phones("?!")


def test_espeak_frontend():
    assert EspeakFrontend().phones("Yes, no.") == ["j", "ˈɛ", "s", ",", "n", "ˈoʊ", "."]
    with pytest.raises(SpeechError, match="no known phoneme"):
        EspeakFrontend().phones("...")


@pytest.mark.parametrize(
    "frontend", [EspeakFrontend("en-us+f2"), LexiconFrontend(LEXICON, True, False)]
)
def test_frontends_go_through_json(frontend):
    assert frontend_from_json(json.loads(json.dumps(frontend.to_json()))) == frontend


def test_unknown_frontend():
    with pytest.raises(ValueError, match="'neural'"):
        frontend_from_json({"kind": "neural"})


def test_phonemes_in_braces():
    assert text_to_phones(" {HH AH0 sil} ", LexiconFrontend({})) == ["HH", "AH0", "sil"]
    assert split_sentences("{HH AH0 . AH0}") == ["{HH AH0 . AH0}"]


def test_phonemes_in_braces_inside_a_sentence():
    """As the message about an unknown word advises."""
    frontend = LexiconFrontend(LEXICON, leading_pause=True, trailing_pause=True)
    wanted = "sil HH AH0 L OW1 F IY1 . L W ER1 L D sil".split()
    assert text_to_phones("Hello {F IY1 . L} world.", frontend) == wanted
    text = "Hello, {F IY1. L} world. {T UW1}, two! {D} {D}"
    assert split_sentences(text) == ["Hello, {F IY1. L} world.", "{T UW1}, two!", "{D} {D}"]
    found = [text_to_phones(each, frontend) for each in split_sentences(text)]
    assert found[1:] == ["sil T UW1 sil T UW1 sil".split(), "sil D D sil".split()]
    long = "你" * 299 + "{a b c d}" + "你" * 200
    with pytest.warns(UserWarning, match="is cut"):
        assert "".join(split_sentences(long)) == long
    with pytest.raises(SpeechError, match="lexicon: zebra"):
        text_to_phones("zebra {F IY1}", frontend)
    espeak = EspeakFrontend()
    assert text_to_phones("Yes, {n ˈoʊ}.", espeak) == ["j", "ˈɛ", "s", ",", "n", "ˈoʊ", "."]


def test_signs_beside_given_phonemes_are_read_or_refused():
    frontend = LexiconFrontend(LEXICON | {"percent": "P ER0"})
    assert text_to_phones("{T UW1} % {D}", frontend) == "T UW1 P ER0 D sil".split()
    assert text_to_phones("{T UW1} - “ {D}", frontend) == "T UW1 D sil".split()
    with pytest.raises(SpeechError, match="cannot be read: ☃"):
        text_to_phones("{T UW1} ☃ {D}", frontend)
    with pytest.warns(UserWarning, match="left out, it has no reading: '😀'"):
        assert text_to_phones("{T UW1} 😀 {D}", frontend) == "T UW1 D sil".split()


def test_split_sentences():
    text = (
        'Mr. Smith met J. R. R. Tolkien at 3.5 pm. "Really?" she said.\nYes!\n\nNo end\n\n… Last…'
    )
    assert split_sentences(text) == [
        "Mr. Smith met J. R. R. Tolkien at 3.5 pm.",
        '"Really?"',
        "she said.",
        "Yes!",
        "No end",
        "Last…",
    ]
    assert split_sentences(" ... ") == []


def test_long_sentences_are_cut_at_punctuation_then_spaces():
    text = "word " * 30 + "end, " + "more " * 30 + "stop."
    parts = split_sentences(text, max_chars=200)
    assert parts[0].endswith("end,") and all(len(part) <= 200 for part in parts)
    assert " ".join(parts) == " ".join(text.split())
    with pytest.warns(UserWarning, match="cut"):
        assert all(len(part) <= 100 for part in split_sentences("x" * 250, max_chars=100))
