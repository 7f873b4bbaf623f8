# SPDX-License-Identifier: Apache-2.0
"""Which words a transcript holds, and how each may be spoken in American English."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sniper.tts.errors import MissingDependency, SpeechError, UtteranceError, require
from sniper.tts.text.arpabet import (
    PHONES,
    VOWELS,
    espeak_phones,
    from_letters,
    plain_letters,
    with_stress,
    without_stress,
)
from sniper.tts.text.lexicon import dictionary_lines
from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.words import has_letter, pieces

_VOICELESS = {"P", "T", "K", "F", "TH"}
_SIBILANTS = {"S", "Z", "SH", "ZH", "CH", "JH"}


def read_variants(path: Path) -> dict[str, list[str]]:
    """word -> all of its pronunciations in a dictionary of CMU's or MFA's format.

    Raises:
        SpeechError: it cannot be read, or a line has no phonemes.
    """
    found: dict[str, list[str]] = {}
    for word, phones in dictionary_lines(path):
        variants = found.setdefault(word, [])
        if phones not in variants:
            variants.append(phones)
    return found


@dataclass
class EnglishWords:
    """Pronunciations for the words of a corpus, each looked up once.

    Args:
        dictionary: word -> pronunciations without stress, of the acoustic model.
        lexicon: the user's, which goes before it.
        espeak: whether espeak-ng may be asked.

    After use, `guessed` says of every word that no dictionary held how its phones were found.
    """

    dictionary: dict[str, list[str]]
    lexicon: dict[str, list[str]] = field(default_factory=dict)
    espeak: bool = False
    guessed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # espeak-ng takes milliseconds a word, and a corpus repeats its words.
        self._found: dict[str, tuple[str, ...]] = {}
        self.stress = self.espeak or any(
            phone[-1].isdigit() for variants in self.lexicon.values() for phone in variants[0]
        )
        for word, variants in self.lexicon.items():
            unknown = {p for v in variants for p in without_stress(v.split())} - PHONES
            if unknown:
                raise SpeechError(
                    f"the lexicon says {' '.join(sorted(unknown))} for {word!r}: expected phones "
                    f"of ARPAbet ({' '.join(sorted(PHONES))}); for another set use --align learned"
                )

    def words(self, text: str) -> list[str]:
        """Words of a transcript in order, as the dictionary holds them.

        Raises:
            UtteranceError: signs or words that cannot be read, all of them named, or no word.
        """
        try:
            found = [piece for piece in pieces(normalize_english(text)) if has_letter(piece)]
        except SpeechError as error:
            raise UtteranceError(str(error)) from error
        parts = [part for piece in found for part in self._parts(piece)]
        unreadable = dict.fromkeys(word for word in parts if not self.variants(word))
        if unreadable:
            raise UtteranceError(f"words that are not in Latin letters: {', '.join(unreadable)}")
        if not parts:
            raise UtteranceError("there is no word in its text")
        return parts

    def _parts(self, piece: str) -> list[str]:
        """As the lexicon of a finished model looks words up: whole, stripped, or in parts."""
        for word in (piece, piece.strip("'-")):
            if word in self.lexicon or word in self.dictionary:
                return [word]
        return [part.strip("'") for part in re.split(r"[-_]", piece) if part.strip("'")]

    def variants(self, word: str) -> tuple[str, ...]:
        """Pronunciations of one word, the usual one first; none for a word of another script."""
        if word not in self._found:
            self._found[word] = tuple(dict.fromkeys(self._look_up(word)))
        return self._found[word]

    def _look_up(self, word: str) -> list[str]:
        # The user's own dictionary goes first: it knows how this speaker says it.
        known = self.lexicon.get(word) or self.dictionary.get(word)
        if not known:
            phones = self._guess(word)
            if phones is None:
                return []
            known = [" ".join(phones)]
        if not self.stress:
            return known
        # The acoustic model's dictionary has no stress, which speech needs: espeak-ng's vowels lend
        # theirs.
        model = espeak_phones(word) if self.espeak and _lacks_stress(known) else None
        return [" ".join(with_stress(phones.split(), model)) for phones in known]

    def _guess(self, word: str) -> list[str] | None:
        letters = plain_letters(word)
        if letters is None:
            return None
        known = self.lexicon.get(letters) or self.dictionary.get(letters)
        stem = word.removesuffix("'s").removesuffix("'")
        if known and letters != word:
            self.guessed[word] = f"as {letters}"
            return known[0].split()
        if stem != word and (self.lexicon.get(stem) or self.dictionary.get(stem)):
            self.guessed[word] = f"from {stem}"
            phones = self.variants(stem)[0].split()
            if not word.endswith("'s"):
                return phones
            # English possessives sound by the phone before them.
            last = phones[-1].rstrip("012")
            buzz = ["IH0", "Z"] if last in _SIBILANTS else ["S"] if last in _VOICELESS else ["Z"]
            return [*phones, *(buzz if self.stress else without_stress(buzz))]
        spoken = espeak_phones(word) if self.espeak else None
        self.guessed[word] = "by espeak-ng" if spoken else "by its letters"
        return spoken or from_letters(word)


def _lacks_stress(variants: Iterable[str]) -> bool:
    return any(phone in VOWELS for phones in variants for phone in phones.split())


def acoustic_model() -> tuple[Path, Path]:
    """Folder of pocketsphinx's English acoustic model, and its dictionary.

    Raises:
        MissingDependency: pocketsphinx or its model is not installed.
    """
    folder = Path(require("pocketsphinx").get_model_path()) / "en-us"
    model, dictionary = folder / "en-us", folder / "cmudict-en-us.dict"
    if not model.is_dir() or not dictionary.is_file():
        raise MissingDependency(
            f"pocketsphinx has no English model in {folder}; the wheel of PyPI brings it: "
            "pip install --force-reinstall pocketsphinx"
        )
    return model, dictionary
