# SPDX-License-Identifier: Apache-2.0
"""Where sentences end, and where a dot is no end."""

from __future__ import annotations

import pytest

from sniper.tts.text.sentences import ends_sentence, split_sentences

# The bar stands where one sentence ends and the next begins.
TEXTS = [
    "He left. | She stayed! | Why? | Because…",
    "Mr. Smith met Mrs. Jones and Dr. Who.",
    "J. R. R. Tolkien wrote it. | J. Smith read it.",
    "He lives in the U.S. | It is large.",
    "The U.S. Army left the U.K. yesterday.",
    "Fruit, e.g. apples, i.e. this. | Then more.",
    "Apples, pears, etc. | They are good.",
    "Apples, pears, etc. are good.",
    "At 5 p.m. she left. | At 6 p.m. | She came.",
    "At 5 p.m. Monday he left.",
    "See Fig. 3 and No. 5. | No. | It is not.",
    "Acme Inc. Widgets are good. | It is Acme Inc. | They sell.",
    "Vitamin C. | It helps. | Plan B. | The end.",
    "So am I. | The end.",
    "On Jan. 5 it rained. | On Main St. it snowed. | He lives on Main St. | She too.",
    "3.14 is pi. | Version 1.2.3 is out. | Go to example.com now.",
    "John Smith, Ph.D., spoke. | Washington, D.C. is a city.",
    "“Really?” | she said. | (It was.) | Then he went.",
    "Wait... what? | Yes.",
    "Dr. Adams et al. found it. | Approx. five.",
    "你好。 | 再见！ | नमस्ते। | अच्छा।",
    "A Ph.D. | Then a job.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ends(text):
    sentences = text.split(" | ")
    assert split_sentences(" ".join(sentences)) == sentences


def test_paragraphs_end_sentences_whatever_stands_there():
    assert split_sentences("No end\n\nof Mr.\n\nThe next") == ["No end", "of Mr.", "The next"]


@pytest.mark.parametrize(
    ("word", "after", "ends"),
    [
        ("U.S", " Army", False),
        ("U.S", " It is", True),
        ("U.S", "", True),
        ("etc", " Pears", True),
        ("p.m", " Monday", False),
        ("Mr", " The", False),
        ("J", " Smith", False),
        ("J", "” The", True),
        ("vs", " the", False),
    ],
)
def test_the_dot_of_an_abbreviation(word, after, ends):
    assert ends_sentence(word, after) is ends


def test_a_long_text_is_split_in_little_time():
    import time

    begin = time.process_time()
    assert len(split_sentences("Mr. Smith met J. Doe, etc. and left. " * 5000)) == 5000
    assert time.process_time() - begin < 5
