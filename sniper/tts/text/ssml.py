# SPDX-License-Identifier: Apache-2.0
"""SSML: the elements that a FastSpeech2 model can follow; the others are refused by name.

Source: Speech Synthesis Markup Language 1.1, https://www.w3.org/TR/speech-synthesis11/
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from sniper.tts.errors import SpeechError
from sniper.tts.text.numerals import WHOLE, digit_words, number_words, ordinal_words
from sniper.tts.text.sentences import split_sentences
from sniper.tts.text.text import Frontend, UnknownWords, mixed_phones, text_to_phones

_BREAKS = {
    "none": 0.0,
    "x-weak": 0.1,
    "weak": 0.2,
    "medium": 0.4,
    "strong": 0.7,
    "x-strong": 1.0,
}
# 500s where 500ms was meant would be minutes of silence.
_LONGEST_BREAK = 10.0
_RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
_PITCHES = {"x-low": -6.0, "low": -3.0, "medium": 0.0, "default": 0.0, "high": 3.0, "x-high": 6.0}
_ATTRIBUTES = {
    "speak": {"version", "lang", "schemaLocation", "base"},
    "p": {"lang"},
    "s": {"lang"},
    "break": {"time", "strength"},
    "phoneme": {"ph", "alphabet"},
    "prosody": {"rate", "pitch"},
    "say-as": {"interpret-as", "format", "detail"},
    "sub": {"alias"},
}
_ALPHABETS = ("ipa", "x-arpabet", "arpabet", "cmu-arpabet")
# Elements are read recursively, and a document must not reach Python's limit.
_MAX_DEPTH = 50
# What stands between digits, and is not read.
_DIGITS = {
    "digits": (r"\d[\d\s‐‑‒–-]*", "-"),
    "telephone": (r"\+?\s*[\d(][\d\s()./‐‑‒–-]*", "( ) - . /"),
}
# Given phonemes stand in their sentence as a number between two private characters, so that
# sentences can be cut before they are read.
_PHONEMES = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Utterance:
    """What is spoken in one go.

    Args:
        phones: tokens of one sentence or a part of it; none for a pause by itself.
        rate: factor on the speed.
        pitch: semitones up.
        pause: seconds of silence in front of it, or None for the usual one between sentences.
    """

    phones: tuple[str, ...]
    rate: float = 1.0
    pitch: float = 0.0
    pause: float | None = None


def ssml_utterances(text: str, frontend: Frontend) -> list[Utterance]:
    """The sentences of an SSML document, cut where the rate or pitch changes and at breaks.

    Args:
        text: a document with the root element `speak`.
        frontend: reads its text.

    Raises:
        SpeechError: no well-formed XML, or an element, attribute or value that the model cannot
            follow; it is named.
    """
    # Entities could multiply a short document without bounds.
    if "<!DOCTYPE" in text:
        raise SpeechError("SSML: a document type declaration is refused; leave <!DOCTYPE …> out")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise SpeechError(f"SSML: no well-formed XML: {error}") from error
    if _name(root) != "speak":
        raise SpeechError(f"SSML: expected the root element <speak>, got <{_name(root)}>")
    reader = _Reader(frontend)
    reader.element(root, 1.0, 0.0, 0)
    reader.flush()
    if reader.unknown:
        raise UnknownWords(reader.unknown)  # of the whole document, as of a plain text
    # A break at the end has no sentence behind it that would carry it.
    if reader.pause is not None:
        reader.found.append(Utterance((), pause=reader.pause))
    return reader.found


class _Reader:
    """Walks through a document and collects utterances."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.found: list[Utterance] = []
        self.unknown: list[str] = []
        self.pause: float | None = None
        self._text = ""
        self._phonemes: list[list[str]] = []
        self._prosody = (1.0, 0.0)

    def element(self, node: ElementTree.Element, rate: float, pitch: float, depth: int) -> None:
        name = _name(node)
        if depth > _MAX_DEPTH:
            raise SpeechError(f"SSML: elements lie more than {_MAX_DEPTH} deep in each other")
        if name not in _ATTRIBUTES:
            known = ", ".join(f"<{known}>" for known in _ATTRIBUTES)
            raise SpeechError(f"SSML: <{name}> is not supported; what is: {known}")
        # ElementTree writes the namespace in braces before a name, as of xml:lang.
        options = {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
        for key in options:
            if key not in _ATTRIBUTES[name]:
                raise SpeechError(f"SSML: <{name} {key}=…> is not supported")
        if name == "break":
            self.flush()
            self.pause = (self.pause or 0.0) + _seconds(options)
            _childless(node)
            return
        if name in ("phoneme", "sub", "say-as"):
            self._write(self._inline(name, node, options), rate, pitch)
            return
        if name == "prosody":
            rate *= _rate(options.get("rate", "medium"))
            pitch += _pitch(options.get("pitch", "medium"))
        # An empty line ends a sentence for `split_sentences`, whether it has a mark or not.
        around = "\n\n" if name in ("p", "s") else ""
        self._write(around + (node.text or ""), rate, pitch)
        for child in node:
            self.element(child, rate, pitch, depth + 1)
            # ElementTree keeps the text behind an element in that element.
            self._write(child.tail or "", rate, pitch)
        self._write(around, rate, pitch)

    def _inline(self, name: str, node: ElementTree.Element, options: dict[str, str]) -> str:
        _childless(node)
        text = node.text or ""
        if name == "sub":
            return _required(options, name, "alias")
        if name == "say-as":
            return _say_as(_required(options, name, "interpret-as"), options.get("format"), text)
        alphabet = options.get("alphabet", "ipa")
        if alphabet not in _ALPHABETS:
            raise SpeechError(
                f"SSML: <phoneme alphabet={alphabet!r}> is not supported; what is: "
                f"{', '.join(_ALPHABETS)}"
            )
        self._phonemes.append(_required(options, name, "ph").split())
        return f"\ue000{len(self._phonemes) - 1}\ue001"

    def _write(self, text: str, rate: float, pitch: float) -> None:
        if text.strip() and (rate, pitch) != self._prosody:
            before = self._text
            self.flush()
            # Inside a sentence the voice changes without a pause.
            if before.strip() and not re.search(r"[.!?…][\"'”’)]*\s*$|\n\n\s*$", before):
                self.pause = 0.0
            self._prosody = (rate, pitch)
        self._text += text

    def flush(self) -> None:
        """Read what was collected, sentence by sentence."""
        for sentence in split_sentences(self._text):
            try:
                phones = self._phones(sentence)
            except UnknownWords as error:
                self.unknown += error.words
                continue
            self.found.append(Utterance(tuple(phones), *self._prosody, self.pause))
            self.pause = None
        self._text = ""

    def _phones(self, sentence: str) -> list[str]:
        """Tokens of a sentence, phonemes that were given among them."""
        parts = _PHONEMES.split(sentence)
        if len(parts) == 1:
            return text_to_phones(sentence, self.frontend)
        given = [self._phonemes[int(p)] if i % 2 else p for i, p in enumerate(parts)]
        return mixed_phones(given, self.frontend)


def _name(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else "?"


def _childless(node: ElementTree.Element) -> None:
    if len(node):
        raise SpeechError(f"SSML: <{_name(node[0])}> inside <{_name(node)}> is not supported")


def _required(options: dict[str, str], name: str, key: str) -> str:
    if not options.get(key, "").strip():
        raise SpeechError(f"SSML: <{name}> needs the attribute {key}")
    return options[key]


def _number(text: str, pattern: str, name: str, expected: str) -> float:
    match = re.fullmatch(pattern, text.strip())
    if match is None:
        raise SpeechError(f"SSML: {name}: expected {expected}, got {text!r}")
    return float(match[1])


def _seconds(options: dict[str, str]) -> float:
    strength = options.get("strength", "medium")
    if strength not in _BREAKS:
        raise SpeechError(f"SSML: break strength: expected {', '.join(_BREAKS)}; got {strength!r}")
    if "time" not in options:
        return _BREAKS[strength]
    time = options["time"].strip()
    expected = 'a time such as "500ms" or "1.5s"'
    seconds = _number(time, r"\+?(\d+(?:\.\d+)?|\.\d+)m?s", "break time", expected)
    seconds /= 1000 if time.endswith("ms") else 1
    if seconds > _LONGEST_BREAK:
        raise SpeechError(f"SSML: break time: expected at most {_LONGEST_BREAK:g} s, got {time!r}")
    return seconds


def _rate(text: str) -> float:
    if text in _RATES:
        return _RATES[text]
    expected = (
        f'{", ".join(_RATES)}, a factor such as "1.2", or a percentage such as "80%" or "+10%"'
    )
    value = _number(text, r"([-+]?(?:\d+(?:\.\d+)?|\.\d+))%?", "prosody rate", expected)
    if text.strip().endswith("%"):
        # With a sign it is a change, without one a factor: "+10%" is "110%".
        value = (100 + value if text.strip()[0] in "+-" else value) / 100
    if not 0.1 <= value <= 10:
        raise SpeechError(f"SSML: prosody rate: expected a factor from 0.1 to 10, got {text!r}")
    return value


def _pitch(text: str) -> float:
    if text in _PITCHES:
        return _PITCHES[text]
    expected = f'{", ".join(_PITCHES)}, semitones such as "+2st", or a percentage such as "-10%"'
    value = _number(text, r"([-+](?:\d+(?:\.\d+)?|\.\d+))(?:st|%)", "prosody pitch", expected)
    if text.strip().endswith("%"):
        if value <= -100:
            raise SpeechError(f"SSML: prosody pitch: expected more than -100%, got {text!r}")
        # The percentage is of the frequency; twice of that is 12 semitones.
        return 12 * math.log2(1 + value / 100)
    return value


def _say_as(kind: str, form: str | None, text: str) -> str:
    """Text as words, where the plain text would be read another way."""
    plain = " ".join(text.split())
    if kind in ("characters", "spell-out", "verbatim"):
        return ", ".join(
            " ".join(digit_words(c) if c.isdecimal() else c.upper() for c in word)
            for word in plain.split()
        )
    if kind in ("digits", "telephone"):
        pattern, marks = _DIGITS[kind]
        if not re.fullmatch(pattern, plain):  # what is no digit would not be heard
            raise SpeechError(
                f"SSML: say-as {kind}: expected digits, spaces and {marks}, got {plain!r}: say-as "
                "characters reads letters, say-as cardinal numbers"
            )
        return ("plus " if plain.startswith("+") else "") + digit_words(plain)
    if kind in ("cardinal", "number", "ordinal"):
        if not re.fullmatch(rf"[-+]?{WHOLE}", plain) or (kind == "ordinal" and plain[0] in "-+"):
            raise SpeechError(f"SSML: say-as {kind}: expected a whole number, got {plain!r}")
        value = int(plain.replace(",", ""))
        return ordinal_words(value) if kind == "ordinal" else number_words(value)
    if kind == "date":
        return _date(form or "", plain)
    # The normaliser reads these from the text alone.
    if kind in ("time", "currency", "unit", "fraction"):
        return plain
    raise SpeechError(
        f"SSML: <say-as interpret-as={kind!r}> is not supported; what is: characters, spell-out, "
        "digits, telephone, cardinal, ordinal, date, time, currency, unit, fraction"
    )


def _date(form: str, text: str) -> str:
    """A date in one of the orders mdy, dmy, ymd, in the order that the normaliser expects."""
    numbers = re.split(r"[-/.\s]+", text)
    if not form:
        return text
    if sorted(form) != sorted("ymd") or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        raise SpeechError(
            f'SSML: say-as date: expected format "mdy", "dmy" or "ymd" and three numbers, '
            f"got {form!r} and {text!r}"
        )
    parts = dict(zip(form, numbers, strict=True))
    if not (1 <= int(parts["m"]) <= 12 and 1 <= int(parts["d"]) <= 31):
        raise SpeechError(f"SSML: say-as date: {text!r} is no date in the order {form!r}")
    return f"{parts['m']}/{parts['d']}/{parts['y']}"
