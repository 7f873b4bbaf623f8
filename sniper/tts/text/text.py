# SPDX-License-Identifier: Apache-2.0
"""Text to tokens at inference, such that they match what training saw.

A corpus spoken by espeak-ng is read by espeak-ng again; a corpus aligned by MFA is read through the
pronunciations heard in it, so no grapheme-to-phoneme model has to be downloaded.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sniper.tts.errors import SpeechError
from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.words import has_letter, pieces, word_key

PAD, EOS, PAUSE = "<pad>", "<eos>", "sil"
# The aligner's label for what it could not recognise: a token, but no phoneme.
SPOKEN_NOISE = "spn"
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
        known = [self._variant(phone) for phone in phones]
        unknown = sorted({phone for phone, to in zip(phones, known, strict=True) if to is None})
        if unknown:
            raise SpeechError(f"the model was not trained with these phonemes: {' '.join(unknown)}")
        ids = [self._ids[phone] for phone in known if phone is not None]
        return np.array([*ids, self.eos], dtype=np.int64)

    def _variant(self, phone: str) -> str | None:
        bare = phone.strip(_STRESS)
        candidates = [phone, bare, *(mark + bare for mark in _STRESS)]
        if phone[-1:].isdigit():  # ARPAbet writes stress behind the vowel
            candidates += [phone[:-1], *(phone[:-1] + digit for digit in "012")]
        return next((name for name in candidates if name in self._ids), None)


@dataclass(frozen=True)
class EspeakFrontend:
    """Reads text by espeak-ng: phonemes with stress, and punctuation as pause tokens.

    Args:
        voice: the espeak-ng voice the corpus was spoken with.
    """

    voice: str = "en-us"
    kind: str = field(default="espeak", init=False)

    def phones(self, text: str) -> list[str]:
        """Tokens of a text; raises SpeechError where it holds no word."""
        from sniper.tts.text.espeak import espeak

        clauses = espeak().clauses(text, self.voice)
        if not clauses:
            raise SpeechError(f"no known phoneme in the text {text!r}")
        return [phone for clause in clauses for phone in (*clause.phones, clause.mark)]

    def to_json(self) -> dict:
        """Return plain values for `frontend_from_json`."""
        return {"kind": self.kind, "voice": self.voice}


@dataclass(frozen=True)
class LexiconFrontend:
    """Reads English text through a pronunciation lexicon, with a pause at punctuation.

    Args:
        lexicon: lower-case word -> phonemes separated by spaces.
        leading_pause, trailing_pause: whether most recordings began and ended with a pause.
    """

    lexicon: dict[str, str]
    leading_pause: bool = False
    trailing_pause: bool = True
    kind: str = field(default="lexicon", init=False)

    def __post_init__(self) -> None:
        # Corpora prepared before words had one form hold them as their files did.
        keys: dict[str, str] = {}
        for word, phones in self.lexicon.items():
            keys.setdefault(word_key(word), phones)
        object.__setattr__(self, "lexicon", keys)

    def phones(self, text: str) -> list[str]:
        """Tokens of a text.

        Raises:
            SpeechError: words that the lexicon does not hold (all of them are named), or no word.
        """
        found: list[str] = []
        unknown: dict[str, None] = {}
        for piece in pieces(normalize_english(text)):
            if has_letter(piece):
                for word in self._known_parts(piece):
                    if word not in self.lexicon:
                        unknown[word] = None
                    found += self.lexicon.get(word, "").split()
            elif piece.strip("'") and found and found[-1] != PAUSE:
                found.append(PAUSE)
        if unknown:
            raise SpeechError(
                f"not in the pronunciation lexicon: {', '.join(unknown)}; add them to a dictionary "
                "file in MFA format (--lexicon at preparation), spell them another way, or give "
                "phonemes in braces"
            )
        if not set(found) - {PAUSE, SPOKEN_NOISE}:
            raise SpeechError(f"no known phoneme in the text {text!r}")
        if found[-1] == PAUSE:
            found.pop()
        return [PAUSE] * self.leading_pause + found + [PAUSE] * self.trailing_pause

    def _known_parts(self, piece: str) -> list[str]:
        """The word as it stands, else without outer quotes, else the parts of a compound."""
        for word in (piece, piece.strip("'-")):
            if word in self.lexicon:
                return [word]
        stem = piece.strip("'-")
        if stem.endswith("'s") and stem[:-2] in self.lexicon and "'s" in self.lexicon:
            return [stem[:-2], "'s"]
        return [part.strip("'") for part in re.split(r"[-_]", stem) if part.strip("'")]

    def to_json(self) -> dict:
        """Return plain values for `frontend_from_json`."""
        return {
            "kind": self.kind,
            "lexicon": dict(self.lexicon),
            "leading_pause": self.leading_pause,
            "trailing_pause": self.trailing_pause,
        }


Frontend = EspeakFrontend | LexiconFrontend


def frontend_from_json(data: dict) -> Frontend:
    """Build a frontend from its `to_json` dict; an unknown kind is a `ValueError`."""
    kinds = {"espeak": EspeakFrontend, "lexicon": LexiconFrontend}
    options = dict(data)
    kind = options.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"unknown text frontend {kind!r}; known are {', '.join(kinds)}")
    return kinds[kind](**options)


def text_to_phones(text: str, frontend: Frontend) -> list[str]:
    """Phonemes of a text; a text in braces, "{HH AH0 L OW1}", is taken as phonemes itself."""
    stripped = text.strip()
    if stripped.startswith("{") and stripped.endswith("}"):
        return stripped[1:-1].split()
    return frontend.phones(text)


_ENDINGS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=\S)|\n\s*\n")
_NO_ENDING = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|capt|col|gen|lt|rev|hon|jr|sr|vs|no|e\.g|i\.e)|\b[A-Za-z])\.$",
    re.IGNORECASE,
)


def split_sentences(text: str, max_chars: int = 300) -> list[str]:
    """Split a long text at the ends of its sentences.

    A sentence over `max_chars` is split again, at the last punctuation that fits, else at a space.
    Text in braces (phonemes) stays whole.
    """
    if text.strip().startswith("{"):
        return [text.strip()]
    sentences, begin = [], 0
    for match in _ENDINGS.finditer(text):
        paragraph = "\n" in match[0]
        if not paragraph and _NO_ENDING.search(text[begin : match.start()]):
            continue
        # Closing quotes belong to the sentence they close.
        sentences.append(text[begin : match.end()])
        begin = match.end()
    sentences.append(text[begin:])
    parts = [part for sentence in sentences for part in _shorten(sentence, max_chars)]
    return [part for part in parts if has_letter(part)]


def _shorten(sentence: str, max_chars: int) -> list[str]:
    rest = " ".join(sentence.split())
    parts = []
    while len(rest) > max_chars:
        window = rest[:max_chars]
        cut = max(window.rfind(mark + " ") for mark in ",;:—")
        if cut < max_chars // 3:
            cut = window.rfind(" ")
        if cut <= 0:
            warnings.warn(f"a word of over {max_chars} characters is cut", stacklevel=3)
            cut = max_chars - 1
        parts.append(rest[: cut + 1].strip())
        rest = rest[cut + 1 :].strip()
    return [*parts, rest] if rest else parts
