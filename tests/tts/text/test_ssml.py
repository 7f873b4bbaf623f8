# SPDX-License-Identifier: Apache-2.0
"""SSML that the model can follow, and by name what it cannot."""

from __future__ import annotations

import math

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.frontends import EspeakFrontend, LexiconFrontend
from sniper.tts.text.ssml import Utterance, ssml_utterances

WORDS = """hello world one two three a b january february first third second thousand twenty plus
five the and minutes""".split()
LEXICON = LexiconFrontend({word: f"<{word}>" for word in WORDS})


def spoken(body: str, frontend=LEXICON) -> list[tuple[str, float, float, float | None]]:
    """(words, rate, pitch, pause) of each utterance of a document with this body."""
    return [
        (" ".join(u.phones).replace("<", "").replace(">", ""), u.rate, round(u.pitch, 3), u.pause)
        for u in ssml_utterances(f"<speak>{body}</speak>", frontend)
    ]


def words(body: str) -> str:
    return " / ".join(utterance[0] for utterance in spoken(body))


def test_text_is_read_as_plain_text_is():
    assert [
        u.phones for u in ssml_utterances("<speak>Hello world. One, two!</speak>", LEXICON)
    ] == [
        ("<hello>", "<world>", "sil"),
        ("<one>", "sil", "<two>", "sil"),
    ]
    document = (
        '<?xml version="1.0"?><speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" '
        'xml:lang="en-US"><!-- a remark --><p><s>Hello</s><s>world</s></p><p>one &amp; two</p>'
        "</speak>"
    )
    assert [u.phones for u in ssml_utterances(document, LEXICON)] == [
        ("<hello>", "sil"),
        ("<world>", "sil"),
        ("<one>", "<and>", "<two>", "sil"),
    ]


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ("<break/>", 0.4),
        ('<break strength="none"/>', 0.0),
        ('<break strength="x-strong"/>', 1.0),
        ('<break time="500ms"/>', 0.5),
        ('<break time="1.5s"/><break time=".5s"/>', 2.0),
    ],
)
def test_breaks(tag, seconds):
    assert spoken(f"hello {tag} world.") == [
        ("hello sil", 1.0, 0.0, None),
        ("world sil", 1.0, 0.0, seconds),
    ]
    assert ssml_utterances(f"<speak>{tag}hello{tag}</speak>", LEXICON) == [
        Utterance(("<hello>", "sil"), pause=seconds),
        Utterance((), pause=seconds),
    ]


def test_prosody_multiplies_rates_and_adds_pitches():
    body = (
        'one <prosody rate="fast" pitch="+2st">two <prosody rate="80%" pitch="high">three</prosody>'
        "</prosody> hello."
    )
    assert spoken(body) == [
        ("one sil", 1.0, 0.0, None),
        ("two sil", 1.25, 2.0, 0.0),
        ("three sil", 1.0, 5.0, 0.0),
        ("hello sil", 1.0, 0.0, 0.0),
    ]
    assert spoken('One. <prosody rate="+10%" pitch="-50%">two</prosody>') == [
        ("one sil", 1.0, 0.0, None),
        ("two sil", 1.1, -12.0, None),
    ]
    assert spoken('<prosody rate="0.5" pitch="+100%">two</prosody>')[0][1:3] == (0.5, 12.0)
    assert math.isclose(spoken('<prosody pitch="-10%">two</prosody>')[0][2], -1.824, abs_tol=1e-3)


def test_signs_without_a_word_do_not_vanish():
    with pytest.raises(SpeechError, match="cannot be read: ☃"):
        words("Hello? ☃! World.")
    with pytest.raises(SpeechError, match="cannot be read: §"):
        words("<p>Hello</p><p>§</p>")
    with pytest.warns(UserWarning, match="left out, it has no reading: '😀'"):
        assert words("Hello! <break/>😀<break/> World.") == "hello sil / world sil"


