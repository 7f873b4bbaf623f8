# SPDX-License-Identifier: Apache-2.0
"""espeak-ng's English in the IPA phones of a voice that another aligner named, such as MFA's.

Source: the phone sets of MFA's English dictionaries, mfa-models.readthedocs.io; where its narrow
phones stand was counted in `english_us_mfa` 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from sniper.tts.text.text import Vocabulary

_STRESS = "ˈˌ"
# One spelling of what IPA can write in several ways: ties, ligatures, letters of the keyboard.
_SPELLING = str.maketrans(
    {"͡": "", "͜": "", "g": "ɡ", ":": "ː", "ʧ": "tʃ", "ʤ": "dʒ", "ʦ": "ts", "ʣ": "dz", "'": "ˈ"}
)
# espeak-ng's phones that are two sounds.
_PARTS = {
    "əl": "ə l", "iə": "i ə", "ɪə": "ɪ ə", "ʊə": "ʊ ə", "aɪə": "aɪ ə", "aɪɚ": "aɪ ɚ", "ɑːɹ": "ɑː ɹ",
    "ɔːɹ": "ɔ ɹ", "oːɹ": "ɔ ɹ", "ɛɹ": "ɛ ɹ", "ɪɹ": "ɪ ɹ", "ʊɹ": "ʊ ɹ", "iːː": "iː",
}  # fmt: skip
# How others write each sound, the nearest first; "+" joins two phones. Length is left to `_find`.
_WAYS = {
    "ɹ": "ɹ r ɻ", "r": "ɹ r", "tʃ": "tʃ t+ʃ", "dʒ": "dʒ d+ʒ", "l": "l ɫ", "ɬ": "l ɫ", "n̩": "n̩ ə+n",
    "h": "h ɦ", "x": "x k", "ʔ": "ʔ t", "w": "w ʋ", "v": "v ʋ",
    "t": "t ʈ t̪", "d": "d ɖ d̪", "θ": "θ t̪ʰ t̪", "ð": "ð d̪",
    "ə": "ə ɐ ʌ", "ɐ": "ə ɐ", "ʌ": "ʌ ɐ ə", "ɚ": "ɚ ɝ əɹ ə+ɹ", "ɜː": "ɝ ɜː ɚ ɛː", "ᵻ": "ɪ ɨ ə",
    "i": "i ɪ", "æ": "æ a", "a": "a æ", "ɛ": "ɛ e", "eə": "ɛː eə ɛə ɛ+ə", "u": "ʉ u", "uː": "ʉː uː",
    "ɒ": "ɒ ɑ ɔ", "ɔ": "ɒ ɔ", "ɔː": "ɒː ɔː", "eɪ": "ej eɪ e+ɪ eː", "aɪ": "aj aɪ a+ɪ",
    "aʊ": "aw aʊ a+ʊ", "oʊ": "ow oʊ əw o+ʊ oː",
    "əʊ": "əw əʊ ow oʊ ə+ʊ oː", "ɔɪ": "ɔj ɔɪ ɔ+ɪ",
}  # fmt: skip
_VOWELS = frozenset("iɪeɛæaɐʌəɚɜɝɑɒɔoʊuʉᵻ")
_CLOSE = frozenset({"i", "iː", "ɪ", "ᵻ"})
_OPEN = frozenset({"æ", "a", "aɪ"})
_ROUND = frozenset({"u", "uː", "ʊ"})
# Vowels before which a stop that does not begin the word stays without a puff of air.
_WEAK = frozenset({"ə", "ɚ", "ɐ", "i", "ɪ", "ᵻ", "oʊ", "əʊ"})
# A consonant that leans towards a close front vowel, and further vowels that do it to some.
_PALATAL = {
    "p": "pʲ", "b": "bʲ", "m": "mʲ", "f": "fʲ", "v": "vʲ", "t": "tʲ", "d": "dʲ", "ɾ": "ɾʲ",
    "k": "c", "ɡ": "ɟ", "n": "ɲ", "l": "ʎ", "h": "ç",
}  # fmt: skip
_PALATAL_TOO = {"k": {"eɪ", "ɛ", "æ", "a", "aɪ"}, "ɡ": {"eɪ", "aɪ"}, "n": {"eɪ", "æ"}, "h": {"eɪ"}}
# Those that do it through an l or r as well.
_BEFORE = {"l": frozenset("p b f v k ɡ".split()), "ɹ": frozenset("t d k ɡ".split())}


def simple_phones(phones: Sequence[str]) -> list[str]:
    """espeak-ng's phones with those of two sounds taken apart; stress stays with the first."""
    found: list[str] = []
    for phone in phones:
        bare = phone.strip(_STRESS)
        mark = phone.removesuffix(bare)
        first, *rest = _PARTS.get(bare, bare).split()
        found += [mark + first, *rest]
    return found


