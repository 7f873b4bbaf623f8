# SPDX-License-Identifier: Apache-2.0
"""A small English text normaliser: writes as words what a lexicon cannot look up."""

import re

from num2words import num2words

_DIGITS = "zero one two three four five six seven eight nine".split()
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "dr": "doctor",
    "prof": "professor",
    "st": "saint",
    "capt": "captain",
    "col": "colonel",
    "gen": "general",
    "lt": "lieutenant",
    "rev": "reverend",
    "hon": "honourable",
    "jr": "junior",
    "sr": "senior",
    "etc": "et cetera",
    "vs": "versus",
    "no": "number",
}

_SIGNS = {"+": "plus", "=": "equals", "×": "times", "°": "degrees", "#": "number", "@": "at"}
_UNITS = {
    "km": "kilometers",
    "cm": "centimeters",
    "mm": "millimeters",
    "kg": "kilograms",
    "ml": "milliliters",
    "kHz": "kilohertz",
    "Hz": "hertz",
    "mph": "miles per hour",
}
_VERSION = re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}(?!\.?\d)")
_TIME = re.compile(r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])")
_FRACTION = re.compile(r"(?<![\d/.,])(\d+)/(\d+)(?![\d/]|[.,]\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)")
_BARE_DECIMAL = re.compile(r"(?<![\w.])\.(\d+)")
_RANGE = re.compile(r"(?<=\d)\s?–\s?(?=\d)")
_MINUS = re.compile(r"(?<!\w)-(?=\d)|−\s?")
_UNIT = re.compile(rf"(?<=\d)\s?({'|'.join(_UNITS)})\b")
# Two letters with dots at least: a single one may end a sentence.
_INITIALS = re.compile(r"\b(?:[A-Za-z]\.\s?){2,}(?!\w\.)")

_ABBREVIATION = re.compile(
    r"\b(mr|mrs|ms|dr|prof|st|capt|col|gen|lt|rev|hon|jr|sr|etc|vs)\.|\b(no)\.(?=\s*\d)", re.I
)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
_MONEY = re.compile(
    rf"([$£€])\s?({_NUMBER})(?:\.(\d+))?(?:\s(hundred|thousand|\w+illion)\b)?", re.IGNORECASE
)
_YEAR = re.compile(r"(?<![\d.,])(1[1-9]\d\d|20[1-9]\d)(?![\d%]|[.,]\d)(s?)\b")
_ORDINAL = re.compile(rf"({_NUMBER})(?:st|nd|rd|th)\b", re.I)
_DECIMAL = re.compile(rf"({_NUMBER})\.(\d+)")
_CARDINAL = re.compile(_NUMBER)


def number_words(value: int) -> str:
    """A whole number in English words, without "and" ("one hundred twenty").

    Numbers of 10^15 and above are read digit by digit.
    """
    if value < 0:
        return "minus " + number_words(-value)
    if value >= 10**15:
        return _digits(str(value))
    return _plain(num2words(value))


def ordinal_words(value: int) -> str:
    """A whole number as an English ordinal ("twenty first")."""
    return _plain(num2words(value, to="ordinal"))


def year_words(value: int) -> str:
    """A year from 1100 to 2099 as it is read aloud ("nineteen oh five")."""
    century, rest = divmod(value, 100)
    if 2000 <= value < 2010:
        return number_words(value)
    if rest == 0:
        return number_words(century) + " hundred"
    return number_words(century) + (" oh " if rest < 10 else " ") + number_words(rest)


def normalize_english(text: str) -> str:
    """Write abbreviations, money, years, ordinals, decimals and numbers as words."""
    text = text.replace("’", "'").replace("‘", "'")
    text = _ABBREVIATION.sub(lambda m: _ABBREVIATIONS[(m[1] or m[2]).lower()], text)
    text = _MONEY.sub(_money, text)
    text = _signs(text)
    text = _ORDINAL.sub(lambda m: ordinal_words(_value(m[1])), text)
    text = _YEAR.sub(_year, text)
    text = _DECIMAL.sub(lambda m: f"{number_words(_value(m[1]))} point {_digits(m[2])}", text)
    text = _CARDINAL.sub(lambda m: number_words(_value(m[0])), text)
    return re.sub(r"\s*%", " percent", text).replace("&", " and ")


def _plain(words: str) -> str:
    """num2words' spelling without commas, hyphens and "and", as lexicons hold number words."""
    return " ".join(words.replace("-", " ").replace(",", "").replace(" and ", " ").split())


def _fraction(match: re.Match) -> str:
    above, below = int(match[1]), int(match[2])
    if (above, below) == (24, 7):
        return "twenty four seven"
    if not 0 < above < below <= 20 or below == 1:
        return f"{number_words(above)} over {number_words(below)}"
    name = {2: "half", 4: "quarter"}.get(below) or ordinal_words(below)
    return f"{number_words(above)} {name}" + ("" if above == 1 else "s")


def _time(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    if not minute:
        return number_words(hour)
    return f"{number_words(hour)} {'oh ' if minute < 10 else ''}{number_words(minute)}"


def _version(match: re.Match) -> str:
    return " point ".join(number_words(int(part)) for part in match[0].split("."))


def _letters(match: re.Match) -> str:
    return " ".join(match[0].replace(".", " ").split()) + " " * match[0].endswith(" ")


def _signs(text: str) -> str:
    """Write the constructs of digits and signs that must be read before single numbers are."""
    text = _VERSION.sub(_version, text)
    text = _TIME.sub(_time, text)
    text = _FRACTION.sub(_fraction, text)
    text = _SPACED_THOUSANDS.sub(lambda m: re.sub(r"\s", "", m[0]), text)
    text = _BARE_DECIMAL.sub(lambda m: f"point {_digits(m[1])}", text)
    text = _RANGE.sub(" to ", text)
    text = _MINUS.sub("minus ", text)
    text = _UNIT.sub(lambda m: f" {_UNITS[m[1]]}", text)
    text = _INITIALS.sub(_letters, text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, f" {word} ")
    return text


def _value(digits: str) -> int:
    return int(digits.replace(",", ""))


def _digits(digits: str) -> str:
    return " ".join(_DIGITS[int(digit)] for digit in digits)


def _year(match: re.Match) -> str:
    words = year_words(int(match[1]))
    if not match[2]:
        return words
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _money(match: re.Match) -> str:
    unit, cent = _CURRENCIES[match[1]]
    whole, fraction = _value(match[2]), match[3] or ""
    if match[4] or len(fraction) not in (0, 2):
        amount = number_words(whole) + (f" point {_digits(fraction)}" if fraction else "")
        return " ".join(filter(None, [amount, match[4], f"{unit}s"]))
    cents = int(fraction or 0)
    parts = []
    if whole or not cents:
        parts.append(f"{number_words(whole)} {unit}" + ("" if whole == 1 else "s"))
    if cents:
        plural = "pence" if cent == "penny" else cent + "s"
        parts.append(f"{number_words(cents)} {cent if cents == 1 else plural}")
    return " and ".join(parts)
