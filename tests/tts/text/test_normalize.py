# SPDX-License-Identifier: Apache-2.0
"""English numbers and abbreviations, as literals."""

import pytest

from sniper.tts.text.normalize import normalize_english, number_words, ordinal_words


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
    ("text", "words"),
    [
        (
            "In 1984, 1905 and 2005.",
            "In nineteen eighty four, nineteen oh five and two thousand five.",
        ),
        ("the 1990s", "the nineteen nineties"),
        ("1,984 sheep", "one thousand nine hundred eighty four sheep"),
        ("3.14", "three point one four"),
        ("$3.50 or £1", "three dollars and fifty cents or one pound"),
        ("$2.5 million", "two point five million dollars"),
        ("5% & more", "five percent  and  more"),
        ("the 21st", "the twenty first"),
        ("Mr. Black, No. 5", "mister Black, number five"),
        ("He said no.", "He said no."),
        ("Add 1/2 cup", "Add one half cup"),
        ("3/4", "three quarters"),
        ("24/7", "twenty four seven"),
        (".5 cup", "point five cup"),
        ("10 000", "ten thousand"),
        ("2×3", "two times three"),
        ("two + two = four", "two  plus  two  equals  four"),
        ("20°", "twenty degrees "),
        ("#1", " number one"),
        ("@ ten", " at  ten"),
        ("-5 to 3–7", "minus five to three to seven"),
        ("at 10:05", "at ten oh five"),
        ("5 km", "five kilometers"),
        ("version 3.2.1", "version three point two point one"),
        ("J. R. R. Tolkien, U.S. law", "J R R Tolkien, U S law"),
    ],
)
def test_text(text, words):
    assert normalize_english(text) == words
