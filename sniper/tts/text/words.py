# SPDX-License-Identifier: Apache-2.0
"""What a word is: one rule for what a lexicon is made of and for what is looked up in it."""

from __future__ import annotations

import itertools
import unicodedata

from sniper.tts.errors import SpeechError

# Zero-width joiners stand inside words of Indic scripts and of Persian.
_INSIDE_WORDS = "'-_\u200c\u200d"
PAUSES = frozenset(",;:.!?…—()，。、；：！？।॥،؛؟")
SILENT = frozenset("\"'`´“”„«»‹›‚[]*–‐‑_|~")


def word_key(word: str) -> str:
    """A word as a lexicon holds it: NFC, lower case, with straight apostrophes."""
    straight = word.replace("’", "'").replace("‘", "'")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", straight).lower())


def in_word(char: str) -> bool:
    """Whether `char` can be part of a word: a letter, a combining mark, a digit, an apostrophe."""
    return char in _INSIDE_WORDS or unicodedata.category(char)[0] in "LMN"


def has_letter(piece: str) -> bool:
    """Whether there is a letter or digit in `piece`, not marks and signs alone."""
    return any(unicodedata.category(char)[0] in "LN" for char in piece)


def pieces(text: str) -> list[str]:
    """Cut a text into words and single pauses, in order.

    Raises:
        SpeechError: signs that are neither, nor known to be silent; all of them are named.
    """
    # A spaced en dash parts clauses; between words without spaces it joins them.
    text = word_key(text).replace(" – ", " — ")
    found: list[str] = []
    unknown: dict[str, None] = {}
    for inside, group in itertools.groupby(text, in_word):
        if inside:
            found.append("".join(group))
            continue
        for char in group:
            if char in PAUSES:
                found.append(char)
            # Format characters (a byte-order mark, a soft hyphen) are not seen, nor spoken.
            elif not (char.isspace() or char in SILENT or unicodedata.category(char) == "Cf"):
                unknown[char] = None
    if unknown:
        raise SpeechError(
            f"signs that cannot be read: {' '.join(unknown)}; write them as words, or drop them"
        )
    return found
