# SPDX-License-Identifier: Apache-2.0
"""Names of letters and endings, for words that a lexicon does not hold as they stand."""

from __future__ import annotations

from functools import cached_property

# ARPAbet of the letters' names, as the CMU dictionary writes phonemes.
_ARPABET = {
    "a": "EY1", "b": "B IY1", "c": "S IY1", "d": "D IY1", "e": "IY1", "f": "EH1 F", "g": "JH IY1",
    "h": "EY1 CH", "i": "AY1", "j": "JH EY1", "k": "K EY1", "l": "EH1 L", "m": "EH1 M",
    "n": "EH1 N", "o": "OW1", "p": "P IY1", "q": "K Y UW1", "r": "AA1 R", "s": "EH1 S",
    "t": "T IY1", "u": "Y UW1", "v": "V IY1", "w": "D AH1 B AH0 L Y UW0", "x": "EH1 K S",
    "y": "W AY1", "z": "Z IY1",
}  # fmt: skip
_PHONES = set(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH".split()
)
_HISSES = {"S", "Z", "SH", "ZH", "CH", "JH"}
_VOICELESS = {"P", "T", "K", "F", "TH"}


class LetterNames:
    """How letters and the ending "s" sound with a lexicon's phonemes.

    A dictionary that has "a." (as CMU's) or "b" is followed. Where it has neither and its phonemes
    are ARPAbet, the letters' names are known anyway.

    Args:
        lexicon: word -> phonemes separated by spaces.
    """

    def __init__(self, lexicon: dict[str, str]) -> None:
        self._lexicon = lexicon

    @cached_property
    def _heard(self) -> set[str]:
        """The lexicon's ARPAbet phonemes without stress; empty where its phonemes are others."""
        heard = {
            phone.rstrip("012") for phones in self._lexicon.values() for phone in phones.split()
        }
        heard -= {"sil", "spn"}
        return heard if heard <= _PHONES else set()

    def one(self, letter: str) -> list[str] | None:
        """Phonemes of a lower-case letter's name, or None."""
        # "a" in a lexicon is the article, whose sound is another.
        for key in (f"{letter}.", letter) if letter != "a" else ("a.",):
            if key in self._lexicon:
                return self._lexicon[key].split()
        name = _ARPABET.get(letter, "").split()
        if name and {phone.rstrip("012") for phone in name} <= self._heard:
            return name
        return self._lexicon["a"].split() if letter == "a" and "a" in self._lexicon else None

    def spell(self, word: str) -> list[tuple[list[str] | None, str]]:
        """(phonemes, letter) for each capital of "DVD" or "DVDs"."""
        letters, ending = word.rstrip("s'"), word.endswith("s")
        found: list[tuple[list[str] | None, str]] = []
        for letter in letters.lower():
            phones = self.one(letter)
            if phones is None:
                return [(None, word.lower())]  # once: it may be read as a whole instead
            found.append((phones, letter))
        if ending and found[-1][0]:
            found.append((self._ending(found[-1][0]), word.lower()))
        return found

    def possessive(self, word: str) -> list[str] | None:
        """ "dog's" where the lexicon has "dog", else None."""
        if not word.endswith("'s") or word[:-2] not in self._lexicon:
            return None
        stem = self._lexicon[word[:-2]].split()
        ending = self._ending(stem)
        return None if ending is None else [*stem, *ending]

    def _ending(self, stem: list[str]) -> list[str] | None:
        if "'s" in self._lexicon:
            return self._lexicon["'s"].split()
        last = stem[-1].rstrip("012") if stem else ""
        if not self._heard:
            return self._lexicon["s"].split() if "s" in self._lexicon else None
        if last in _HISSES:
            ending = ["IH0" if "IH" in self._heard else "AH0", "Z"]
        else:
            ending = ["S"] if last in _VOICELESS else ["Z"]
        return ending if {phone.rstrip("012") for phone in ending} <= self._heard else None
