# SPDX-License-Identifier: Apache-2.0
"""Forms that people write and nobody reads as they stand: dates, clocks, telephones, addresses."""

from __future__ import annotations

import re

from sniper.tts.text.abbreviations import MONTHS, WEEKDAYS
from sniper.tts.text.numerals import (
    decimal_words,
    digit_words,
    number_words,
    ordinal_words,
    year_words,
)
from sniper.tts.text.sentences import ends_sentence

_MONTH_NAMES = list(dict.fromkeys(MONTHS.values()))
# "May" is no short form, so a dot behind it ends a sentence.
_SHORT_MONTHS = "|".join(name.title() for name in MONTHS if name != "may")
MONTH = rf"(?:{'|'.join(_MONTH_NAMES)}|(?:{_SHORT_MONTHS})\b\.?)"

_MERIDIEM = r"\s?(?:([AaPp])\.\s?[mM]\.|([AaPp])[mM]\b\.?)"
CLOCK = rf"(?<![\d:.])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.\d+)?)?(?![\d:])(?:{_MERIDIEM})?"
HOUR = rf"(?<![\d:.,])(1[0-2]|0?[1-9]){_MERIDIEM}"
DOTTED_CLOCK = rf"(?<![\d:.])(1[0-2]|0?[1-9])\.([0-5]\d){_MERIDIEM}"
RATIO = r"(?<![\d:.])(\d+(?:\.\d+)?)((?::\d+(?:\.\d+)?)+)(?![\d:])"

ISO_DATE = (
    r"(?<![\d-])(1\d{3}|20\d\d)([-/.])(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"(?![\d-]|\.\d)(?:T(?=\d\d:))?"
)
NUMERIC_DATE = r"(?<![\w./-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d\d)(?![\w/-]|\.\d)"
# Groups: month, day, last day of a range.
MONTH_DAY = (
    rf"\b({MONTH})\s(\d{{1,2}})(?:st|nd|rd|th)?(?:\s?[-–]\s?(\d{{1,2}})(?:st|nd|rd|th)?)?"
    r"(?![\d%$€£°/:]|[.,]\d|\w)"
)
_SHORT_DAYS = "|".join(n.title() for n in sorted({*WEEKDAYS, *MONTHS}, key=len, reverse=True))
_LONG_DAYS = "|".join((*_MONTH_NAMES, *dict.fromkeys(WEEKDAYS.values())))
_DAY = rf"(?:{_LONG_DAYS}|(?:{_SHORT_DAYS})\b\.?)"
DAY_SPAN = rf"\b({_DAY})[-–]({_DAY})(?!\w)"
# Without their dots; "Sat" and "Mar" are words where no date follows.
DAY_NAME = rf"\b({_DAY})(,?)(?=\s\d{{1,2}}(?:st|nd|rd|th)?\s{MONTH}|\s{MONTH}\s\d|\s\d{{4}}\b)"
# Groups: article, first day of a range, day, month.
_NTH = r"(\d{1,2})(?:st|nd|rd|th)?"
DAY_MONTH = (
    rf"(?<![\d.,:/$£€])\b(the\s|The\s)?(?:{_NTH}\s?[-–]\s?)?{_NTH}[\s-](?:of\s)?({MONTH})"
    r"(?!\w)(?:-(?=\d{4}\b))?"
)

# A telephone number is read digit by digit, or it would sound like an amount.
_PHONES = (
    r"(?:\+?\d{1,3}[-.\s])?(?:\(\d{3}\)\s?|\d{3}[-.\s])\d{3}[-.\s]\d{4}",
    r"\+\d{1,3}(?:[-.\s]?\(?\d{1,5}\)?){2,6}",
    r"\(?0\d{1,4}\)?(?:[-\s/]\d{3,4}){1,3}",
    r"0\d(?:[\s.]\d\d){3,5}",
    r"\d{4}(?:[-\s]\d{4}){2,4}",
    r"\d{3}-\d{2}-\d{4}",
    r"\d+(?:-\d+){3,}",
    r"\d{3}[-\s]\d{4}(?<!00)",
)
PHONE = rf"(?<![\w.,$£€-])(?<!\d\s)(?:{'|'.join(_PHONES)})(?![\w-]|[.,\s]\d)"

