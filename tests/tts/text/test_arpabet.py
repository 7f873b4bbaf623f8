# SPDX-License-Identifier: Apache-2.0
"""ARPAbet: from espeak-ng's phones, from letters, and its stress."""

from __future__ import annotations

import pytest

from sniper.tts.text.arpabet import (
    PHONES,
    from_ipa,
    from_letters,
    plain_letters,
    with_stress,
    without_stress,
)


@pytest.mark.parametrize(
    ("ipa", "phones"),
    [
        ("h ə l ˈoʊ", "HH AH0 L OW1"),
        ("f ˌoʊ ɾ ə ɡ ɹ ˈæ f", "F OW2 T AH0 G R AE1 F"),
        ("k ˈɑːɹ b ə n", "K AA1 R B AH0 N"),
        ("f ˈaɪɚ", "F AY1 ER0"),
        ("l ˈɪ ɾ əl", "L IH1 T AH0 L"),
    ],
)
def test_ipa(ipa, phones):
    assert from_ipa(ipa.split()) == phones.split()


def test_a_phone_of_another_language_is_none():
    assert from_ipa(["y", "ʁ"]) is None


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("make", "M EY K"),
        ("shopping", "SH AA P IH NG"),
        ("station", "S T AE SH AH N"),
        ("bbc", "B IY B IY S IY"),
        ("née", "N IY"),
        ("the", "TH EH"),
        ("a", "AE"),
        ("e", "EH"),
    ],
)
def test_letters(word, phones):
    assert " ".join(from_letters(word)) == phones
    assert set(from_letters(word)) <= PHONES


def test_another_script_has_no_letters():
    assert from_letters("молодой") is None and plain_letters("नमस्ते") is None
    assert plain_letters("Café's") == "cafes"


def test_stress_is_taken_over_and_weak_forms_have_none():
    model = "AE1 N D".split()
    assert with_stress("AE N D".split(), model) == "AE1 N D".split()
    assert with_stress("AH N D".split(), model) == "AH0 N D".split()
    photo = "F AH0 T AA1 G R AH0 F IY0".split()
    assert with_stress(without_stress(photo), photo) == photo
    assert with_stress("B AH N AE N AH".split(), None) == "B AH1 N AE0 N AH0".split()
    assert with_stress(["OW2"], None) == ["OW2"], "what has its digit keeps it"
