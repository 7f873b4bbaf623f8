# SPDX-License-Identifier: Apache-2.0
"""A small English text normaliser: writes as words what a lexicon cannot look up."""

import re

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
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
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (" " + _ONES[value % 10] if value % 10 else "")
    if value < 1000:
        rest = value % 100
        return _ONES[value // 100] + " hundred" + (" " + number_words(rest) if rest else "")
    if value >= 10**15:
        return _digits(str(value))
    scale, name = next((scale, name) for scale, name in _SCALES if value >= scale)
    rest = value % scale
    return f"{number_words(value // scale)} {name}" + (" " + number_words(rest) if rest else "")


def ordinal_words(value: int) -> str:
    """A whole number as an English ordinal ("twenty first")."""
    *before, last = number_words(value).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return " ".join([*before, last])


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
    text = _ORDINAL.sub(lambda m: ordinal_words(_value(m[1])), text)
    text = _YEAR.sub(_year, text)
    text = _DECIMAL.sub(lambda m: f"{number_words(_value(m[1]))} point {_digits(m[2])}", text)
    text = _CARDINAL.sub(lambda m: number_words(_value(m[0])), text)
    return re.sub(r"\s*%", " percent", text).replace("&", " and ")


def _value(digits: str) -> int:
    return int(digits.replace(",", ""))


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


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
