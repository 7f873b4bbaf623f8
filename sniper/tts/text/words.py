# SPDX-License-Identifier: Apache-2.0
"""What a word is: one rule for what a lexicon is made of and for what is looked up in it."""

from __future__ import annotations

import itertools
import re
import unicodedata

from sniper.tts.errors import SpeechError

# Zero-width joiners stand inside words of Indic scripts and of Persian.
_INSIDE_WORDS = "'-_\u200c\u200d"
PAUSES = frozenset(",;:.!?…—―()[]{}，。、；：！？।॥،؛؟")
# Quotation marks of all kinds, hyphens, and an underscore by itself.
SILENT = frozenset("\"'`´“”„‟‚‘’‛«»‹›「」『』〝〞〟＂–‐‑‒_¿¡")
# Emoji as Unicode presents them by default, or asked for by a variation selector; joined by ZWJ.
EMOJI = (
    "(?:(?:[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff⌚⌛⏩-⏬⏰⏳◽◾☔☕♈-♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓-❕❗➕-➗➰➿"
    "⬛⬜⭐⭕]|[\u203c-\u3299]\ufe0f)[\ufe0e\ufe0f]?\u200d?)+"
)
# "12.345", "3,5", "10:30", "12 345" and "U.S.A.": cut at their signs they would be other numbers,
# and letters with pauses between. Our rules for English write them as words before.
_WHOLE = re.compile(
    r"(?<![\w.,:])\d+(?:[.,:]\d+)+(?!\w)"
    r"|(?<![\w.,:])(?<!\d\s)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\w|\s\d)"
    r"|(?<![\w.])[^\W\d_](?:\.[^\W\d_])+(?!\w)\.?"
)
# They are not seen, nor spoken; some stand inside words (a soft hyphen), so they go before the cut.
_UNSEEN = str.maketrans({char: None for char in "\u00ad\u2060\ufeff\u200e\u200f\ufe0e\ufe0f"})


def word_key(word: str) -> str:
    """A word as a lexicon holds it: NFC, lower case, with straight apostrophes."""
    if word.isascii():  # which NFC leaves as it is
        return word.lower()
    straight = word.replace("’", "'").replace("‘", "'")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", straight).lower())


def is_english(language: str) -> bool:
    """Whether a language, named as espeak-ng's voices are, is English: our rules for numbers and
    signs know no other.
    """
    return language.split("-")[0] == "en"


def in_word(char: str) -> bool:
    """Whether `char` can be part of a word: a letter, a combining mark, a digit, an apostrophe."""
    return char in _INSIDE_WORDS or unicodedata.category(char)[0] in "LMN"


def has_letter(piece: str) -> bool:
    """Whether there is a letter or digit in `piece`, not marks and signs alone."""
    return any(unicodedata.category(char)[0] in "LN" for char in piece)


def is_silent(text: str) -> bool:
    """Whether nothing in `text` is spoken: there are spaces, pauses and silent signs alone."""
    return all(
        char.isspace()
        or char in PAUSES
        or char in SILENT
        or char in _INSIDE_WORDS
        or unicodedata.category(char)[0] == "M"
        or unicodedata.category(char) == "Cf"
        for char in text
    )


def characters(word: str) -> tuple[str, ...]:
    """Letters and digits, each with the marks that combine with it: tokens of a word where a voice
    has no phonemes.
    """
    found: list[str] = []
    for char in word:
        kind = unicodedata.category(char)[0]
        if kind in "LN":
            found.append(char)
        # A combining mark has no sound of its own.
        elif kind == "M" and found:
            found[-1] += char
    return tuple(found)


def script(word: str) -> str | None:
    """The name of a word's script where it is not the Latin one, else None."""
    for char in word:
        if char.isalpha():
            name = unicodedata.name(char, "UNKNOWN").split()[0]
            return None if name in ("LATIN", "FEMININE", "MASCULINE") else name.title()
    return None


def pieces(text: str) -> list[str]:
    """Cut a text into words (as `word_key` writes them) and single pauses, in order.

    Raises:
        SpeechError: signs that are neither, nor known to be silent; all of them are named.
    """
    return [word_key(piece) for piece in cut(text)]


def cut(text: str) -> list[str]:
    """`pieces` with capitals kept."""
    straight = text.replace("’", "'").replace("‘", "'").translate(_UNSEEN)
    # An en dash beside a space parts clauses; between words without spaces it joins them.
    straight = re.sub(r"(?<!\w)–|–(?!\w)", "—", unicodedata.normalize("NFC", straight))
    found: list[str] = []
    unknown: dict[str, None] = {}
    place = 0
    for whole in _WHOLE.finditer(straight):
        _cut_plain(straight[place : whole.start()], found, unknown)
        word, after = re.sub(r"\s", "", whole[0]), straight[whole.end() :].lstrip()
        # Before a capital the last dot ends a sentence, else it is the abbreviation's ("z.B. das").
        ends = word.endswith(".") and (not after or after[0].isupper())
        found += [word.rstrip("."), "."] if ends else [word]
        place = whole.end()
    _cut_plain(straight[place:], found, unknown)
    if unknown:
        raise SpeechError(
            f"signs that cannot be read: {' '.join(unknown)}; write them as words, or drop them"
        )
    return found


def _cut_plain(text: str, found: list[str], unknown: dict[str, None]) -> None:
    """Append the words and pauses of a text to `found`, and its other signs to `unknown`."""
    for inside, group in itertools.groupby(text, in_word):
        if inside:
            found.append("".join(group))
            continue
        for char in group:
            if char in PAUSES:
                found.append(char)
            elif not (char.isspace() or char in SILENT or unicodedata.category(char) == "Cf"):
                unknown[char] = None
