# SPDX-License-Identifier: Apache-2.0
"""Written forms of numbers: fractions, versions, decades, inches, degrees of arc."""

from __future__ import annotations

import re
import unicodedata

from sniper.tts.text import quantities
from sniper.tts.text.numerals import (
    VULGAR,
    decimal_words,
    digit_words,
    fraction_words,
    number_words,
    ordinal_words,
    plural_words,
    year_words,
)


def fraction(match: re.Match) -> str | None:
    whole, above, below = match[1], int(match[2]), int(match[3])
    # Nothing divides by zero; later rules read the two numbers and the slash.
    if not below:
        return None
    # These two are sayings, no fractions.
    pairs = {(24, 7): "twenty four seven", (9, 11): "nine eleven"}
    words = pairs.get((above, below)) if not whole else None
    if words is None and above == below and not whole:
        # 10/10 and 5/5 are marks; other equal parts, such as 50/50, are shares.
        score = above in (5, 10)
        words = f"{number_words(above)} {'out of ' * score}{number_words(below)}"
    words = words or fraction_words(above, below)
    return f"{number_words(int(whole))} and {words}" if whole else words


def vulgar(match: re.Match) -> str:
    # Unicode takes "½" apart into 1, a fraction slash and 2.
    parts = unicodedata.normalize("NFKC", match[2]).split("⁄")
    words = fraction_words(int(parts[0]), int(parts[1]))
    words = f"{decimal_words(match[1])} and {words}" if match[1] else words
    if not match[3]:
        return words
    inches = not match.string[: match.start()].count('"') % 2
    return words + (" inches" if match[1] else " inch") if inches else words


def part_money(match: re.Match) -> str:
    unit = quantities.CURRENCIES[match[1]][0]
    return f"{fraction_words(int(match[2]), int(match[3]))} {unit}"


# Short numbers that people dial; 911 is one wherever nothing makes an amount or a place of it.
DIALLED = r"(?<![\w.,$£€#/-])([2-9]11|988|999|112|111|101|000)(?![\w%°/-]|[.,:]\d)"
_CALLING = r"\b(?:call|dial|ring|phone|text)(?:s|ed|led|ling|ing)?(?:\s(?:up|to))?\s$|\brang\s$"
_CALLED = r"\s(?:calls?|callers?|emergency|operators?|dispatch(?:ers?)?|hotline)\b"
_PLACES = r"(?:page|year|room|route|flight|line|chapter|section|number|in|of|than|about|over)\s$"


def dialled(match: re.Match) -> str | None:
    """A match of DIALLED digit by digit, where somebody calls it."""
    before = match.string[: match.start()].lower()
    after = match.string[match.end() :].lower()
    if re.search(_CALLING, before) or re.match(_CALLED, after):
        return digit_words(match[1])
    # "911 people" are counted, "911 now" and "911." are the number that everybody knows.
    counted = re.match(r"\s(?!(?:if|for|when|now|and|or|immediately|right|from|is|was)\b)\w", after)
    if match[1] == "911" and not counted and not re.search(rf"\b{_PLACES}", before):
        return digit_words(match[1])
    return None


# Two parts of a hundred, or twice the same: no range runs downwards or from a number to itself.
ODDS = r"(?<![\w.,$£€%°-])([1-9]\d)[-–]([1-9]\d)(?![\w%°-]|[.,:/]\d)|(?<![\w.,-])24-7(?![\w-])"


def odds(match: re.Match) -> str | None:
    """A match of ODDS: "fifty fifty", "eighty twenty", "twenty four seven"."""
    if match[1] is None:
        return "twenty four seven"
    first, second = int(match[1]), int(match[2])
    if first != second and not (first > second and first + second == 100):
        return None
    return f"{number_words(first)} {number_words(second)}"


def version(match: re.Match) -> str:
    words = " point ".join(number_words(int(part)) for part in match[2].split("."))
    return "version " + words if match[1] else words


