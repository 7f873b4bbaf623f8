# SPDX-License-Identifier: Apache-2.0
"""Pronunciation lexicons: counted from alignments, or read from a dictionary in MFA's format."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sniper.tts.errors import SpeechError
from sniper.tts.text.words import word_key


def harvest(pronunciations: Iterable[tuple[str, str]]) -> dict[str, str]:
    """word -> its most frequent pronunciation (the alphabetically first of equals).

    Args:
        pronunciations: (word, phonemes separated by spaces) pairs, one for each time it was said.
    """
    counts: dict[str, Counter[str]] = {}
    for word, phones in pronunciations:
        counts.setdefault(word, Counter())[phones] += 1
    return {
        word: min(counts[word].items(), key=lambda item: (-item[1], item[0]))[0]
        for word in sorted(counts)
    }


def read_dictionary(path: Path) -> dict[str, str]:
    """Read an MFA (or CMU) dictionary: a word, optional probabilities, its phonemes.

    Of several pronunciations the first is taken. Lines starting with ";;;" are comments.

    Raises:
        SpeechError: the file is missing, not UTF-8, or a line has no phonemes.
    """
    try:
        # Windows' editors write a mark in front, which would become a part of the first word.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpeechError(f"the lexicon {path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(";;;"):
            continue
        word, *rest = line.split()
        # MFA writes up to four probabilities there, CMU none.
        while rest and _is_number(rest[0]):
            rest.pop(0)
        if not rest:
            raise SpeechError(f"{path}:{number}: {word!r} has no phonemes")
        # CMU marks further pronunciations as WORD(2).
        base = word.split("(")[0] if word.endswith(")") and not word.startswith("(") else word
        found.setdefault(word_key(base), " ".join(rest))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
