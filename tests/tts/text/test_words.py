# SPDX-License-Identifier: Apache-2.0
"""One rule cuts words for harvest and look-up."""

from __future__ import annotations

import unicodedata

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.text.lexicon import harvest
from sniper.tts.text.text import LexiconFrontend
from sniper.tts.text.words import pieces, word_key

WORDS = ["नमस्ते", "வணக்கம்", "নমস্কার", "สวัสดีครับ", "كِتَابٌ", "שָׁלוֹם", "İstanbul", "café"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_was_harvested_is_found(word, form):
    lexicon = harvest([(word_key(word), "a b")])
    spoken = unicodedata.normalize(form, word)
    assert pieces(spoken) == list(lexicon)
    assert LexiconFrontend(lexicon, trailing_pause=False).phones(spoken) == ["a", "b"]


@pytest.mark.parametrize("mark", [" – ", "。", "，", "।"])
def test_pauses_of_other_scripts(mark):
    frontend = LexiconFrontend({"a": "x", "b": "y"}, trailing_pause=False)
    assert frontend.phones(f"a{mark}b") == ["x", "sil", "y"]


def test_signs_that_cannot_be_read_are_all_named():
    with pytest.raises(SpeechError, match="cannot be read: ☃ §"):
        LexiconFrontend({"a": "x"}).phones("a ☃ a § ☃")
