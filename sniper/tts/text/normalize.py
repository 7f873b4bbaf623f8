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
from collections.abc import Callable, Container

from sniper.tts.text.numerals import number_words, ordinal_words, year_words
from sniper.tts.text.rules import RULES
from sniper.tts.text.words import word_key

__all__ = ["normalize_english", "number_words", "ordinal_words", "year_words"]


@functools.cache
def _scanner() -> tuple[re.Pattern, list[tuple[re.Pattern, Callable]]]:
    """All patterns at once, to find the next place quickly, and each by itself."""
    alone = []
    for rule in RULES:
        # Python takes global flags at the very front only; joined with others they must hold for a
        # group.
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
            # A match of no characters would stay at this place for ever.
            words = say(match) if match and match.end() > start else None
            if match and words is not None:
                _join(found, _as_known(match[0], words, known))
                place = match.end()
                # Words that take the place of a sign must not run together with the letters behind
                # it.
                if text[place : place + 1].isalnum() and words[-1:].isalnum():
                    found.append(" ")
                break
        else:
            # No rule takes what begins here: one character goes on as it is, and a match may begin
            # right behind it.
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
    """The written form, such as "mr", where a corpus was aligned with it and not with its words."""
    key = word_key(written_form.rstrip("."))
    bare = words.rstrip(".,")
    if key.isalpha() and key in known and not all(word_key(w) in known for w in bare.split()):
        return key + words[len(bare) :]
    return words


def _one_spelling(text: str) -> str:
    """One code point where Unicode has several for one sign; accents stay as they are."""
    text = re.sub(
        # Not NFKC of the whole text: it would make plain digits of powers and fractions, which have
        # rules.
        "[\u2113\u2160-\u217f\u3380-\u33df\uff01-\uff5e\ufb00-\ufb06\U0001d400-\U0001d7ff①-⑳]+",
        _compatible,
        text,
    )
    text = re.sub("[₀-₉]+", _compatible, text)
    text = re.sub("(?<=[0-9#*])\ufe0f?\u20e3", "", text)  # a keycap is its key
    # Invisible signs would cut a word in two.
    text = re.sub("[\u00ad\ufeff\u2060\u200e\u200f\u202a-\u202e]", "", text)
    text = re.sub(r"(?<=\d\s)(sq|cu|fl)\.\s(?=(?:ft|in|k?m|mi|oz|yd)\b)", r"\1 ", text)
    text = re.sub(r"°\s(?=[CFNSEW]\b)", "°", text)
    # The ordinal sign º looks like a degree and is typed for it.
    text = re.sub(r"(?<=\d)º", "°", re.sub("[’‘ʼ‛]", "'", text))
    return re.sub(r"\bn[º°](?=\s?\d)", "№", re.sub("[“”„‟]", '"', text)).replace("⁄", "/")


def _compatible(match: re.Match) -> str:
    return unicodedata.normalize("NFKC", match[0])
