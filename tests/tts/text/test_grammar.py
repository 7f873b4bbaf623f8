# SPDX-License-Identifier: Apache-2.0
"""The demo's sentences: many, different, well formed and always the same."""

import re

import pytest

from sniper.tts.text.grammar import demo_sentences


def test_a_pure_function_of_its_arguments():
    assert demo_sentences(300, seed=1) == demo_sentences(300, seed=1)
    assert demo_sentences(300, seed=1) != demo_sentences(300, seed=2)
    assert demo_sentences(300, seed=1)[:50] == demo_sentences(50, seed=1)


def test_sentences_are_well_formed():
    sentences = demo_sentences(2000)
    assert len(set(sentences)) == 2000
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:]+[.?!]", sentence), sentence
        assert "  " not in sentence and 3 <= len(sentence.split()) <= 30
    assert len({word for sentence in sentences for word in sentence.split()}) > 200


@pytest.mark.parametrize("count", [0, -1, 100_001])
def test_counts_out_of_range(count):
    with pytest.raises(ValueError, match="1..100000"):
        demo_sentences(count)
