# SPDX-License-Identifier: Apache-2.0
"""Words that a voice learns after its training: a user's dictionary, or a guess."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from sniper.tts.errors import SpeechError
from sniper.tts.text.arpabet import PHONES, from_ipa, plain_letters
from sniper.tts.text.espeak import has_espeak, word_phones
from sniper.tts.text.ipa import IpaPhones
from sniper.tts.text.text import (
    EOS,
    PAD,
    PAUSE,
    SPOKEN_NOISE,
    Frontend,
    LexiconFrontend,
    Vocabulary,
)
from sniper.tts.text.words import characters, script

_NAMED = 10


@dataclass(frozen=True)
class Added:
    """What became of the words of a dictionary.

    Args:
        new, changed: how many the lexicon did not hold, or held with other phonemes.
        left_out: words that cannot be spoken, with the phonemes that the voice does not have.
    """

    new: int
    changed: int
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        said = f"{self.new} words added, {self.changed} changed"
        return f"{said}; {left_out(self.left_out)}" if self.left_out else said


def left_out(words: dict[str, list[str]]) -> str:
    """That words of a dictionary cannot be spoken, and why; at most ten are named."""
    phones = sorted({phone for missing in words.values() for phone in missing})
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return (
        f"{len(words)} left out, nobody spoke their phonemes {' '.join(phones[:_NAMED])}: "
        f"{', '.join(list(words)[:_NAMED])}{more}"
    )


def speakable(
    words: dict[str, str], vocabulary: Vocabulary
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The words that a vocabulary can speak, and the phonemes that each of the others lacks.

    Args:
        words: word -> phonemes separated by spaces.
    """
    missing = {
        word: list(dict.fromkeys(p for p in phones.split() if vocabulary.variant(p) is None))
        for word, phones in words.items()
    }
    known = {word: phones for word, phones in words.items() if not missing[word]}
    return known, {word: phones for word, phones in missing.items() if phones}


def add_words(
    frontend: Frontend, words: dict[str, str], vocabulary: Vocabulary
) -> tuple[LexiconFrontend, Added]:
    """The frontend with the words of a dictionary, which go before its own.

    Args:
        words: word -> phonemes separated by spaces, as `read_dictionary` gives them.
        vocabulary: phonemes that the voice has.

    Raises:
        SpeechError: the frontend has no lexicon, or not one of the words can be spoken.
    """
    if not isinstance(frontend, LexiconFrontend):
        raise SpeechError(
            "this voice reads text by espeak-ng and has no lexicon to add words to: spell them "
            "another way, or give phonemes in braces"
        )
    known, missing = speakable(words, vocabulary)
    if not known:
        what = left_out(missing) if missing else "it holds no word"
        phones = " ".join(s for s in vocabulary.symbols if s not in (PAD, EOS))
        raise SpeechError(f"the lexicon adds nothing: {what}; the voice's phonemes are {phones}")
    before = frontend.lexicon
    new = sum(word not in before for word in known)
    changed = sum(before.get(word, phones) != phones for word, phones in known.items())
    return replace(frontend, lexicon={**before, **known}), Added(new, changed, missing)


class Guess:
    """Phonemes for words that a voice's lexicon does not hold: its letters where those are the
    phonemes, else espeak-ng's, where it is installed and the voice has its phonemes, ARPAbet's, or
    those of English in another IPA notation such as MFA's.

    After use, `read` holds the words that were read so, with their phonemes, and `lacking` those
    that were not, with the phonemes that the voice does not have.

    Args:
        frontend: with the lexicon.
        vocabulary: phonemes that the voice has.
    """

    def __init__(self, frontend: LexiconFrontend, vocabulary: Vocabulary) -> None:
        self.read: dict[str, str] = {}
        self.lacking: dict[str, list[str]] = {}
        self._frontend, self._vocabulary = frontend, vocabulary

    def __call__(self, word: str) -> list[str] | None:
        """Phonemes of a word, or None."""
        if word in self.read:
            return self.read[word].split()
        # Of another script espeak-ng would spell the names of its letters.
        if script(word) not in self._scripts:
            return None
        phones, missing = self._phones(word)
        missing += [phone for phone in phones if self._vocabulary.variant(phone) is None]
        if missing:
            self.lacking[word] = list(dict.fromkeys(missing))
        if missing or not phones:
            return None
        self.read[word] = " ".join(phones)
        return phones

    def _phones(self, word: str) -> tuple[list[str], list[str]]:
        """Phonemes of a word, and espeak-ng's that have no name among the voice's."""
        if self._frontend.characters:
            return list(characters(word)), []
        if not self._has_espeak:
            return [], []
        if self._frontend.language is not None:
            return list(word_phones(word, self._frontend.language)), []
        if plain_letters(word) is None:
            return [], []
        if self._is_arpabet:
            heard = list(word_phones(word, "en-us"))
            return from_ipa(heard) or [], [phone for phone in heard if from_ipa([phone]) is None]
        if not self._ipa.is_english:
            return [], []
        return self._ipa(list(word_phones(word, self._ipa.voice)))

    # Asked late, since most texts hold no such word.
    @cached_property
    def _scripts(self) -> set[str | None]:
        return {script(word) for word in self._frontend.lexicon}

    @cached_property
    def _has_espeak(self) -> bool:
        return has_espeak()

    @cached_property
    def _ipa(self) -> IpaPhones:
        return IpaPhones(self._vocabulary)

    @cached_property
    def _is_arpabet(self) -> bool:
        own = set(self._vocabulary.symbols) - {PAD, EOS, PAUSE, SPOKEN_NOISE}
        return {phone.rstrip("012") for phone in own} <= PHONES