# No address begins inside of what could be one: trying each place again takes time with the square
# of the length.
EMAIL = r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
# Listed, or "end.Next", where a space was forgotten, would be an address.
_TLD = (
    "com|org|net|edu|gov|mil|int|info|biz|io|ai|app|dev|tv|me|co|uk|us|ca|au|de|fr|nl|es|it|eu|ch|"
    "in|jp|ie|nz"
)
URL = (
    r"(?:(?:https?|ftp)://|www\.)[^\s<>\"”’]*[\w/]"
    rf"|\b(?=\w)(?<!\w-)(?:[\w-]+\.)+(?:{_TLD})\b(?::\d{{2,5}}\b)?(?:[/?#][^\s<>\"”’]*[\w/])?(?![\w@])"
)
# A port or a path makes an address of these; alone they are a word and an address of four bytes.
HOST = (
    r"(?<![\w.:/])(localhost|(?:\d{1,3}\.){3}\d{1,3})(?=[:/]\w)"
    r"(?::(\d{1,5}))?(?:/([\w.~%/-]*\w)/?)?(?![\w:])"
)
_FILE_TYPES = (
    "pdf|txt|docx?|xlsx?|pptx?|csv|json|ya?ml|xml|html?|css|jsx?|tsx?|py|cpp|hpp|rs|java|rb|sh|bat|"
    "exe|dll|so|zip|tar|gz|tgz|rar|7z|iso|jpe?g|png|gif|svg|bmp|tiff?|webp|mp[34]|wav|flac|ogg|avi|"
    "mkv|mov|md|log|ini|cfg|toml|sql|db|net|onnx"
)
FILE = (
    rf"(?<![\w./\\%])(?<!\w-)(?:[A-Za-z]:\\[^\s,;]*\w|(?:~?/|\.{{1,2}}/)?(?:[\w.-]+[/\\])*[\w-]+(?:\.[\w-]+)*\.(?i:{_FILE_TYPES})\b"
    r"|(?:~|\.{1,2})?/(?:[\w.-]+/)*[\w.-]*\w/?|(?:[\w-]+/){2,}[\w-]+(?<!\d))"
)
_SPELLED_TYPES = set("txt csv html htm css js py cpp hpp rs rb sh dll pdf svg png jpg".split())
_ADDRESS_SIGNS = {
    "/": "slash",
    "\\": "backslash",
    ".": "dot",
    "-": "dash",
    "_": "underscore",
    ":": "colon",
    "@": "at",
    "?": "question mark",
    "=": "equals",
    "&": "and",
    "#": "hash",
    "%": "percent",
    "+": "plus",
    "~": "tilde",
    ",": "comma",
}


def clock(match: re.Match) -> str:
    """A match of CLOCK: "ten oh five", "fourteen hundred", "three thirty P M"."""
    hour, minute, second = int(match[1]), int(match[2]), match[3]
    words = [number_words(hour)]
    # "14:00" and "08:00" are said with "hundred", "8:00" is not.
    military = hour > 12 or match[1].startswith("0")
    if minute:
        words += (["oh"] if minute < 10 else []) + [number_words(minute)]
    elif military:
        words.append("hundred")
    if second and int(second):
        words += ["and", number_words(int(second)), "second" + "s" * (int(second) != 1)]
    return " ".join(words) + _meridiem(match, 4)


def dotted_clock(match: re.Match) -> str:
    """A match of DOTTED_CLOCK: "three thirty P M"."""
    hour, minute = number_words(int(match[1])), int(match[2])
    words = {0: hour}.get(minute) or f"{hour} {'oh ' * (minute < 10)}{number_words(minute)}"
    return words + _meridiem(match, 3)


def duration(match: re.Match) -> str:
    """Hours, minutes and seconds: "two hours thirty minutes"."""
    groups = match.groups()
    values = groups[:3] if groups[0] else groups[3:]
    return " ".join(
        f"{decimal_words(value)} {name}{'' if value == '1' else 's'}"
        for value, name in zip(values, ("hour", "minute", "second"), strict=True)
        if value
    )


def day_span(match: re.Match) -> str:
    """A match of DAY_SPAN: "Monday to Friday"."""
    return f"{_day(match[1])} to {_day(match[2])}"


def day_name(match: re.Match) -> str:
    """A match of DAY_NAME: "Saturday", its comma kept."""
    return _day(match[1]) + match[2]


def _day(text: str) -> str:
    return (MONTHS | WEEKDAYS).get(text.rstrip(".").lower(), text)


def hour(match: re.Match) -> str:
    """A match of HOUR: "five P M"."""
    return number_words(int(match[1])) + _meridiem(match, 2)


def _meridiem(match: re.Match, group: int) -> str:
    half = match[group] or match[group + 1]
    if not half:
        return ""
    after = match.string[match.end() :]
    end = "." if match[0].endswith(".") and ends_sentence("p.m", after) else ""
    return f" {half.upper()} M{end}"


def ratio(match: re.Match) -> str:
    """A match of RATIO: "sixteen to nine"; "75:30" of a stopwatch is "seventy five thirty"."""
    parts = match[0].split(":")
    # Two digits behind a colon are minutes or seconds; ratios seldom have them.
    stopwatch = all(len(part) == 2 for part in parts[1:])
    words = [digit_words(p) if p.startswith("0") else decimal_words(p) for p in parts]
    return (" " if stopwatch else " to ").join(words)


