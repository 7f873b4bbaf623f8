# SPDX-License-Identifier: Apache-2.0
"""English text as people write it to words that a lexicon can look up.

One scan from left to right: at each place the first rule of the table that fits writes its words,
and no rule sees what another wrote. Signs that no rule knows stay, and `words.pieces` refuses them
by name: nothing is left out in silence.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass

from sniper.tts.text import quantities, spelled, written
from sniper.tts.text.abbreviations import DOTTED, SLASHED, UNDOTTED
from sniper.tts.text.numerals import (
    NUMBER,
    WHOLE,
    decimal_words,
    digit_words,
    fraction_words,
    number_words,
    ordinal_words,
    plural_words,
    power_words,
    year_words,
)
from sniper.tts.text.words import word_key

__all__ = ["normalize_english", "number_words", "ordinal_words", "year_words"]

_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
_UP = "⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹"
# Emoji as Unicode presents them by default, or asked for by a variation selector; joined by ZWJ.
_EMOJI = (
    "(?:[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff⌚⌛⏩-⏬⏰⏳◽◾☔☕♈-♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓-❕❗➕-➗➰➿"
    "⬛⬜⭐⭕]|[\u203c-\u3299]\ufe0f)"
)
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


def _fraction(match: re.Match) -> str | None:
    whole, above, below = match[1], int(match[2]), int(match[3])
    if not below:
        return None
    pairs = {(24, 7): "twenty four seven", (9, 11): "nine eleven"}
    words = pairs.get((above, below)) if not whole else None
    if words is None and above == below and not whole:
        score = above in (5, 10)
        words = f"{number_words(above)} {'out of ' * score}{number_words(below)}"
    words = words or fraction_words(above, below)
    return f"{number_words(int(whole))} and {words}" if whole else words


def _vulgar(match: re.Match) -> str:
    parts = unicodedata.normalize("NFKC", match[2]).split("⁄")
    words = fraction_words(int(parts[0]), int(parts[1]))
    words = f"{decimal_words(match[1])} and {words}" if match[1] else words
    if not match[3]:
        return words
    inches = not match.string[: match.start()].count('"') % 2
    return words + (" inches" if match[1] else " inch") if inches else words


def _part_money(match: re.Match) -> str:
    unit = quantities.CURRENCIES[match[1]][0]
    return f"{fraction_words(int(match[2]), int(match[3]))} {unit}"


def _version(match: re.Match) -> str:
    words = " point ".join(number_words(int(part)) for part in match[2].split("."))
    return "version " + words if match[1] else words


def _thousands(match: re.Match) -> str:
    return decimal_words(re.sub(r"[^\d,]", "", match[0]).replace(",", "."))


def _decade(match: re.Match) -> str:
    value = int(match[1])
    if len(match[1]) == 2:
        return plural_words(number_words(value or 2000))
    return plural_words(year_words(value) if 1000 <= value < 2100 else number_words(value))


def _scientific(match: re.Match) -> str:
    power = match[2].replace("−", "-")
    return f"{decimal_words(match[1])} times ten {_to_the(power)}"


def _to_the(power: str) -> str:
    sign = "minus " if power.startswith("-") else ""
    return f"to the power of {sign}{decimal_words(power.lstrip('+-'))}"


def _ordinal(match: re.Match) -> str:
    return ordinal_words(int(match[1].replace(",", ""))) + ("s" if match[2] else "")


def _feet(match: re.Match) -> str:
    feet = f"{number_words(int(match[1]))} {'foot' if match[1] == '1' else 'feet'}"
    if not match[2]:
        return feet
    return f"{feet} {decimal_words(match[2])} inch" + ("" if match[2] == "1" else "es")


def _inches(match: re.Match) -> str | None:
    # Behind an open quotation mark this one closes it.
    if match.string[: match.start()].count('"') % 2:
        return None
    return f"{decimal_words(match[1])} inch" + ("" if match[1] == "1" else "es")


def _arc(match: re.Match) -> str:
    names = ("degree", "minute", "second")
    parts = [
        f"{decimal_words(value)} {name}{'' if value == '1' else 's'}"
        for value, name in zip(match.groups()[:3], names, strict=True)
        if value
    ]
    side = {"N": "north", "S": "south", "E": "east", "W": "west"}.get(match[4] or "")
    return " ".join([*parts, side] if side else parts)


def _many(match: re.Match) -> str:
    """Plurals ("747s", "100s") and possessives ("2023's") of numbers."""
    value = int(match[1].replace(",", ""))
    if match[2] and 1000 <= value < 2100 and value % 10:
        return year_words(value) + "'s"
    return plural_words(
        re.sub(r"^one (?=hundred$|thousand$|million$)", "", decimal_words(match[1]))
    )


def _unit_of_fraction(match: re.Match) -> str | None:
    if match[1] in ("in", "s", "A") or not re.match(r"[\s-]", match[0]):
        return None
    before = match.string[: match.start()]
    # "1/3 lb" and "½ lb" are parts of one, "1 1/2 lb" and "120/80 mmHg" are more.
    part = re.search(rf"(?<![\d\s/])\s?(?:(\d+)/(\d+)|[{_VULGAR}])$", " ." + before)
    below_one = part is not None and (not part[1] or int(part[1]) < int(part[2]))
    return " " + quantities.unit_words(match[1], below_one)


def _words(words: str) -> Callable[[re.Match], str]:
    return lambda match: words


def _dropped(match: re.Match) -> str:
    warnings.warn(f"left out, it has no reading: {match[0]!r}", stacklevel=2)
    return " "


# The first that fits wins, so what is longer or more particular goes first.
RULES = (
    # What has no reading, or is read as it stands.
    Rule(rf"(?:{_EMOJI}[\ufe0e\ufe0f]?\u200d?)+", _dropped, "an emoji has no agreed reading"),
    Rule(r"(?<=[\w.,;:!?\"')])\[(?:\d{1,3}|[a-z*])\]", _dropped, "a footnote mark interrupts"),
    Rule(rf"(?<=[A-Za-z]{{3}})[{_UP}]+(?!\w)|[†‡]|[®™]", _dropped, "marks are not read"),
    Rule(r"(?m)^[ \t]*(?:[•‣▪◦*–-][ \t]+)(?=\S)", _words(", "), "a bullet starts a new item"),
    Rule(
        r"(?<![\w*])\*{1,3}(?=[^\W\d])|(?<=[^\W\d]|[.,!?])\*{1,3}(?![\w*])", _words(""), "emphasis"
    ),
    # Addresses, before their dots and slashes mean something else.
    Rule(written.EMAIL, written.address, "e-mail"),
    Rule(written.URL, written.address, "URL"),
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
    Rule(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.,]*\d)", _thousands, "1.234.567"),
    Rule(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,]*\d)", _thousands, "10.000,5"),
    Rule(r"(?<![\w.])([vV]\.?)?(\d+(?:\.\d+){2,})(?!\.?\d)", _version, "3.2.1, v1.2.3"),
    Rule(r"(?<![\w.])([vV])(\d+(?:\.\d+)?)(?![\w.]*\w)", _version, "v2"),
    # Amounts.
    Rule(rf"([{re.escape(quantities._SIGNS)}])(\d+)/(\d+)(?!\d)", _part_money, "$1/2"),
    Rule(quantities.MONEY, quantities.money, "$3.50, £3bn, US$5-10 million"),
    Rule(quantities.MONEY_BEHIND, quantities.money_behind, "5€, 5 USD"),
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
        _arc,
        "degrees, minutes and seconds of arc",
    ),
    Rule(r"(?<![\w.])(\d{1,2})['′]\s?(\d{1,2}(?:\.\d+)?)(?:\"|″|''|(?!\w))", _feet, "5'10\""),
    Rule(r"(?<![\w.])(\d+)()′", _feet, "6′"),
    Rule(rf"({NUMBER})[\"″]", _inches, '10"'),
    Rule(rf"({NUMBER})[eE]([-+−]?\d+)(?!\w)", _scientific, "1e5"),
    Rule(
        rf"(?<![\w.])({NUMBER})[kK](?![\w'])",
        lambda m: decimal_words(m[1]) + (" K" if m[0].endswith("K") else " thousand"),
        "10k followers, a 4K screen",
    ),
    Rule(quantities.QUANTITY, quantities.quantity, "5 km/h, 20 °C, 3 m², 5%"),
    Rule(quantities.ALONE, lambda m: quantities.unit_words(m[1], False), "in km/h"),
    Rule(r"(?<![\d/.,])(1\d{3}|20\d\d)/(\d\d)(?![\d/])", written.year_pair, "2020/21"),
    Rule(
        r"(?<![\d/.,])(?:(\d+)[\s\u00a0-])?(\d+)/(\d+)(?:[snrt][tdh]s?\b)?(?![\d/]|[.,]\d)",
        _fraction,
        "3/4, 1 1/2, 2/3rds, 24/7",
    ),
    Rule(rf"(?:({WHOLE})\s?)?([{_VULGAR}])([\"″])?", _vulgar, "½, 1½"),
    Rule(
        rf"(?<=[\d{_VULGAR}])[\s-]?({quantities.UNIT}){quantities.UNIT_END}",
        _unit_of_fraction,
        "1/3 lb",
    ),
    Rule(rf"({WHOLE})(?:st|nd|rd|th|ST|ND|RD|TH)(s?)\b", _ordinal, "21st"),
    Rule(r"(?<![\d.,])(1\d{3}|20\d\d)\s?[-–]\s?(\d\d)(?![\d-])", written.year_span, "2003-04"),
    Rule(r"(?<![\w.,])'?(\d0|\d{2}00|[12]\d\d0)'?s\b", _decade, "the 1990s, '90s, her 30s"),
    Rule(r"(?<![\w.,$£€])'(\d\d)(?![\d'])\b(?!')", written.short_year, "the winter of '68"),
    Rule(rf"(?<![\w.,])({WHOLE})('?)s\b", _many, "747s, 5's, 2023's"),
    Rule(
        r"(?<![\w.,])(1[1-9]\d\d|20[1-9]\d)(?![\d%]|[.,]\d|\s?[×*x÷^])",
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
    Rule(r"(\d+)\s?x\s?(?=\d)", lambda m: f"{decimal_words(m[1])} by ", "4x4, 1920 x 1080"),
    Rule(
        r"(?<![\w.])(\d+)x(?!\w|\s?[-+=^²³*/<>≤≥)])",
        lambda m: f"{decimal_words(m[1])} times",
        "10x",
    ),
    # Letters.
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
    Rule(r"(?:(?<=\d[snrt][tdh])|(?<=[ap]m)|(?<=m\.))[-–](?=\d)", _words(" to "), "9am-5pm"),
    Rule(rf"(?<=[a-z.])\s?[-–](?=\d{{1,2}}\s{written.MONTH})", _words(" to "), "3 Jan-5 Feb"),
    Rule(r"(?<=[\d%°])\s?[-–‒‑]\s?(?=[$£€]?\.?\d)", _words(" to "), "10-20, 5%-10%"),
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
    Rule(f"[{re.escape(''.join(_SIGNS))}]", lambda m: f" {_SIGNS[m[0]]} ", "signs by themselves"),
)


@functools.cache
def _scanner() -> tuple[re.Pattern, list[tuple[re.Pattern, Callable]]]:
    """All patterns at once, to find the next place quickly, and each by itself."""
    alone = []
    for rule in RULES:
        flags = re.match(r"\(\?([im])\)", rule.pattern)
        plain = rule.pattern[flags.end() :] if flags else rule.pattern
        alone.append((f"(?{flags[1]}:{plain})" if flags else plain, rule.say))
    # Back-references would count groups of other rules; finding a place needs none.
    anywhere = "|".join(re.sub(r"\\2(?!\d)", "[-/.]", f"(?:{pattern})") for pattern, _ in alone)
    return re.compile(anywhere), [(re.compile(pattern), say) for pattern, say in alone]


def normalize_english(text: str, known: Container[str] = frozenset()) -> str:
    """Write numbers, signs, abbreviations and other forms as words, each as it is read aloud.

    Args:
        text: as people write it.
        known: words of a lexicon; an abbreviation that it holds, and whose words it lacks, stays.

    Returns:
        Words and punctuation, spaces made single. Signs that have no reading are left as they are,
        for `words.pieces` to refuse. Emoji and footnote marks are dropped with a warning.
    """
    text = _one_spelling(text)
    anywhere, rules = _scanner()
    found: list[str] = []
    place = 0
    while match := anywhere.search(text, place):
        start = match.start()
        found.append(text[place:start])
        for pattern, say in rules:
            match = pattern.match(text, start)
            words = say(match) if match and match.end() > start else None
            if match and words is not None:
                _join(found, _as_known(match[0], words, known))
                place = match.end()
                if text[place : place + 1].isalnum() and words[-1:].isalnum():
                    found.append(" ")
                break
        else:
            # No rule wants what begins here: its first word goes on as it is.
            end = start + 1
            found.append(text[start:end])
            place = end
    found.append(text[place:])
    return re.sub(r"[^\S\n]+", " ", "".join(found)).strip()


def _join(found: list[str], words: str) -> None:
    before = next((part[-1] for part in reversed(found) if part), "")
    if before.isalnum() and words[:1].isalnum():
        found.append(" ")
    found.append(words)


def _as_known(written_form: str, words: str, known: Container[str]) -> str:
    """What a corpus was aligned with as it stands ("mr") can be said as it stands."""
    key = word_key(written_form.rstrip("."))
    bare = words.rstrip(".,")
    if key.isalpha() and key in known and not all(word_key(w) in known for w in bare.split()):
        return key + words[len(bare) :]
    return words


def _one_spelling(text: str) -> str:
    """One code point where Unicode has several for one sign; accents stay as they are."""
    text = re.sub(
        "[\u2160-\u217f\uff01-\uff5e\ufb00-\ufb06\U0001d400-\U0001d7ff①-⑳]+", _compatible, text
    )
    text = re.sub("[₀-₉]+", _compatible, text)
    text = re.sub("(?<=[0-9#*])\ufe0f?\u20e3", "", text)  # a keycap is its key
    text = re.sub("[\u00ad\ufeff\u2060\u200e\u200f\u202a-\u202e]", "", text)
    text = re.sub(r"°\s(?=[CFNSEW]\b)", "°", text)
    text = re.sub(r"(?<=\d)º", "°", re.sub("[’‘ʼ‛]", "'", text))
    return re.sub(r"\bn[º°](?=\s?\d)", "№", re.sub("[“”„‟]", '"', text)).replace("⁄", "/")


def _compatible(match: re.Match) -> str:
    return unicodedata.normalize("NFKC", match[0])
