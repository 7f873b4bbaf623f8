# SPDX-License-Identifier: Apache-2.0
"""Where sentences end: one rule for the splitter and for the pauses of the normaliser."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

from sniper.tts.text.abbreviations import (
    CLOCK,
    MONTHS,
    NEVER_LAST,
    OFTEN_LAST,
    REGIONS,
    SOMETIMES_LAST,
    STARTERS,
    WEEKDAYS,
    WORDS_OR_TITLES,
    ZONES,
    has_number,
)
from sniper.tts.text.numerals import VULGAR
from sniper.tts.text.quantities import MILLIONS, UNIT, UNIT_DOT
from sniper.tts.text.words import EMOJI, has_letter, is_silent

_DATES = frozenset(
    [*(name.lower() for name in (*MONTHS.values(), *WEEKDAYS.values())), *MONTHS, *WEEKDAYS]
)
_CLOSING = "\"'”’»›)]}*_"
# A Latin mark ends a sentence before a space only ("3.5" has none); Chinese and Hindi ones need no
# space.
_ENDINGS = re.compile(rf"(?<=[.!?…])[{re.escape(_CLOSING)}]*\s+(?=\S)|(?<=[。！？।॥])|\n\s*\n")
# Phonemes that are given.
IN_BRACES = re.compile(r"\{([^{}]*)\}")
_PUT_AWAY = 0xF0000  # the first character of a plane that is nobody's
_LAST_WORD = re.compile(r"((?:\w\.)+\w?|[\w'’]+)\.$")
# The last character is the dot, which `_UNIT_DOT` looks at with what follows it.
_UNIT_LAST = re.compile(rf"[\d{VULGAR}][\s-]?(?:(?:sq|cu|fl)\.\s)?(?:{UNIT}|{MILLIONS}|fl)\.$")
_UNIT_DOT = re.compile(UNIT_DOT)
# Emoji, marks, and the ornaments between two scenes of a book.
_NO_READING = re.compile(rf"{EMOJI}|[*•·⁂~†‡®™]+|(?:[#=+]\s*){{3,}}")
_ZONE_OF_REGION = re.compile(r"\s+(?:Time|Standard|Daylight|time)\b|\s*(?:[^\w\s]|$)")
_DOTTED_ZONE = re.compile(r"\s+((?:[A-Z]\.){2,4})")  # "E.S.T."
_NEXT_WORD = re.compile(r"\s+[\"'“‘«‹(\[*_¿¡]*([\w'’]+)")


def ends_sentence(word: str, after: str) -> bool:
    """Whether the dot behind an abbreviation or initial ends a sentence too.

    Args:
        word: in front of the dot: "U.S", "etc", "J".
        after: the text that follows the dot.
    """
    after = after.lstrip(_CLOSING)
    key = word.lower()
    if not after.strip():
        return True
    # An empty line is an end whatever stands before it.
    if re.match(r"[^\S\n]*\n\s*\n", after):
        return True
    following = _NEXT_WORD.match(after)
    if following is None or key in NEVER_LAST:
        return False
    first = following[1].replace("’", "'")
    if not first[0].isupper():
        return False
    if key in OFTEN_LAST:
        # "5 p.m. Monday", "5 p.m. EST": the day and the zone go with the time.
        dotted = _DOTTED_ZONE.match(after)
        zone = dotted[1].replace(".", "") if dotted else first
        beside = first.lower() in _DATES or zone in ZONES
        if first in REGIONS:  # "5 p.m. Pacific", and not "5 p.m. Pacific islands"
            beside = _ZONE_OF_REGION.match(after[following.end() :]) is not None
        return key not in CLOCK or not beside
    # In "J. I. Smith" the "I" behind an initial is another one.
    return first.lower() in STARTERS and not (first == "I" and len(word) == 1)


def _goes_on(before: str, after: str) -> bool:
    """Whether a sentence goes on behind its last mark: an abbreviation, or dots that hesitate."""
    if re.search(r"(?:…|\.\.)[^\w\s]*$", before):
        return re.match(r"\W*[a-z]", after) is not None
    last = _LAST_WORD.search(before)
    if last is None:
        return False
    word, key = last[1], last[1].lower()
    if has_number(key, after) or (_UNIT_LAST.search(before) and _UNIT_DOT.match("." + after)):
        return True
    initial = len(word) == 1 and word.isalpha()
    known = initial or "." in word or key in NEVER_LAST | OFTEN_LAST | SOMETIMES_LAST
    known = known or (key in WORDS_OR_TITLES and word[0].isupper())
    return known and not ends_sentence(word, after)


def split_sentences(text: str, max_chars: int = 300) -> list[str]:
    """Split a long text at the ends of its sentences.

    A sentence over `max_chars` is split again, at the last punctuation that fits, else at a space.
    Text in braces (phonemes) stays whole.
    """
    given: list[str] = []

    def put_away(match: re.Match) -> str:
        given.append(match[0])
        return chr(_PUT_AWAY + len(given) - 1)

    # One private character in the place of each, since sentences are cut at marks and spaces.
    parts = _split(IN_BRACES.sub(put_away, text), max_chars)
    back = {_PUT_AWAY + number: braces for number, braces in enumerate(given)}
    return [part.translate(back) for part in parts]


def _split(text: str, max_chars: int) -> list[str]:
    sentences, begin = [], 0
    for match in _ENDINGS.finditer(text):
        # A window, since looking at all of a long text at each mark takes time with the square of
        # its length.
        before = text[max(begin, match.start() - 40) : match.start()]
        if match[0].count("\n") < 2 and _goes_on(before, text[match.start() : match.end() + 40]):
            continue
        # Closing quotes belong to the sentence they close.
        sentences.append(text[begin : match.end()])
        begin = match.end()
    sentences.append(text[begin:])
    return _with_words(part for sentence in sentences for part in _shorten(sentence, max_chars))


def _with_words(parts: Iterable[str]) -> list[str]:
    """Joins signs without a word to the sentence before them, where they are read or refused."""
    found: list[str] = []
    before = ""  # what stands in front of the first word
    for part in parts:
        if has_letter(part) or any(ord(char) >= _PUT_AWAY for char in part):
            found.append(before + part)
            before = ""
        elif is_left_out(part):
            continue
        elif found:
            found[-1] += " " + part
        else:
            before += part + " "
    return [*found, before.strip()] if before else found


def is_left_out(part: str) -> bool:
    """Whether nothing in a part of a text is read; where it holds more than pauses, it is told."""
    rest = _NO_READING.sub("", part)
    if not is_silent(rest):
        return False
    if rest != part:
        warnings.warn(f"left out, it has no reading: {part.strip()!r}", stacklevel=2)
    return True


def _shorten(sentence: str, max_chars: int) -> list[str]:
    rest = " ".join(sentence.split())
    parts = []
    while len(rest) > max_chars:
        window = rest[:max_chars]
        cut = max(window.rfind(mark + " ") for mark in ",;:—")
        # A mark near the beginning would leave a part of a few words.
        if cut < max_chars // 3:
            cut = window.rfind(" ")
        if cut <= 0:
            warnings.warn(f"a word of over {max_chars} characters is cut", stacklevel=3)
            cut = max_chars - 1
        parts.append(rest[: cut + 1].strip())
        rest = rest[cut + 1 :].strip()
    return [*parts, rest] if rest else parts