def iso_date(match: re.Match) -> str:
    """A match of ISO_DATE: "January fifteenth twenty twenty four"."""
    return _date(int(match[4]), int(match[3]), match[1])


def numeric_date(match: re.Match) -> str | None:
    """A match of NUMERIC_DATE, American unless the first number cannot be a month.

    With dots the day goes first, as in the countries that write so.
    """
    first, second = int(match[1]), int(match[3])
    # "31.12.99" is a date, "3.2.10" a version.
    if match[2] == "." and len(match[4]) != 4 and (first <= 12 or len(match[3]) != 2):
        return None
    month, day = (second, first) if match[2] == "." or first > 12 else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return _date(day, month, match[4])


def _date(day: int, month: int, year: str) -> str:
    spoken = _short_year(year) if len(year) == 2 else year_words(int(year))
    # `year_words` is for 1000 to 2099.
    if len(year) == 4 and not 1000 <= int(year) < 2100:
        spoken = decimal_words(year)
    return f"{_MONTH_NAMES[month - 1]} {ordinal_words(day)} {spoken}"


def _short_year(year: str) -> str:
    return f"oh {number_words(int(year))}" if year[0] == "0" else number_words(int(year))


def short_year(match: re.Match) -> str:
    """The two digits of a match: "oh five"."""
    return _short_year(match[1])


def year_pair(match: re.Match) -> str:
    """A season: "twenty twenty twenty one"."""
    second = year_words(int(match[2])) if len(match[2]) == 4 else _short_year(match[2])
    return f"{year_words(int(match[1]))} {second}"


def year_span(match: re.Match) -> str:
    """A year and the two digits of another: "two thousand three to oh four"."""
    return f"{year_words(int(match[1]))} to {_short_year(match[2])}"


def month_day(match: re.Match) -> str | None:
    """A match of MONTH_DAY: "January fifth", "May fifth to seventh"."""
    days = [int(day) for day in match.groups()[1:] if day]
    if not all(1 <= day <= 31 for day in days):
        return None
    return f"{_month(match[1])} {' to '.join(map(ordinal_words, days))}"


def day_month(match: re.Match) -> str | None:
    """A match of DAY_MONTH: "the fifth of January"."""
    days = [int(day) for day in (match[2], match[3]) if day]
    if not all(1 <= day <= 31 for day in days):
        return None
    before = match.string[: match.start()]
    # Ranges ("3 to 5 May") have their own word in front.
    article = match[1] or ("" if re.search(r"\b(?:to|and|[Tt]he)\s$", before) else "the ")
    spoken = " to the ".join(map(ordinal_words, days))
    return f"{article}{spoken} of {_month(match[4])}" + " " * match[0].endswith("-")


def _month(text: str) -> str:
    return MONTHS.get(text.rstrip(".").lower(), text)


def phone(match: re.Match) -> str:
    """A match of PHONE, digit by digit."""
    plus = "plus " if match[0].startswith("+") else ""
    return plus + digit_words(match[0])


def address(match: re.Match) -> str:
    """An e-mail address, URL, path or file name, its signs as words; the scheme is not read."""
    return address_words(re.sub(r"^(?:https?|ftp)://", "", match[0]).rstrip("/"))


def host(match: re.Match) -> str:
    """A match of HOST, with its port digit by digit: "localhost colon eight zero eight zero"."""
    name, port, path = match.groups()
    words = name if name == "localhost" else " dot ".join(map(digit_words, name.split(".")))
    words += f" colon {digit_words(port)}" if port else ""
    return words + (f" {address_words('/' + path)}" if path else "")


def address_words(text: str) -> str:
    """Letters stay words, signs become words, short or capital runs of letters are spelled."""
    found = []
    for part in re.findall(r"[^\W\d_]+|\d+|\W|_", text):
        if part.isalpha():
            found += address_letters(part)
        elif part.isdecimal():
            found.append(decimal_words(part) if len(part) <= 3 else digit_words(part))
        else:
            found.append(_ADDRESS_SIGNS.get(part, part))
    return " ".join(found)


def address_letters(part: str) -> list[str]:
    """ "www" and "uk" letter by letter, "someName" as its words."""
    # Two letters are mostly a country; these are words.
    short = len(part) <= 2 and part.lower() not in (
        "co",
        "me",
        "in",
        "us",
        "it",
        "my",
        "to",
        "go",
        "no",
    )
    if short or part == "www" or part in _SPELLED_TYPES or (part.isupper() and len(part) <= 5):
        return list(part.upper())
    return re.findall(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", part)
