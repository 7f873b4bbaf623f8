# SPDX-License-Identifier: Apache-2.0
"""Numbers in words, as literals."""

from __future__ import annotations

import pytest

from sniper.tts.text.numerals import (
    decimal_words,
    fraction_words,
    number_words,
    ordinal_words,
    plural_words,
    power_words,
    roman_value,
    year_words,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (101, "one hundred one"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
        (1_000_001, "one million one"),
        (-7, "minus seven"),
        (10**15, "one" + " zero" * 15),
    ],
)
def test_numbers(value, words):
    assert number_words(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "first"),
        (12, "twelfth"),
        (20, "twentieth"),
        (23, "twenty third"),
        (100, "one hundredth"),
    ],
)
def test_ordinals(value, words):
    assert ordinal_words(value) == words


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (decimal_words("1,234.05"), "one thousand two hundred thirty four point zero five"),
        (decimal_words(".5"), "point five"),
        (decimal_words("0.5"), "zero point five"),
        (decimal_words("007"), "zero zero seven"),
        (decimal_words("५"), "five"),
        (year_words(1905), "nineteen oh five"),
        (year_words(1066), "ten sixty six"),
        (year_words(1000), "one thousand"),
        (year_words(2000), "two thousand"),
        (year_words(2010), "twenty ten"),
        (plural_words("sixty six"), "sixty sixes"),
        (plural_words("ninety"), "nineties"),
        (fraction_words(1, 2), "one half"),
        (fraction_words(3, 8), "three eighths"),
        (fraction_words(8, 3), "eight over three"),
        (fraction_words(1, 64), "one over sixty four"),
        (power_words("2"), "squared"),
        (power_words("⁻³"), "to the power of minus three"),
    ],
)
def test_other_forms(got, words):
    assert got == words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("VIII", 8),
        ("XIV", 14),
        ("MCMXC", 1990),
        ("LVIII", 58),
        ("IIII", None),
        ("VX", None),
        ("", None),
    ],
)
def test_roman(text, value):
    assert roman_value(text) == value
