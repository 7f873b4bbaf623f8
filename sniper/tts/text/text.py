# SPDX-License-Identifier: Apache-2.0
"""Text to tokens at inference, such that they match what training saw.

A corpus spoken by espeak-ng is read by espeak-ng again; a corpus aligned by MFA is read through the
pronunciations heard in it, so no grapheme-to-phoneme model has to be downloaded.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from sniper.tts.errors import SpeechError
from sniper.tts.text.frontends import (
    PAUSE,
    SPOKEN_NOISE,
    EspeakFrontend,
    LexiconFrontend,
    UnknownWords,
    read_all,
)
from sniper.tts.text.sentences import split_sentences

__all__ = [
    "EOS",
    "PAD",
    "PAUSE",
    "SPOKEN_NOISE",
    "EspeakFrontend",
    "Frontend",
    "LexiconFrontend",
    "UnknownWords",
    "Vocabulary",
    "frontend_from_json",
    "is_phoneme",
    "read_all",
    "split_sentences",
    "text_to_phones",
]

PAD, EOS = "<pad>", "<eos>"
_STRESS = "ˈˌ"


class Vocabulary:
    """Tokens and their ids: PAD is 0, then the phonemes, EOS last.

    Args:
        symbols: all of them in order.

    Raises:
        ValueError: PAD or EOS is not in its place, or a symbol comes twice.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        if len(self.symbols) < 3 or self.symbols[0] != PAD or self.symbols[-1] != EOS:
            raise ValueError(f"a vocabulary goes {PAD}, phonemes, {EOS}; got {self.symbols}")
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        if len(self._ids) != len(self.symbols):
            raise ValueError("a symbol comes twice in the vocabulary")

    @classmethod
    def from_phones(cls, phones: Iterable[str]) -> "Vocabulary":
        """Sort the different phonemes between PAD and EOS."""
        # Sorted, so that ids do not depend on the order in which utterances were read.
        return cls([PAD, *sorted(set(phones) - {PAD, EOS}), EOS])

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, phone: str) -> bool:
        return phone in self._ids

    @property
    def eos(self) -> int:
        """Id of EOS."""
        return len(self.symbols) - 1

    def ids(self, phones: Iterable[str]) -> np.ndarray:
        """Exact look-up, `[L]` int32, without EOS; an unknown phoneme is a `KeyError`."""
        return np.array([self._ids[phone] for phone in phones], dtype=np.int32)

    def encode(self, phones: Sequence[str]) -> np.ndarray:
        """Token ids for inference, EOS appended: `[L + 1]` int64.

        A phoneme that training never saw is replaced by the same one with another stress.

        Raises:
            SpeechError: no phonemes, or some of which no variant is known.
        """
        if not phones:
            raise SpeechError("no known phoneme in the text")
        known = [self.variant(phone) for phone in phones]
        unknown = sorted({phone for phone, to in zip(phones, known, strict=True) if to is None})
        if unknown:
            raise SpeechError(f"the model was not trained with these phonemes: {' '.join(unknown)}")
        ids = [self._ids[phone] for phone in known if phone is not None]
        return np.array([*ids, self.eos], dtype=np.int64)

    def variant(self, phone: str) -> str | None:
        """The phoneme that is spoken for `phone`: itself, or the same with another stress; None
        where there is neither.
        """
        bare = phone.strip(_STRESS)
        # A small corpus may lack a vowel in one of its stresses; another stress is closer than a
        # refusal.
        candidates = [phone, bare, *(mark + bare for mark in _STRESS)]
        if phone[-1:].isdigit():  # ARPAbet writes stress behind the vowel
            # Secondary stress is nearest to both others.
            near = {"0": "21", "1": "20", "2": "10"}.get(phone[-1], "")
            candidates += [phone[:-1], *(phone[:-1] + digit for digit in near)]
        return next((name for name in candidates if name in self._ids), None)


Frontend = EspeakFrontend | LexiconFrontend


def frontend_from_json(data: dict) -> Frontend:
    """Build a frontend from its `to_json` dict; an unknown kind is a `ValueError`."""
    kinds = {"espeak": EspeakFrontend, "lexicon": LexiconFrontend}
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"unknown text frontend {kind!r}; known are {', '.join(kinds)}")
    return kinds[kind](**options)


def is_phoneme(token: str) -> bool:
    """Whether somebody speaks a token: no pause, punctuation mark or noise."""
    return token not in (PAUSE, SPOKEN_NOISE) and any(char.isalnum() for char in token)


def text_to_phones(text: str, frontend: Frontend) -> list[str]:
    """Phonemes of a text; a text in braces, "{HH AH0 L OW1}", is taken as phonemes itself."""
    stripped = text.strip()
    if stripped.startswith("{") and stripped.endswith("}"):
        return stripped[1:-1].split()
    return frontend.phones(text)
