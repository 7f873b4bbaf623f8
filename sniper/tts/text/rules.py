# SPDX-License-Identifier: Apache-2.0
"""The table of everything that English writing has besides words: the first rule that fits wins."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from sniper.tts.text import figures, quantities, spelled, written
from sniper.tts.text.abbreviations import DOTTED, SLASHED, UNDOTTED
from sniper.tts.text.numerals import (
    NUMBER,
    WHOLE,
    decimal_words,
    digit_words,
    power_words,
    year_words,
)
from sniper.tts.text.words import EMOJI

_UP = "⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹"
_TIMES = {"×": "times", "*": "times", "·": "times", "⋅": "times", "÷": "divided by"}
_SIGNS = {
    "+": "plus",
    "=": "equals",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "−": "minus",
    "≠": "is not equal to",
    "≈": "approximately",
    "≤": "less than or equal to",
    "≥": "greater than or equal to",
    "<": "less than",
    ">": "greater than",
    "√": "square root of",
    "∞": "infinity",
    "π": "pi",
    "→": "to",
    "⇒": "implies",
    "%": "percent",
    "‰": "per mille",
    "°": "degrees",
    "#": "number",
    "№": "number",
    "@": "at",
    "&": "and",
    "©": "copyright",
    "Ω": "ohms",
}

_PAIRS = {
    "<=": "less than or equal to",
    ">=": "greater than or equal to",
    "!=": "is not equal to",
    "==": "equals",
    "->": "to",
    "=>": "implies",
}


@dataclass(frozen=True)
class Rule:
    """One written form.

    Args:
        pattern: regular expression, without named groups.
        say: words for its match, or None where it is something else after all.
        why: one line.
    """

    pattern: str
    say: Callable[[re.Match], str | None]
    why: str


def _words(words: str) -> Callable[[re.Match], str]:
    return lambda match: words


def _dropped(match: re.Match) -> str:
    warnings.warn(f"left out, it has no reading: {match[0]!r}", stacklevel=2)
    return " "


# The first that fits wins, so what is longer or more particular goes first.
RULES = (
    # What has no reading, or is read as it stands.
    Rule(EMOJI, _dropped, "an emoji has no agreed reading"),
    Rule(r"(?<=[\w.,;:!?\"')])\[(?:\d{1,3}|[a-z*])\]", _dropped, "a footnote mark interrupts"),
    Rule(rf"(?<=[A-Za-z]{{3}})[{_UP}]+(?!\w)|[†‡]|[®™]", _dropped, "marks are not read"),
    Rule(r"(?m)^[ \t]*(?:[•‣▪◦*–-][ \t]+)(?=\S)", _words(", "), "a bullet starts a new item"),
    Rule(
        r"(?<![\w*])\*{1,3}(?=[^\W\d])|(?<=[^\W\d]|[.,!?])\*{1,3}(?![\w*])", _words(""), "emphasis"
    ),
    # Addresses, before their dots and slashes mean something else.
    Rule(r"(?m)^#{1,6}\s+(?=[A-Za-z])", _words(""), "a heading in Markdown"),
    Rule(written.EMAIL, written.address, "e-mail"),
    Rule(written.URL, written.address, "URL"),
    Rule(written.HOST, written.host, "localhost:8080"),
    Rule(r"\b(and)\s?/\s?(or)\b", lambda m: f"{m[1]} {m[2]}", "the commonest slash"),
    Rule(rf"(?i)\b(?:{'|'.join(SLASHED)})(?!\w)", lambda m: SLASHED[m[0].lower()], "w/o, c/o"),
    # Dates and times, telephones: digits whose parts are no numbers of their own.
    Rule(r"</?[A-Za-z][^<>]*>", lambda m: m[0], "a tag is no comparison: its signs are refused"),
    Rule(r"\b401\(?k\b\)?", _words("four oh one K"), "an American pension"),
    Rule(r"\b(p)H\b|\bPhD(?:s\b)?", lambda m: "P H" if m[1] else "P H D", "capitals inside"),
    Rule(written.ISO_DATE, written.iso_date, "2024-01-15"),
    Rule(written.NUMERIC_DATE, written.numeric_date, "1/2/2003, 15.01.2024"),
    Rule(written.MONTH_DAY, written.month_day, "July 4, Jan. 5-7"),
    Rule(written.DAY_MONTH, written.day_month, "5 January"),
    Rule(written.PHONE, written.phone, "telephones are read digit by digit"),
    Rule(figures.DIALLED, figures.dialled, "call 911"),
    Rule(figures.ODDS, figures.odds, "50-50, an 80-20 rule, 24-7"),
    Rule(
        r"(?<![\w-])\d{1,2}(?:-\d{1,2}){2,}(?![\w-])",
        lambda m: " ".join(decimal_words(part) for part in m[0].split("-")),
        "1-2-3",
    ),
    Rule(r"\b1-\d{3}-(?=[A-Z]{3})", lambda m: digit_words(m[0]) + " ", "1-800-FLOWERS"),
    Rule(written.DAY_SPAN, written.day_span, "Mon-Fri, Jan.-Mar."),
    Rule(written.DAY_NAME, written.day_name, "Sat 5 Nov, Sept 2001"),
    Rule(
        r"(?<![\w.])(?:(\d+)h\s?)(\d+)(?:m|min)?\b(?:\s?(\d+)s\b)?|(?<![\w.])()(\d+)m\s?(\d+)s\b",
        written.duration,
        "2h30m, 1m30s",
    ),
    Rule(written.CLOCK, written.clock, "10:30:15, 5:30 p.m."),
    Rule(written.DOTTED_CLOCK, written.dotted_clock, "3.30 pm"),
    Rule(written.HOUR, written.hour, "5 p.m., 10am"),
    Rule(written.RATIO, written.ratio, "16:9, and times of a stopwatch"),
    Rule(
        r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)",
        lambda m: " dot ".join(map(digit_words, m[0].split("."))),
        "an Internet address has four bytes",
    ),
    Rule(quantities.MONEY, quantities.money, "$3.50, £3bn, US$5-10 million, €2,5 Mio."),
    Rule(quantities.MONEY_BEHIND, quantities.money_behind, "5€, 5 USD, 1.234,56 €"),
    Rule(
        r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.,]*\d)", figures.thousands, "1.234.567"
    ),
    Rule(r"(?<![\w.,'])\d{1,3}(?:(?:'\d{3})+|(?:_\d{3})+)(?![\w'])", figures.thousands, "12'345"),
    Rule(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,]*\d)", figures.thousands, "10.000,5"),
    Rule(r"(?<![\w.])([vV]\.?)?(\d+(?:\.\d+){2,})(?!\.?\d)", figures.version, "3.2.1, v1.2.3"),
    Rule(r"(?<![\w.])([vV])(\d+(?:\.\d+)?)(?![\w.]*\w)", figures.version, "v2"),
    # Amounts.
    Rule(
        rf"([{re.escape(quantities.CURRENCY_SIGNS)}])(\d+)/(\d+)(?!\d)", figures.part_money, "$1/2"
    ),
    Rule(
        quantities.CENTS,
        lambda m: (
            quantities.amount_words("$", f"0.{int(m[1]):02}", None)
            if m[1].isdecimal() and 0 < int(m[1]) < 100
            else f"{decimal_words(m[1])} cents"
        ),
        "50¢",
    ),
    Rule(
        r"(\d+)°\s?(?:(\d+)[′']\s?)(?:(\d+(?:\.\d+)?)(?:″|\"|''|′′)\s?)?([NSEW]\b)?",
        figures.arc,
        "degrees, minutes and seconds of arc",
    ),
    Rule(
        r"(?<![\w.])(\d{1,2})['′]\s?(\d{1,2}(?:\.\d+)?)(?:\"|″|''|(?!\w))", figures.feet, "5'10\""
    ),
    Rule(r"(?<![\w.])(\d+)()′", figures.feet, "6′"),
    Rule(r"(?<![\w.])(\d+)()'(?!\w)", figures.feet_alone, "6' tall"),
    Rule(r"(?<=/\d)[\"″]|(?<=/\d\d)[\"″]", figures.inch_part, '1/4"'),
    Rule(rf"({NUMBER})[\"″]", figures.inches, '10"'),
    Rule(rf"({NUMBER})[eE]([-+−]?\d+)(?!\w)", figures.scientific, "1e5"),
    Rule(
        rf"(?<![\w.])({NUMBER})[kK](?![\w'])",
        lambda m: decimal_words(m[1]) + (" K" if m[0].endswith("K") else " thousand"),
        "10k followers, a 4K screen",
    ),
    Rule(quantities.QUANTITY, quantities.quantity, "5 km/h, 20 °C, 3 m², 5%"),
    Rule(quantities.ALONE, lambda m: quantities.unit_words(m[1], False), "in km/h"),
    Rule(
        r"(?<![\d/.,])(1\d{3}|20\d\d)/(20\d\d|1\d{3}|\d\d)(?![\d/])", written.year_pair, "2020/21"
    ),
    Rule(
        r"(?<![\d/.,])(?:(\d+)[\s\u00a0-])?(\d+)/(\d+)(?:[snrt][tdh]s?\b)?(?![\d/]|[.,]\d)",
        figures.fraction,
        "3/4, 1 1/2, 2/3rds, 24/7",
    ),
    Rule(rf"(?:({WHOLE})\s?)?([{figures.VULGAR}])([\"″])?", figures.vulgar, "½, 1½"),
    Rule(
        rf"(?<=[\d{figures.VULGAR}])[\s-]?({quantities.UNIT}){quantities.UNIT_END}({quantities.UNIT_DOT})?",
        figures.unit_of_fraction,
        "1/3 lb",
    ),
    Rule(rf"({WHOLE})(?:st|nd|rd|th|ST|ND|RD|TH)(s?)\b", figures.ordinal, "21st"),
    Rule(r"(?<![\d.,])(1\d{3}|20\d\d)\s?[-–]\s?(\d\d)(?![\d-])", written.year_span, "2003-04"),
    Rule(r"(?<![\w.,])'?(\d0|\d{2}00|[12]\d\d0)'?s\b", figures.decade, "the 1990s, '90s, her 30s"),
    Rule(r"(?<![\w.,$£€])'(\d\d)(?![\d'])\b(?!')", written.short_year, "the winter of '68"),
    Rule(rf"(?<![\w.,])({WHOLE})('?)s\b", figures.many, "747s, 5's, 2023's"),
    Rule(
        r"(?<![\w,])(?<!\d\.)(1[1-9]\d\d|20[1-9]\d)(?![\d%]|[.,]\d|\s?[×*x÷^])",
        lambda m: year_words(int(m[1])),
        "1984",
    ),
    Rule(
        r"(?:(?<=\b[Ii]n\s)|(?<=\b[Oo]f\s)|(?<=year\s)|(?<=since\s)|(?<=until\s))(10\d\d)(?![\d%]|[.,]\d)\b",
        lambda m: year_words(int(m[1])),
        "in 1066: without such a word it is an amount",
    ),
    Rule(
        r"(?<![\d.,])(?<!\d\s)\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?![\d]|\s\d)",
        lambda m: decimal_words(m[0].replace(",", ".")),
        "10 000",
    ),
    Rule(
        r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?!\d|,\d)",
        lambda m: f"{decimal_words(m[1])} point {digit_words(m[2])}",
        "1,5 is a decimal where no group of three follows",
    ),
    Rule(
        rf"({NUMBER})\s?x\s?(?=\.?\d)", lambda m: f"{decimal_words(m[1])} by ", "4x4, 1920 x 1080"
    ),
    Rule(
        rf"(?<![\w.])({NUMBER})x(?!\w|\s?[-+=^²³*/<>≤≥)])",
        lambda m: f"{decimal_words(m[1])} times",
        "10x, 1.5x",
    ),
    # Letters.
    Rule(spelled.HEADING, spelled.roman_heading, "IV by itself, and in front of a title"),
    Rule(spelled.REGNAL, spelled.regnal, "Henry VIII"),
    Rule(spelled.NUMBERED, spelled.numbered, "Chapter IV, World War II"),
    Rule(spelled.ROMAN, spelled.roman, "XIX century, (iv), MCMXC"),
    Rule(r"(?i)\b(?:e\.g|i\.e|ph\.d|a\.k\.a)\b\.?", spelled.abbreviation, "before initials"),
    Rule(spelled.INITIALS, spelled.initials, "U.S.A., p.m., J.R.R."),
    Rule(rf"(?i){DOTTED}", spelled.abbreviation, "Dr., St., etc., Nos. 5"),
    Rule(UNDOTTED, spelled.abbreviation, "British titles have no dot"),
    Rule(spelled.INITIAL, spelled.initial, "J. Smith"),
    Rule(
        r"\b([A-Z]{1,3})&([A-Z]{1,3})\b",
        lambda m: f"{' '.join(m[1])} and {' '.join(m[2])}",
        "AT&T, R&D",
    ),
    Rule(r"\bUS\b(?!\$)", spelled.united_states, "or it would be read as the pronoun"),
    Rule(r"\b([A-Za-z])\+\+", lambda m: f"{m[1]} plus plus", "C++"),
    Rule(r"\b([A-G])#", lambda m: f"{m[1]} sharp", "C#, F# minor"),
    Rule(r"#([^\W\d]\w*)", spelled.hashtag, "#SomeTag"),
    Rule(r"(?<!\w)@(\w+)", lambda m: "at " + written.address_words(m[1]), "@someone"),
    Rule(written.FILE, written.address, "report.pdf, /usr/bin"),
    Rule(spelled.MIXED, spelled.mixed, "MP3, B2B, A4"),
    Rule(r"\b[a-z]\w*(?:\.[a-z]\w*)+\b", written.address, "os.path: a dot without a space"),
    # Numbers that nothing more particular has taken.
    Rule(NUMBER, lambda m: decimal_words(m[0]), "3.14, 1,984"),
    # Signs.
    Rule(r"(?<=\w)\^\(?([-+−]?\d+)\)?", lambda m: power_words(m[1]), "2^3"),
    Rule(r"(?<=\w)\^([a-z])\b", lambda m: f"to the power of {m[1]}", "2^n"),
    Rule(rf"[{_UP}]+", lambda m: power_words(m[0]), "x², 10⁻³"),
    Rule(r"(?<=\d{4})\s-\s(?=\d{4}(?!\d))", _words(" to "), "1914 - 1918: two years"),
    Rule(r"(?<=[\d)])\s-\s(?=[(.]?\d)", _words(" minus "), "5 - 3"),
    Rule(r"(?<=\d)-(?=\d+(?:\.\d+)?\s?=)", _words(" minus "), "5-2=3"),
    Rule(r"(?:(?<=\d[snrt][tdh])|(?<=[ap]m)|(?<=m\.))\s?[-–]\s?(?=\d)", _words(" to "), "9am-5pm"),
    Rule(rf"(?<=[a-z.])\s?[-–](?=\d{{1,2}}\s{written.MONTH})", _words(" to "), "3 Jan-5 Feb"),
    Rule(r"(?<=[\d%°])(?:-|\s?[–‒‑]\s?)(?=[$£€]?\.?\d)", spelled.span, "10-20, 5%-10%, i7-9700"),
    Rule(
        rf"(?<=[\d%°])\s?[-–]\s?(?={written.MONTH})|(?<=\d)\s?–\s?(?=[A-Z]{{1,2}}\d)"
        r"|(?:(?<=\ds)|(?<=°[CF])|(?<=\d))[-–](?='?\d)|(?<=[\w%])\s?[-–]\s?(?=[$£€¥₹]\d)",
        _words(" to "),
        "Jan. 1–Feb. 5, Q1–Q2, 60s-70s, $1m-$2m",
    ),
    Rule(r"(?<=[\w])\s?[–‒]\s?(?=[$£€]?\d)", _words(" to "), "5 km–10 km"),
    Rule(r"(?<=\d)(?:\s?~\s?)(?=\d)", _words(" to "), "5~10"),
    Rule(r"~(?=[$£€]?\.?\d)", _words("about "), "~5"),
    Rule(r"\b([A-F])-(?=[\s.,;:!?]|$)", lambda m: f"{m[1]} minus", "a grade"),
    Rule(r"(?<!\S)\.(?=[A-Za-z]\w)", _words("dot "), ".NET"),
    Rule(r"(?<![\w)])(?:[-−]\s?|(?<!\S)–)(?=[$£€]?\.?\d)|−\s?", _words(" minus "), "-5"),
    Rule(r"(?<=[\w)])\s?([*·⋅×÷])\s?(?=[\w(])", lambda m: f" {_TIMES[m[1]]} ", "2*3"),
    Rule(
        rf"(?<=[\w€$£%¢])/((?:hour|day|week|month|year|person|night|mile|unit)\b|{quantities.UNIT}{quantities.UNIT_END})",
        lambda m: (
            " per " + (quantities.unit_words(m[1], True) if m[1] in quantities.UNITS else m[1])
        ),
        "$5/hour, $1.50/kg",
    ),
    Rule(r"(?<=[\w)])\s?/\s?(?=[\w(])", spelled.slash, "A/B, input/output"),
    Rule(r"§§?\s?(?=\d)", _words("section "), "§ 5"),
    Rule(r"(?<=[^\d\s])\s+\|\s+(?=[^\d\s])", _words(", "), "Home | News"),
    Rule(r"\\(?=\w)", _words(" backslash "), "a\\b"),
    Rule("[<>!=]=|[-=]>", lambda m: f" {_PAIRS[m[0]]} ", "signs that keyboards make of two"),
    Rule(f"[{re.escape(''.join(_SIGNS))}]", lambda m: f" {_SIGNS[m[0]]} ", "signs by themselves"),
)
