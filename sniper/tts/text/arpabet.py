# SPDX-License-Identifier: Apache-2.0
"""ARPAbet: phones of espeak-ng's American English in it, a letter rule, and stress digits."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())
CONSONANTS = frozenset("B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split())
PHONES = VOWELS | CONSONANTS

_PRIMARY, _SECONDARY = "ˈ", "ˌ"
# Every phone that espeak-ng's en-us writes for the words of a 126,000-word dictionary.
_IPA = {
    **{phone: phone.upper() for phone in "b d f k l m n p s t v w z".split()},
    "ɹ": "R", "r": "R", "j": "Y", "h": "HH", "x": "K", "ɡ": "G", "ŋ": "NG", "ʔ": "T", "ɾ": "T",
    "ʃ": "SH", "ʒ": "ZH", "tʃ": "CH", "dʒ": "JH", "θ": "TH", "ð": "DH", "ɬ": "L", "n̩": "AH N",
    "əl": "AH L", "ə": "AH", "ɐ": "AH", "ʌ": "AH", "æ": "AE", "ɛ": "EH", "ɪ": "IH", "ᵻ": "IH",
    "i": "IY", "iː": "IY", "iːː": "IY", "ɑː": "AA", "ɔ": "AO", "ɔː": "AO", "oː": "AO", "ʊ": "UH",
    "uː": "UW", "u": "UW", "ɚ": "ER", "ɜː": "ER", "eɪ": "EY", "aɪ": "AY", "aʊ": "AW", "oʊ": "OW",
    "ɔɪ": "OY", "iə": "IY AH", "aɪə": "AY AH", "aɪɚ": "AY ER", "ɑːɹ": "AA R", "ɔːɹ": "AO R",
    "oːɹ": "AO R", "ɛɹ": "EH R", "ɪɹ": "IH R", "ʊɹ": "UH R",
}  # fmt: skip
# Longest first wins. A vowel letter before one consonant and a final e is long: see `_MAGIC_E`.
_GRAPHEMES = {
    "tion": "SH AH N", "sion": "ZH AH N", "cian": "SH AH N", "tious": "SH AH S", "ture": "CH ER",
    "eigh": "EY", "augh": "AO", "ough": "AO", "tch": "CH", "dge": "JH", "igh": "AY", "eau": "OW",
    "sch": "SH", "ous": "AH S", "air": "EH R", "ear": "IH R", "eer": "IH R", "oor": "AO R",
    "qu": "K W", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "gh": "G", "ck": "K",
    "ng": "NG", "kn": "N", "wr": "R", "ps": "P S", "ee": "IY", "ea": "IY", "ie": "IY", "ei": "EY",
    "ey": "IY", "ay": "EY", "ai": "EY", "oa": "OW", "oe": "OW", "oo": "UW", "ou": "AW", "ow": "OW",
    "oi": "OY", "oy": "OY", "au": "AO", "aw": "AO", "eu": "Y UW", "ew": "UW", "ue": "UW",
    "ui": "UW", "ar": "AA R", "er": "ER", "ir": "ER", "or": "AO R", "ur": "ER", "ce": "S",
    "ci": "S IH", "cy": "S IY", "ge": "JH", "gi": "JH IH", "gy": "JH IY", "a": "AE", "b": "B",
    "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K",
    "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T",
    "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
_MAGIC_E = {"a": "EY", "e": "IY", "i": "AY", "o": "OW", "u": "UW", "y": "AY"}
_NAMES = {
    "a": "EY", "b": "B IY", "c": "S IY", "d": "D IY", "e": "IY", "f": "EH F", "g": "JH IY",
    "h": "EY CH", "i": "AY", "j": "JH EY", "k": "K EY", "l": "EH L", "m": "EH M", "n": "EH N",
    "o": "OW", "p": "P IY", "q": "K Y UW", "r": "AA R", "s": "EH S", "t": "T IY", "u": "Y UW",
    "v": "V IY", "w": "D AH B AH L Y UW", "x": "EH K S", "y": "W AY", "z": "Z IY",
}  # fmt: skip


def plain_letters(word: str) -> str | None:
    """The word in the letters a to z, accents dropped; None for any other script."""
    bare = unicodedata.normalize("NFKD", word.lower().replace("ß", "ss").replace("æ", "ae"))
    letters = [char for char in bare if char not in "'-_" and not unicodedata.combining(char)]
    return "".join(letters) if letters and all("a" <= char <= "z" for char in letters) else None


def from_ipa(phones: Sequence[str]) -> list[str] | None:
    """espeak-ng's phones in ARPAbet, vowels with the digits 0, 1 and 2 of their stress.

    Returns:
        None where one of them is not of American English.
    """
    found: list[str] = []
    for phone in phones:
        bare = phone.strip(_PRIMARY + _SECONDARY)
        if bare not in _IPA:
            return None
        digit = "1" if _PRIMARY in phone else "2" if _SECONDARY in phone else "0"
        for name in _IPA[bare].split():
            if name in VOWELS:
                found.append(name + digit)
                digit = "0"  # of a pair, the first carries the stress
            else:
                found.append(name)
    return found


def espeak_phones(word: str) -> list[str] | None:
    """American English phones with stress by espeak-ng; None where it has none in ARPAbet."""
    from sniper.tts.text.espeak import espeak

    clauses = espeak().clauses(word, "en-us")
    return from_ipa([phone for clause in clauses for phone in clause.phones]) or None


def from_letters(word: str) -> list[str] | None:
    """A rough pronunciation by the letters of an English word, vowels without stress.

    A word without a vowel letter is spelt. Returns None for a word in another script.
    """
    letters = plain_letters(word)
    if letters is None:
        return None
    if not set(letters) & set("aeiouy"):
        return " ".join(_NAMES[letter] for letter in letters).split()
    found: list[str] = []
    at = 0
    while at < len(letters):
        rest = letters[at:]
        if rest == "e" and len(set(letters) & set("aeiouy")) > 1 or rest == "es" and found:
            break  # silent at the end
        long = rest[0] in _MAGIC_E and len(rest) in (3, 4) and rest[2:] in ("e", "es", "ed")
        if long and rest[1] not in "aeiouyrwx":
            found.append(_MAGIC_E[rest[0]])
            at += 1
            continue
        size = next(n for n in (5, 4, 3, 2, 1) if rest[:n] in _GRAPHEMES and len(rest[:n]) == n)
        phones = _GRAPHEMES[rest[:size]].split()
        if at == 0 and rest[0] == "y":
            phones, size = ["Y"], 1
        # A doubled consonant is spoken once.
        found += phones[1:] if found and phones[0] == found[-1] in CONSONANTS else phones
        at += size
    return found or None


def with_stress(phones: Sequence[str], model: Sequence[str] | None) -> list[str]:
    """Give every vowel without a digit one.

    Args:
        phones: ARPAbet; a vowel that has its digit keeps it.
        model: the same word with digits, from espeak-ng; None puts the stress on the first vowel.
    """
    total = sum(phone in VOWELS for phone in phones)
    known = [phone for phone in model or () if phone[-1].isdigit()]
    found: list[str] = []
    vowel = 0
    for phone in phones:
        if phone not in VOWELS:
            found.append(phone)
            continue
        if not known:
            digit = "1" if vowel == 0 else "0"
        else:
            # Counted from the end where the numbers differ: endings are what two sources share.
            like = known[max(0, len(known) - total + vowel)]
            # A weak form, such as AH N D beside AE1 N D, carries no stress.
            digit = "0" if phone == "AH" and like[:-1] != "AH" else like[-1]
        found.append(phone + digit)
        vowel += 1
    full = [at for at, phone in enumerate(found) if phone.endswith("0") and phone != "AH0"]
    if total > 1 and full and not any(phone.endswith("1") for phone in found):
        # The model stresses a vowel that is weak here: a longer word has its stress somewhere.
        found[full[0]] = found[full[0]][:-1] + "1"
    return found


def without_stress(phones: Sequence[str]) -> list[str]:
    """The same phones as an acoustic model without stress knows them."""
    # A digit by itself is no stress: SAMPA's 2 and 9 are vowels.
    return [phone[:-1] if phone[1:] and phone[-1].isdigit() else phone for phone in phones]
