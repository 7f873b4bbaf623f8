# SPDX-License-Identifier: Apache-2.0
"""Two ways to read a text: by espeak-ng, or through a pronunciation lexicon."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sniper.tts.errors import SpeechError
from sniper.tts.text.letters import LetterNames
from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.sentences import ends_sentence
from sniper.tts.text.words import cut, has_letter, is_english, script, word_key

PAUSE = "sil"
# The aligner's label for what it could not recognise: a token, but no phoneme.
SPOKEN_NOISE = "spn"
# Longer runs of capitals are words that somebody shouts.
_LONGEST_ACRONYM = 6


class UnknownWords(SpeechError):
    """Words that a lexicon does not hold, each named once.

    Args:
        words: in the order of the text.
        lacking: for those of them that could be read but not spoken, the phonemes that the voice
            does not have.
    """

    def __init__(
        self, words: Iterable[str], lacking: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.words = tuple(dict.fromkeys(words))
        why = {word: name for word in self.words if (name := script(word))}
        for word, phones in (lacking or {}).items():
            why[word] = f"the voice has no {' '.join(phones)}"
        named = [f"{word} ({why[word]})" if word in why else word for word in self.words]
        super().__init__(
            f"not in the pronunciation lexicon: {', '.join(named)}; write them to a dictionary "
            "file in MFA format and give it as --lexicon, spell them another way, or give "
            "phonemes in braces"
        )


def read_all(texts: Iterable[str], read: Callable[[str], list[str]]) -> list[list[str]]:
    """What `read` gives for each text.

    Raises:
        UnknownWords: of all texts together, so that a user can write one dictionary for a book.
    """
    found: list[list[str]] = []
    unknown: list[str] = []
    for text in texts:
        try:
            found.append(read(text))
        except UnknownWords as error:
            unknown += error.words
    if unknown:
        raise UnknownWords(unknown)
    return found


@dataclass(frozen=True)
class EspeakFrontend:
    """Reads text by espeak-ng: phonemes with stress, and punctuation as pause tokens.

    English is written as words first, so that it is read as through a lexicon.

    Args:
        voice: the espeak-ng voice the corpus was spoken with.
    """

    voice: str = "en-us"
    kind: str = field(default="espeak", init=False)

    def phones(self, text: str) -> list[str]:
        """Tokens of a text; raises SpeechError where it holds no word, or letters that the voice
        does not know.
        """
        from sniper.tts.text.espeak import espeak, unknown_letters

        # For other languages espeak-ng has its own rules for numbers; ours know English alone.
        words = normalize_english(text) if self.voice.startswith("en") else text
        if unknown := unknown_letters(words, self.voice):
            raise SpeechError(
                f"espeak-ng's voice {self.voice} does not know the letters {' '.join(unknown)} in "
                f"the text {text!r:.200}"
            )
        clauses = espeak().clauses(words, self.voice)
        if not clauses:
            raise SpeechError(f"no known phoneme in the text {text!r}")
        return [phone for clause in clauses for phone in (*clause.phones, clause.mark)]

    def to_json(self) -> dict:
        """Return plain values for `frontend_from_json`."""
        return {"kind": self.kind, "voice": self.voice}


@dataclass(frozen=True)
class LexiconFrontend:
    """Reads text through a pronunciation lexicon, with a pause at punctuation.

    Args:
        lexicon: lower-case word -> phonemes separated by spaces.
        leading_pause, trailing_pause: whether most recordings began and ended with a pause.
        language: of the texts, as espeak-ng's voices are named; words that the lexicon does not
            hold have this voice's phonemes. None: English, whose phonemes may be somebody else's.
        characters: its phonemes are the letters of the words.
    """

    lexicon: dict[str, str]
    leading_pause: bool = False
    trailing_pause: bool = True
    language: str | None = None
    characters: bool = False
    kind: str = field(default="lexicon", init=False)
    # Not a part of what the frontend is: it depends on what is installed where somebody speaks.
    _guess: Callable[[str], list[str] | None] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # Corpora of earlier versions hold words as their files wrote them.
        keys: dict[str, str] = {}
        for word, phones in self.lexicon.items():
            keys.setdefault(word_key(word), phones)
        object.__setattr__(self, "lexicon", keys)

    def guessing(self, guess: Callable[[str], list[str] | None]) -> LexiconFrontend:
        """The same, but a word that the lexicon does not hold has the phonemes that `guess` gives
        for it; None where it has none.
        """
        other = copy.copy(self)
        object.__setattr__(other, "_guess", guess)
        return other

    def phones(self, text: str) -> list[str]:
        """Tokens of a text.

        Raises:
            SpeechError: words that the lexicon does not hold (all of them are named), signs that
                have no reading, or no word.
        """
        found: list[str] = []
        # A dict and not a set: each word once, in the order of the text.
        unknown: dict[str, None] = {}
        for phones, word in self._tokens(text):
            if phones is None and self._guess is not None:
                phones = self._guess(word)
            if phones is None:
                unknown[word] = None
            elif phones == [PAUSE]:
                # One pause for several marks and none in front, since recordings have no others;
                # the pauses at both ends are decided below.
                found += [PAUSE] * bool(found and found[-1] != PAUSE)
            else:
                found += phones
        if unknown:
            raise UnknownWords(unknown)
        if not set(found) - {PAUSE, SPOKEN_NOISE}:
            raise SpeechError(f"no known phoneme in the text {text!r}")
        if found[-1] == PAUSE:
            found.pop()
        return [PAUSE] * self.leading_pause + found + [PAUSE] * self.trailing_pause

    def to_json(self) -> dict:
        """Return plain values for `frontend_from_json`."""
        data = {
            "kind": self.kind,
            "lexicon": dict(self.lexicon),
            "leading_pause": self.leading_pause,
            "trailing_pause": self.trailing_pause,
        }
        # Left out where it is not known, so that files of other aligners stay as they were.
        if self.language is not None:
            data |= {"language": self.language, "characters": self.characters}
        return data

    def _tokens(self, text: str) -> list[tuple[list[str] | None, str]]:
        """(phonemes, word) in order; None where the lexicon does not hold the word."""
        found: list[tuple[list[str] | None, str]] = []
        # Capitals mark an acronym only where other words have small letters.
        mixed_case = any(char.islower() for char in text)
        for part, held in self._held(text):
            if held:
                found.append((self.lexicon[word_key(part)].split(), part))
                continue
            # Our rules for numbers and signs know English alone, as where the corpus was aligned.
            english = self.language is None or is_english(self.language)
            words = cut(normalize_english(part, self.lexicon) if english else part)
            for index, word in enumerate(words):
                if has_letter(word):
                    neighbours = words[max(0, index - 1) : index] + words[index + 1 : index + 2]
                    found += self._word(word, mixed_case, neighbours, first=index == 0)
                elif word.strip("'"):
                    found.append(([PAUSE], word))
        return found

    def _held(self, text: str) -> list[tuple[str, bool]]:
        """The text in parts; words that the lexicon holds, although the text would be cut inside of
        them, are parts by themselves.
        """
        if self._odd is None:
            return [(text, False)]
        parts: list[tuple[str, bool]] = []
        place = 0
        for match in self._odd.finditer(text):
            parts += [(text[place : match.start()], False), (match[0], True)]
            place = match.end()
            # The dot belongs to the word, but the sentence needs it for its pause.
            if match[0].endswith(".") and ends_sentence(match[0][:-1], text[place:]):
                place -= 1
        return [*parts, (text[place:], False)]

    @cached_property
    def _odd(self) -> re.Pattern | None:
        """Finds words such as "u.s.", "at&t" and "1920" where an aligner has heard them so."""
        keys = [key for key in self.lexicon if re.fullmatch(r".*(?:\d|\w[^\w\s'-]\w).*", key)]
        if not keys:
            return None
        longest_first = "|".join(map(re.escape, sorted(keys, key=len, reverse=True)))
        return re.compile(rf"(?i)(?<![^\s\"'(\[])(?:{longest_first})(?=[,;:.!?\"')\]]*(?:\s|$))")

    @cached_property
    def _letters(self) -> LetterNames:
        return LetterNames(self.lexicon)

    def _word(
        self, word: str, mixed_case: bool, neighbours: list[str], first: bool
    ) -> list[tuple[list[str] | None, str]]:
        """A word as the lexicon holds it, or without its outer quotes, or letter by letter, or as
        the parts of a compound.
        """
        stem = word.strip("'-_")
        # "Vitamin A" has the letter's name; at the beginning "A" is the article.
        if stem == "A" and mixed_case and (not first or _is_letter(neighbours[-1:])):
            return [(self._letters.one("a"), "a")]
        for form in (word, stem):
            if word_key(form) in self.lexicon:
                return [(self.lexicon[word_key(form)].split(), form)]
        if possessive := self._letters.possessive(word_key(stem)):
            return [(possessive, word_key(stem))]
        if re.fullmatch(r"[A-Z]+(?:'?s)?", stem) and (mixed_case or len(stem) == 1):
            if len(stem.rstrip("s'")) <= _LONGEST_ACRONYM:
                return self._letters.spell(stem)
        parts = [part.strip("'") for part in re.split(r"[-_]", stem) if part.strip("'")]
        if len(parts) > 1:
            return [token for part in parts for token in self._word(part, mixed_case, [], True)]
        return [(None, word_key(stem))]


def _is_letter(words: list[str]) -> bool:
    return bool(words) and len(words[0]) == 1 and words[0].isupper()