def test_phonemes_stand_in_their_sentence():
    assert words('Hello <phoneme alphabet="x-arpabet" ph="W ER1">x</phoneme> two.') == (
        "hello W ER1 two sil"
    )
    assert words('Hello, <phoneme ph="W"/>, two') == "hello sil W sil two sil"
    assert words('<phoneme ph="W ER1"/>') == "W ER1 sil"
    espeak = EspeakFrontend()
    mixed = ssml_utterances('<speak>Yes <phoneme ph="n ˈoʊ"/>.</speak>', espeak)
    assert list(mixed[0].phones) == espeak.phones("Yes no.")
    mixed = ssml_utterances('<speak>Yes, <phoneme ph="n ˈoʊ"/>, yes!</speak>', espeak)
    assert list(mixed[0].phones) == espeak.phones("Yes, no, yes!")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<sub alias="hello world">HW</sub>', "hello world sil"),
        ('<say-as interpret-as="characters">ab1</say-as>', "a b one sil"),
        ('<say-as interpret-as="digits">1 2-3</say-as>', "one two three sil"),
        ('<say-as interpret-as="telephone">+123</say-as>', "plus one two three sil"),
        ('<say-as interpret-as="telephone">+ 1 2–3</say-as>', "plus one two three sil"),
        ('<say-as interpret-as="cardinal">2,000</say-as>', "two thousand sil"),
        ('<say-as interpret-as="ordinal">3</say-as>', "third sil"),
        ('<say-as interpret-as="date" format="dmy">1/2/2001</say-as>',
         "february first two thousand one sil"),
        ('<say-as interpret-as="date" format="mdy">1-2-01</say-as>', None),
        ('<say-as interpret-as="time">1:20</say-as>', "one twenty sil"),
    ],
)  # fmt: skip
def test_words_instead(body, expected):
    if expected is None:
        with pytest.raises(SpeechError, match="not in the pronunciation lexicon: oh;"):
            words(body)
    else:
        assert words(body) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("hello", "no well-formed XML"),
        ("<speak>hello", "no well-formed XML"),
        ("<p>hello</p>", "root element <speak>, got <p>"),
        (
            '<speak><say-as interpret-as="telephone">1-800-FLOWERS</say-as></speak>',
            "'1-800-FLOWERS'",
        ),
        ('<speak><say-as interpret-as="telephone">12 ext. 4</say-as></speak>', "'12 ext. 4'"),
        (
            '<speak><say-as interpret-as="digits">-5</say-as></speak>',
            "spaces and -, got '-5'",
        ),
        ('<speak><say-as interpret-as="digits">3.5</say-as></speak>', "'3.5'"),
        ("<!DOCTYPE x []><speak/>", "document type declaration is refused"),
        ('<speak><audio src="x"/></speak>', "<audio> is not supported; what is: <speak>, <p>"),
        ('<speak><voice name="x">a</voice></speak>', "<voice> is not supported"),
        ("<speak><emphasis>a</emphasis></speak>", "<emphasis> is not supported"),
        (
            '<speak><prosody volume="loud">a</prosody></speak>',
            "<prosody volume=…> is not supported",
        ),
        ('<speak><prosody rate="quick">a</prosody></speak>', "prosody rate: expected x-slow"),
        ('<speak><prosody rate="0">a</prosody></speak>', "factor from 0.1 to 10, got '0'"),
        ('<speak><prosody pitch="200Hz">a</prosody></speak>', "prosody pitch: expected x-low"),
        ('<speak><prosody pitch="-100%">a</prosody></speak>', "more than -100%"),
        ('<speak>a<break time="5"/></speak>', "break time: expected a time"),
        ('<speak>a<break time="1h"/></speak>', "break time: expected a time"),
        ('<speak>a<break time="11s"/></speak>', "at most 10 s, got '11s'"),
        ('<speak>a<break strength="huge"/></speak>', "break strength: expected none"),
        ("<speak><phoneme>a</phoneme></speak>", "<phoneme> needs the attribute ph"),
        ('<speak><phoneme alphabet="x-sampa" ph="a"/></speak>', "alphabet='x-sampa'"),
        ('<speak><say-as interpret-as="music">a</say-as></speak>', "interpret-as='music'"),
        ('<speak><say-as interpret-as="ordinal">two</say-as></speak>', "expected a whole number"),
        (
            '<speak><say-as interpret-as="date" format="dmy">1/13/2001</say-as></speak>',
            "no date in the order 'dmy'",
        ),
        ('<speak><say-as interpret-as="date" format="my">1/1</say-as></speak>', 'format "mdy"'),
        ('<speak><sub alias="a"><break/></sub></speak>', "<break> inside <sub>"),
        ("<speak>" + "<p>" * 60 + "a" + "</p>" * 60 + "</speak>", "more than 50 deep"),
    ],
)
def test_what_cannot_be_followed_is_named(document, message):
    with pytest.raises(SpeechError) as caught:
        ssml_utterances(document, LEXICON)
    assert message in str(caught.value)
