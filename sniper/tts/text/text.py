# SPDX-License-Identifier: Apache-2.0
"""Text to tokens at inference, such that they match what training saw.

A corpus spoken by espeak-ng is read by espeak-ng again; a corpus aligned by MFA is read through the
pronunciations heard in it, so no grapheme-to-phoneme model has to be downloaded.
"""

import re
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
from sniper.tts.text.sentences import IN_BRACES, is_left_out, split_sentences

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
    "known_marks",
    "mixed_phones",
    "read_all",
    "split_sentences",
    "text_to_phones",
]

PAD, EOS = "<pad>", "<eos>"
_STRESS = "ˈˌ"
_INSIDE, _AT_END = ",;:", ".!?"
_FIRST_MARK = re.compile(r"^[\s\"'”’]*([,;:.!?…—()])")
_LAST_MARK = re.compile(r"([,;:.!?…—()])[\s\"'“‘]*$")


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
        # ARPAbet writes stress behind the vowel; a digit by itself is a vowel of SAMPA.
        if phone[1:] and phone[-1].isdigit():
            # Secondary stress is nearest to both others.
            near = {"0": "21", "1": "20", "2": "10"}.get(phone[-1], "")
            candidates += [phone[:-1], *(phone[:-1] + digit for digit in near)]
        return next((name for name in candidates if name in self._ids), None)


Frontend = EspeakFrontend | LexiconFrontend


def known_marks(
    phones: Sequence[str], vocabulary: Vocabulary, frontend: Frontend
) -> tuple[list[str], list[str]]:
    """Tokens of which each pause and punctuation mark is known, and the marks that were left out.

    A mark that nobody's recordings had is replaced by the nearest that some had: of those that
    stand at the same place of a sentence, else any. Phonemes stay, known or not.

    Args:
        phones: as `frontend` read them.
    """
    # Through a lexicon the pause alone is a mark: "?" and "!" are phonemes of SAMPA and of IPA.
    marks = "" if isinstance(frontend, LexiconFrontend) else _INSIDE + _AT_END
    found, left_out = [], []
    for phone in phones:
        if phone in vocabulary or phone not in (PAUSE, *marks):
            found.append(phone)
            continue
        near = sorted(marks, key=lambda mark: (mark in _AT_END) != (phone in _AT_END))
        other = next((mark for mark in (*near, PAUSE) if mark in vocabulary), None)
        (left_out if other is None else found).append(other or phone)
    return found, left_out


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
    """Phonemes of a text; what stands in braces, `{HH AH0 L OW1}`, is taken as phonemes itself."""
    parts = IN_BRACES.split(text)
    if len(parts) == 1:
        return frontend.phones(text)
    if len(parts) == 3 and not (parts[0] + parts[2]).strip():
        return parts[1].split()  # with the pauses that it says, and no others
    return mixed_phones([text], frontend)


def mixed_phones(parts: Sequence[str | list[str]], frontend: Frontend) -> list[str]:
    """Phonemes of a sentence of which some are given.

    Args:
        parts: text, which may have some in braces, and lists of phonemes.
        frontend: reads the text.
    """
    found: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            found += part
            continue
        for index, piece in enumerate(IN_BRACES.split(part)):
            found += piece.split() if index % 2 else _inside(piece, frontend)
    if isinstance(frontend, LexiconFrontend):
        # The pauses at both ends are those that the lexicon gives a whole sentence.
        while found and found[-1] == PAUSE:
            found.pop()
        found = [PAUSE] * frontend.leading_pause + found
        found += [PAUSE] * frontend.trailing_pause
    return found


def _inside(part: str, frontend: Frontend) -> list[str]:
    """Tokens of a part of a sentence, with no pause at its ends but that of its own marks."""
    before, after = (_mark(where, part, frontend) for where in (_FIRST_MARK, _LAST_MARK))
    if is_left_out(part):
        return before or after
    phones = frontend.phones(part)
    pauses = {PAUSE} if isinstance(frontend, LexiconFrontend) else set(_INSIDE + _AT_END)
    # Read by itself, a part has the pauses at its ends that a whole sentence has.
    while phones and phones[0] in pauses:
        phones = phones[1:]
    while phones and phones[-1] in pauses:
        phones = phones[:-1]
    return before + phones + after


def _mark(where: re.Pattern, part: str, frontend: Frontend) -> list[str]:
    """The pause token of the mark at one end of a part, if there is one."""
    mark = where.search(part)
    if mark is None:
        return []
    if isinstance(frontend, LexiconFrontend):
        return [PAUSE]
    return [mark[1] if mark[1] in _INSIDE + _AT_END else "." if mark[1] == "…" else ","]
