# SPDX-License-Identifier: Apache-2.0
"""What is made of letters and still no word: initials, abbreviations, Roman numerals, codes."""

from __future__ import annotations

import re

from sniper.tts.text.abbreviations import BEFORE_NUMBERS, TITLES, expand, has_number
from sniper.tts.text.numerals import (
    decimal_words,
    digit_words,
    number_words,
    ordinal_words,
    plural_words,
    roman_value,
    year_words,
)
from sniper.tts.text.sentences import ends_sentence
from sniper.tts.text.written import address_words

# Two letters with dots at least: a single one may end a sentence.
INITIALS = r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b(?!['’]))?|\b(?:[A-Za-z]\.)+[A-Za-z]\b"
INITIAL = r"(?<![\w'.])([A-Z])\.(?!\w)"

_HEADS = (
    "Chapter|Part|Volume|Book|Act|Scene|Section|Article|Appendix|Title|Type|Class|Phase|"
    "Stage|Level|Grade|Group|Mark|Table|Figure|Page|Rule|Law|War|Bowl|Vatican|Apollo|Rocky|"
    "Rambo|Fantasy|Star Wars|Episode|Season|Factor|Psalm|Canto|Lesson|Unit|Plate|Chapters|"
    "Parts|Volumes|Olympiad|Articles|Sections|Books|Acts|Figures|Tables"
)
_HEADS += r"|(?:Vols?|Figs?|Nos|Ch|Bk)\."
# These may end a sentence, so that one letter behind them begins another: "No. I said no."
_HEADS += r"|(?:No|Art|Chap|Sec|Pt)\.(?=\s[IVXLC]{2})"
NUMBERED = rf"\b({_HEADS})\s([IVXLC]+)(?:(\s?[-–]\s?|\s(?:and|to)\s)([IVXLC]+))?\b(?!')"
# Kings and popes of one letter; others need two ("Malcolm X" is no tenth).
_REGNAL_NAMES = (
    "George|Charles|Henry|Edward|Louis|Philip|Felipe|James|Pius|Gregory|Clement|Innocent|Urban|Leo|"
    "Alexander|Ramesses|Ptolemy|Christian|Frederick|Gustav|Ivan|Alfonso|Paul|Benedict|William"
)
REGNAL = rf"\b({_REGNAL_NAMES})\s([VX])\b(?!['.]\w)|\b([A-Z][a-z]+)\s([IVX]{{2,}})\b(?!\.\w)"
_CENTURY = r"\b([IVXLC]+)(?:st|nd|rd|th)?(?=\s(?:century|centuries)\b)"
# Numerals that are names or abbreviations as well, such as IV, stay letters.
_BY_ITSELF = r"\b(?!(?:IV|VI|XI|XX|XXX|IX|XV)\b)([IVX]{2,})\b(?!')"
ROMAN = rf"{_CENTURY}|\b(M[MDCLXVI]{{3,}})\b|(?<=\()([ivx]{{2,}})(?=\))|{_BY_ITSELF}"
# Words that stand before a Roman numeral and are no names.
_NO_NAMES = set("The In On At Of And From By For With Is Was As Type Page".split())

# With nothing around it, or in front of a title, even these are numbers.
HEADING = r"(?m)^([ \t]*)([IVX]{2,})(?=[.:]?[ \t]*$|[.:][ \t]+[A-Z])"
# "IV fluids" are no fourth anything.
_INTRAVENOUS = r"\s(?:fluids?|drips?|lines?|bags?|therapy|antibiotics|infusions?|pumps?|access)\b"

MIXED = r"(?<![\w.])(?:(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z\d]+)(?:\.\d+)?(?!\w)"


def abbreviation(match: re.Match) -> str | None:
    """What an abbreviation stands for; its dot stays where a sentence ends with it."""
    text, word = match.string, match[0].rstrip(".")
    words = expand(word, text[: match.start()], text[match.end() :])
    if words is None:
        return None
    if words == TITLES.get(word.lower()) and text[match.end() :].strip():
        return words  # "Dr. No", whatever word follows
    ends = match[0].endswith(".") and not has_number(word.lower(), text[match.end() :])
    return words + ("." if ends and ends_sentence(word, text[match.end() :]) else "")


def initials(match: re.Match) -> str:
    """ "U.S." as "U S", with a dot where a sentence ends too."""
    letters = " ".join(match[0].replace(".", "")).upper()
    dotted = match[0].endswith(".")
    ends = dotted and ends_sentence(match[0].rstrip("."), match.string[match.end() :])
    return letters + ("." if ends else "")


def initial(match: re.Match) -> str:
    """A single capital with a dot: of a name, or the last word of a sentence."""
    return match[1] + ("." if ends_sentence(match[1], match.string[match.end() :]) else "")


def united_states(match: re.Match) -> str | None:
    """ "US" among small letters is the country."""
    return "U S" if any(char.islower() for char in match.string) else None


def regnal(match: re.Match) -> str | None:
    """ "Henry VIII" as "Henry the eighth"."""
    name, value = match[1] or match[3], roman_value(match[2] or match[4])
    # No name has had more than forty kings or popes; a higher number is something else.
    if value is None or value > 40 or name in _NO_NAMES or re.fullmatch(_HEADS, name):
        return None
    if value == 4 and re.match(_INTRAVENOUS, match.string[match.end() :]):
        return None
    return f"{name} the {ordinal_words(value)}"


def roman_heading(match: re.Match) -> str | None:
    """A match of HEADING: "four"; None where the letters are no numeral."""
    value = roman_value(match[2])
    return None if value is None else match[1] + number_words(value)


def numbered(match: re.Match) -> str | None:
    """ "Chapter IV" as "Chapter four"."""
    values = [roman_value(text) for text in (match[2], match[4]) if text]
    if None in values:
        return None
    head = BEFORE_NUMBERS.get(match[1].rstrip(".").lower(), match[1].rstrip("."))
    joined = f" {match[3].strip()} " if match[3] and match[3].strip().isalpha() else " to "
    return f"{head} {joined.join(number_words(value) for value in values if value is not None)}"


def roman(match: re.Match) -> str | None:
    """Roman numerals of centuries, years and lists."""
    value = roman_value((match[1] or match[2] or match[3] or match[4]).upper())
    if value is None:
        return None
    if match[1]:
        return ordinal_words(value)
    return year_words(value) if match[2] and value < 2100 else number_words(value)


def hashtag(match: re.Match) -> str:
    """ "#SomeTag" as "hashtag Some Tag"."""
    return "hashtag " + address_words(match[1])


def mixed(match: re.Match) -> str:
    """Letters and digits in one: "MP3" as "M P three"."""
    text, plural = match[0], False
    if re.search(r"\d.*s$|[A-Z\d]s$", text) and not text[:-1].isdigit():
        text, plural = text[:-1], True
    found = []
    # The "v" of a version is no ending of the capitals before it: IPv6, HTTPv2.
    for part in re.findall(r"[A-Z]+(?=v\d)|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+(?:\.\d+)?", text):
        if part[0].isdigit():
            # Longer runs of digits in a code are serial numbers, no amounts.
            short = "." in part or len(part) <= 3
            found.append(decimal_words(part) if short else digit_words(part))
        elif part.isupper() or len(part) == 1:
            found += part.upper()
        else:
            found.append(part)
    words = " ".join(found)
    if not plural:
        return words
    return words + "s" if words[-1].isupper() else plural_words(words)


def span(match: re.Match) -> str:
    """A dash between numbers: "to", but nothing in a code ("i7-9700")."""
    # A window, since looking at all that stands before takes time with the square of the length.
    code = re.search(r"[A-Za-z]\d+$", match.string[max(0, match.start() - 40) : match.start()])
    return " " if code and match[0] == "-" else " to "


def slash(match: re.Match) -> str:
    """A slash between letters or acronyms joins them; between words or numbers it is read."""
    if " " in match[0]:
        return " slash "
    before = re.search(r"\w+$", match.string[: match.start()])
    after = re.match(r"\w+", match.string[match.end() :])
    sides = [side[0] for side in (before, after) if side]
    letters = all(side.isalpha() and (len(side) == 1 or side.isupper()) for side in sides)
    return " " if letters and len(sides) == 2 else " slash "
