# SPDX-License-Identifier: Apache-2.0
"""Where sentences end, and where a dot is no end."""

from __future__ import annotations

import pytest

from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.sentences import ends_sentence, split_sentences
from sniper.tts.text.words import pieces

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
    "He met Gov. Newsom and Lt. Gov. Smith in Ft. Worth. | Then Gen. Grant. | Rep. Smith left.",
    "She met the Gov. | It was late. | He did one more rep. | Bob stopped.",
    "It is 10 ft. tall, 5 ft. 3 in. in all. | It is 10 ft. | Tall it is.",
    "Add 2 oz. of milk, 3 lb. of salt, 2 tbsp. of oil and ½ lb. of butter. | Stir.",
    "It is 3 yd. of cloth, 5 mi. away, 4 km. from here, 10 sq. ft. of it, 2 fl. oz. of that.",
    "Sales of €2,5 Mio. a year, 3 Mrd. € in all. | It weighs 5 kg. | €5 each.",
    "At 5 p.m. EST on Friday, 3 a.m. GMT, 2 p.m. Eastern time. | At 5 p.m. | Et tu.",
    "At 5 p.m. E.S.T. on Friday. | At 6 p.m. E.S.T. | We left. | At 5 p.m. | E. Smith came.",
    "At 5 p.m. | Central banks met. | It ended at 6 p.m. Pacific.",
    "It is 5 kg. | 3 men carried it. | I ran 5 km. | 10 of us did. | It has 5 GB. | 2 TB is more.",
    "It was in the 1980s. | 20 years later it cost $5m. | 3 people paid. | Add 5 lb. 3 oz. of it.",
    "Apples, etc. | Monday we go.",
    "No. | I said no. | No. | V is here. | No. II is here and no. 5 too.",
    "Read Art. IV, Ch. XII, Ch. I, Sec. II and Vols. I and II. | He loves Art. | I too.",
    "“No.” | 5 men left.",
    "He is a good chap. | I like him.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ends(text):
    sentences = text.split(" | ")
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("text", TEXTS)
def test_a_transcript_is_read_as_its_sentences(text):
    """Aligners read it as a whole, a voice speaks sentence by sentence."""
    text = text.replace(" | ", " ")
    parts = [pieces(normalize_english(sentence)) for sentence in split_sentences(text)]
    assert pieces(normalize_english(text)) == sum(parts, [])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("What is this? ☃! Nothing.", ["What is this? ☃!", "Nothing."]),
        ("☃! It is. £!", ["☃! It is. £!"]),
        ("One.\n\n§\n\nTwo.", ["One. §", "Two."]),
        ("£!", ["£!"]),
        ("Really... ... -- ?! “”\n\n—\n\nYes.", ["Really...", "Yes."]),
        ("...", []),
    ],
)
def test_signs_without_a_word_stay_and_pauses_go(text, sentences, recwarn):
    assert split_sentences(text) == sentences
    assert not recwarn


@pytest.mark.parametrize("left", ["😀", "👍🏽!", "* * *", "***", "•", "~~~", "======"])
def test_what_has_no_reading_goes_with_a_warning(left):
    with pytest.warns(UserWarning, match="left out, it has no reading: ") as caught:
        assert split_sentences(f"I love it!\n\n{left}\n\nYes.") == ["I love it!", "Yes."]
    assert left in str(caught[0].message)


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
        ("p.m", " (PST) today", False),
        ("p.m", " Pacific time", False),
        ("etc", " Monday", True),
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
