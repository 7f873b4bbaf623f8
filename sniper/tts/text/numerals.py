# SPDX-License-Identifier: Apache-2.0
"""Numbers as English words: whole, decimal, ordinal, years, decades, fractions, Roman."""

from __future__ import annotations

import re

from num2words import num2words

# A whole number as people write it: parted by commas (India parts by two), or digits alone.
WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d{1,2}(?:,\d\d)+,\d{3}(?!,?\d)|\d+)"
NUMBER = rf"(?:{WHOLE}(?:\.\d+)?|\.\d+)"
SUPERSCRIPTS = {ord(high): low for high, low in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}

VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"

_DIGITS = "zero one two three four five six seven eight nine".split()
# Well-formed numerals alone: most other runs of these letters are initials.
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def number_words(value: int) -> str:
    """A whole number in English words, without "and" ("one hundred twenty").

    Numbers of 10^15 and above are read digit by digit.
    """
    if value < 0:
        return "minus " + number_words(-value)
    if value >= 10**15:
        # Nobody says quadrillions; so long a number is a code.
        return digit_words(str(value))
    return _plain(num2words(value))


def ordinal_words(value: int) -> str:
    """A whole number as an English ordinal ("twenty first")."""
    if value >= 10**15:
        return number_words(value) + "th"
    return _plain(num2words(value, to="ordinal"))


def digit_words(digits: str) -> str:
    """Digits one by one; whatever else stands between them is left out."""
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit.isdecimal())


def decimal_words(text: str) -> str:
    """A number that matches NUMBER: "1,234.50" is one thousand … point five zero.

    Leading zeros ("007") mark a code, not an amount: its digits are read one by one.
    """
    whole, _, fraction = re.sub(r"[,\s]", "", text).partition(".")
    code = len(whole) > 1 and int(whole[0]) == 0
    words = [digit_words(whole) if code else number_words(int(whole))] if whole else []
    if fraction:
        words += ["point", digit_words(fraction)]
    return " ".join(words)


def year_words(value: int) -> str:
    """A year from 1000 to 2099 as it is read aloud ("nineteen oh five")."""
    century, rest = divmod(value, 100)
    # Nobody says "twenty oh five".
    if 2000 <= value < 2010 or value == 1000:
        return number_words(value)
    if rest == 0:
        return number_words(century) + " hundred"
    return number_words(century) + (" oh " if rest < 10 else " ") + number_words(rest)


def plural_words(words: str) -> str:
    """The plural of number words: "nineties", "sixes", "two thousands"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")


def fraction_words(above: int, below: int) -> str:
    """A fraction as it is read: three quarters, one hundredth, five over thirty two."""
    named = below in (100, 1000) or 2 <= below <= 20
    if not (0 < above < below and named):
        return f"{number_words(above)} over {number_words(below)}"
    name = {2: "half", 4: "quarter", 100: "hundredth", 1000: "thousandth"}.get(below)
    name = name or ordinal_words(below)
    return f"{number_words(above)} {name}" + ("" if above == 1 else "s")


def power_words(exponent: str) -> str:
    """What follows a base: "squared", "cubed", "to the power of minus three"."""
    digits = exponent.translate(SUPERSCRIPTS).replace("−", "-")
    special = {"2": "squared", "3": "cubed"}.get(digits)
    if special:
        return special
    sign = "minus " if digits.startswith("-") else ""
    return f"to the power of {sign}{decimal_words(digits.lstrip('+-'))}"


def roman_value(text: str) -> int | None:
    """The value of a well-formed Roman numeral in capitals, else None."""
    # The pattern matches an empty text too.
    if not text or not _ROMAN.fullmatch(text):
        return None
    values = [_ROMAN_VALUES[char] for char in text]
    # A smaller value before a larger one is subtracted: IV, XC.
    following = [*values[1:], 0]
    return sum(-v if v < after else v for v, after in zip(values, following, strict=True))


def _plain(words: str) -> str:
    """num2words' spelling without commas, hyphens and "and", as lexicons hold number words."""
    return " ".join(words.replace("-", " ").replace(",", "").replace(" and ", " ").split())
