# SPDX-License-Identifier: Apache-2.0
"""Transcripts as tokens, in any language."""

from __future__ import annotations

import pytest

from sniper.tts.aligners.tokens import TokenReader
from sniper.tts.errors import UtteranceError

SIL = ("", ("sil",))


def test_characters_keep_their_marks():
    reader = TokenReader("hi", "characters", {})
    assert reader.spoken("नमस्ते, «Ça»!") == (
        SIL,
        ("नमस्ते", ("न", "म", "स्", "ते")),
        SIL,
        ("ça", ("ç", "a")),
        SIL,
    )


def test_espeak_reads_words_and_a_lexicon_goes_before():
    reader = TokenReader("de", "espeak", {"zug": ["X Y Z"]})
    found = dict(reader.spoken("Der Zug fährt."))
    assert found["zug"] == ("X", "Y", "Z")
    assert found["fährt"][0] == "f" and len(found["fährt"]) >= 3
    english = TokenReader("en-us", "espeak", {})
    assert [word for word, _ in english.spoken("In 1905")] == [
        "",
        "in",
        "nineteen",
        "oh",
        "five",
        "",
    ]


def test_numbers_and_abbreviations_stay_whole_where_espeak_reads_them():
    reader = TokenReader("de", "espeak", {})
    text = "12.345 und 3,5 um 10:30, z.B. 12 345 in den U.S.A. Im Jahr 1998."
    words = "12.345 und 3,5 um 10:30 | z.b. 12345 in den u.s.a | im jahr 1998 |"
    assert [word or "|" for word, _ in reader.spoken(text)][1:] == words.split()
    # "zwölftausend...", not twelve, a pause and 345.
    assert "".join(dict(reader.spoken("12.345"))["12.345"]).startswith("tsvˈœlftˈaʊzənt")


def test_what_cannot_be_read():
    reader = TokenReader("de", "characters", {})
    with pytest.raises(UtteranceError, match="signs that cannot be read: ☃"):
        reader.spoken("ein ☃")
    with pytest.raises(UtteranceError, match="voice ja cannot read the word '日本'"):
        TokenReader("ja", "espeak", {}).spoken("日本 です")
    with pytest.raises(UtteranceError, match="no word"):
        reader.spoken("?!")