class IpaPhones:
    """Finds espeak-ng's phones among those of a voice.

    Args:
        vocabulary: of the voice; its symbols are IPA, with or without stress, length and ties.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._spelt: dict[str, str] = {}
        for symbol in vocabulary.symbols:
            self._spelt.setdefault(symbol.translate(_SPELLING), symbol)
        spelt = {symbol.strip(_STRESS) for symbol in self._spelt}
        # Among MFA's sets those of English have this sound, and no others.
        self.is_english = "ɹ" in spelt or {"r", "ð", "ʌ"} <= spelt
        # ʌ is espeak-ng's own notation, whose ɐ is a weak vowel; MFA's ɐ is that ʌ.
        self._as_espeak = "ʌ" in spelt
        self._has_flap = "ɾ" in spelt
        # Without a vowel of "bird" with an r in it, the r is not spoken: British.
        self.voice = "en-us" if self._as_espeak or {"ɚ", "ɝ"} & spelt else "en"

    def __call__(self, phones: Sequence[str]) -> tuple[list[str], list[str]]:
        """The voice's phones for espeak-ng's of one word, and those that it has none for."""
        if self._as_espeak and all(self._find(phone) for phone in phones):
            return [str(self._find(phone)) for phone in phones], []
        simple = simple_phones(phones)
        if not self._has_flap:
            simple = ["t" if phone == "ɾ" else phone for phone in simple]
        found: list[str] = []
        missing: list[str] = []
        at = 0
        while at < len(simple):
            names, taken = self._sound(simple, at)
            found += names
            if not names:
                missing.append(simple[at].strip(_STRESS))
            at += taken
        return found, list(dict.fromkeys(missing))

    def _sound(self, phones: list[str], at: int) -> tuple[list[str], int]:
        """The voice's phones for the one at a place, [] where it has none, and how many of
        espeak-ng's they stand for.
        """
        bare = phones[at].strip(_STRESS)
        mark = phones[at].removesuffix(bare)
        for name, taken in narrow_phones([phone.strip(_STRESS) for phone in phones], at):
            if name in self._spelt:
                return [self._spelt[name]], taken
        # American English has this vowel where British has ɒ, and MFA writes it short there.
        ways = ["ɑ"] if (self.voice, bare) == ("en-us", "ɑː") else _WAYS.get(bare, bare).split()
        for way in [bare, *ways] if self._as_espeak else ways:
            parts = (mark + way).split("+")
            names = [self._find(name, any_length=len(parts) == 1) for name in parts]
            if all(names):
                return [str(name) for name in names], 1
        # In a small corpus nobody may have said it in this place, but in another.
        for name in (bare + "ʰ", _PALATAL.get(bare, "")):
            if name in self._spelt:
                return [self._spelt[name]], 1
        return [], 1

    def _find(self, phone: str, any_length: bool = True) -> str | None:
        """The symbol of one phone: as it stands, else longer or shorter; in any stress."""
        bare = phone.lstrip(_STRESS)
        mark = phone.removesuffix(bare)
        other = bare.removesuffix("ː") if bare.endswith("ː") else bare + "ː"
        for name in (bare, other) if any_length else (bare,):
            for spelt in (mark + name, name, *(stress + name for stress in _STRESS)):
                if spelt in self._spelt:
                    return self._spelt[spelt]
        return None


def narrow_phones(phones: Sequence[str], at: int) -> list[tuple[str, int]]:
    """What MFA may write for a consonant because of its neighbours, the most fitting first, each
    with the number of phones that it stands for.

    Args:
        phones: espeak-ng's of one word, without stress, those of two sounds taken apart.
        at: the consonant's place.
    """
    phone, first = phones[at], at == 0
    after = phones[at + 1] if at + 1 < len(phones) else ""
    then = phones[at + 2] if at + 2 < len(phones) else ""
    vowel = after[:1] in _VOWELS and after != ""
    found: list[tuple[str, int]] = []
    # [kj] is one phone before a round vowel, and so is [kw] before any.
    glide = after == "j" and then in _ROUND
    follows_s = not first and phones[at - 1] == "s"
    palatal = glide or after in _CLOSE
    palatal |= after in _PALATAL_TOO.get(phone, ()) and not (follows_s and after in _OPEN)
    if then in _CLOSE and phone in _BEFORE.get(after, ()) or (phone, after) == ("k", "ʃ"):
        palatal = True
    labial = phone in ("k", "ɡ", "t") and after == "w" and (phone != "t" or first)
    puff = "ʰ" if vowel and not follows_s and (first or after not in _WEAK) else ""
    if labial:
        if phone != "t" and (then in _CLOSE or then == "ɛ"):
            found.append((f"{_PALATAL[phone]}ʷ", 2))
        found.append((f"{phone}ʷ", 2))
    if phone == "p" and first and puff:
        found.append(("pʰ", 1))
    if palatal and phone in _PALATAL:
        taken = 2 if glide else 1
        if phone == "k" and (puff or glide and not follows_s):
            found.append(("cʰ", taken))
        found.append((_PALATAL[phone], taken))
    if phone in ("p", "t", "k") and puff:
        found.append((f"{phone}ʰ", 1))
    if phone == "l" and not vowel:
        found.append(("ɫ", 1))
    return found