def thousands(match: re.Match) -> str:
    # Where thousands are parted by dots, the comma is the decimal sign.
    return decimal_words(re.sub(r"[^\d,]", "", match[0]).replace(",", "."))


def decade(match: re.Match) -> str:
    value = int(match[1])
    if len(match[1]) == 2:
        # "The '00s" are said as the two thousands.
        return plural_words(number_words(value or 2000))
    return plural_words(year_words(value) if 1000 <= value < 2100 else number_words(value))


def scientific(match: re.Match) -> str:
    # Typesetters write a minus of its own, U+2212.
    power = match[2].replace("−", "-")
    return f"{decimal_words(match[1])} times ten {to_the(power)}"


def to_the(power: str) -> str:
    sign = "minus " if power.startswith("-") else ""
    # Zeros in front would make a code of it, which is read digit by digit.
    return f"to the power of {sign}{decimal_words(power.lstrip('+-').lstrip('0') or '0')}"


def ordinal(match: re.Match) -> str:
    return ordinal_words(int(match[1].replace(",", ""))) + ("s" if match[2] else "")


def feet(match: re.Match) -> str:
    feet = f"{number_words(int(match[1]))} {'foot' if match[1] == '1' else 'feet'}"
    if not match[2]:
        return feet
    return f"{feet} {decimal_words(match[2])} inch" + ("" if match[2] == "1" else "es")


def inches(match: re.Match) -> str | None:
    # Behind an open quotation mark this one closes it.
    if match.string[: match.start()].count('"') % 2:
        return None
    return f"{decimal_words(match[1])} inch" + ("" if match[1] == "1" else "es")


def feet_alone(match: re.Match) -> str | None:
    """ "6'" as feet, unless the mark may close a quotation."""
    quoted = re.search(r"(?<!\w)'", match.string[: match.start()])
    return None if quoted else feet(match)


def inch_part(match: re.Match) -> str | None:
    """The mark behind a fraction: a part of an inch, or more than one."""
    before = match.string[: match.start()]
    if before.count('"') % 2:
        return None
    return " inches" if re.search(r"\d[\s-]\d+/\d+$", before) else " inch"


def arc(match: re.Match) -> str:
    names = ("degree", "minute", "second")
    parts = [
        f"{decimal_words(value)} {name}{'' if value == '1' else 's'}"
        for value, name in zip(match.groups()[:3], names, strict=True)
        if value
    ]
    side = {"N": "north", "S": "south", "E": "east", "W": "west"}.get(match[4] or "")
    return " ".join([*parts, side] if side else parts)


def many(match: re.Match) -> str:
    """Plurals ("747s", "100s") and possessives ("2023's") of numbers."""
    value = int(match[1].replace(",", ""))
    # "2023's" is what belongs to a year, "1990's" a decade.
    if match[2] and 1000 <= value < 2100 and value % 10:
        return year_words(value) + "'s"
    return plural_words(
        # "100s" are hundreds, not one hundreds.
        re.sub(r"^one (?=hundred$|thousand$|million$)", "", decimal_words(match[1]))
    )


def unit_of_fraction(match: re.Match) -> str | None:
    # These are words as well: "1/2 in the"; the dot of "1/2 in." makes inches.
    dotted = match[2] or match.string.startswith(".", match.end())
    word = match[1] in ("s", "A") or (match[1] == "in" and not dotted)
    if word or not re.match(r"[\s-]", match[0]):
        return None
    before = match.string[: match.start()]
    # "1/3 lb" and "½ lb" are parts of one, "1 1/2 lb" and "120/80 mmHg" are more.
    part = re.search(rf"(?<![\d\s/])\s?(?:(\d+)/(\d+)|[{VULGAR}])$", " ." + before)
    below_one = part is not None and (not part[1] or int(part[1]) < int(part[2]))
    return " " + quantities.unit_words(match[1], below_one)
