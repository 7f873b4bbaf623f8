# SPDX-License-Identifier: Apache-2.0
"""Pronunciation lexicons: counted from alignments, or read from a dictionary in MFA's format."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sniper.tts.errors import SpeechError
from sniper.tts.files import refuse_utf16
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


# MFA writes up to four probabilities, CMU none. Whole numbers are phonemes of SAMPA (2, 6, 9), but
# for the 0 and 1 that have a field of their own between MFA's tabs.
_PROBABILITY = r"(?:\d+\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]\d+)(?:\s+|$)|[01]\t"
_PROBABILITIES = re.compile(rf"(?:{_PROBABILITY}){{0,4}}")
# CMU's remarks; a "#" within a word or phoneme is none.
_REMARK = re.compile(r"(?:^|\s)#(?:\s.*)?$")


def dictionary_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(word, phonemes separated by spaces) for each line of a dictionary in MFA's or CMU's format.

    Lines that start with ";;;" are comments, and so is what stands behind a "#" by itself.

    Raises:
        SpeechError: the file is missing, not UTF-8, or a line has no phonemes.
    """
    try:
        # Windows' editors write a mark in front, which would become a part of the first word.
        content = path.read_bytes()
        refuse_utf16(content, path)
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpeechError(f"the lexicon {path} cannot be read: {error}") from error
    # A dictionary has more than 100,000 lines: what only a few of them hold is looked for first.
    for number, line in enumerate(lines, start=1):
        if "#" in line:
            line = _REMARK.sub("", line)
        if not line.strip() or line.startswith(";;;"):
            continue
        word, *rest = line.split(maxsplit=1)
        said = "".join(rest)
        if said[:1].isdigit():
            said = _PROBABILITIES.sub("", said, count=1)
        phones = " ".join(said.split())
        if not phones:
            raise SpeechError(f"{path}:{number}: {word!r} has no phonemes")
        # CMU marks further pronunciations as WORD(2).
        if word.endswith(")"):
            word = re.sub(r"(?<=.)\(\d+\)$", "", word)
        yield word_key(word), phones


def read_dictionary(path: Path) -> dict[str, str]:
    """word -> phonemes of a dictionary, the first of several pronunciations.

    Raises:
        SpeechError: as `dictionary_lines`.
    """
    found: dict[str, str] = {}
    for word, phones in dictionary_lines(path):
        found.setdefault(word, phones)
    return found
