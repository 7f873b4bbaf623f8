# SPDX-License-Identifier: Apache-2.0
"""Plain English sentences from a small grammar of our own, for the synthetic demo corpus."""

import random

_PEOPLE = """
the old gardener; a young painter; my sister; her brother; the quiet teacher; our neighbour; the
baker; two children; a tired traveller; the librarian; a cheerful boy; the captain; their
grandmother; the girl with the yellow umbrella; a famous musician; the fisherman; an honest judge;
the shepherd; several students; the watchmaker; my favourite uncle; the queen; a clever engineer;
the postman
"""
_ANIMALS = """
a small fox; the grey horse; our cat; three white geese; a brown owl; the shy deer; a patient
donkey; the dog next door; a pair of swans; the youngest lamb; an enormous fish; a blue jay
"""
_THINGS = """
a wooden boat; the green bicycle; an apple pie; the broken clock; a letter; some fresh bread; a
treasure map; the copper kettle; a jar of honey; an old coin; a warm coat; the garden gate; a long
story; the silver spoon; an unusual picture; a basket of oranges; the little violin; a cup of tea;
the beige curtain; her first poem; a bunch of tulips; the heavy box
"""
_DONE = """
found; carried; remembered; painted; noticed; borrowed; admired; sold; lost; measured; polished;
described; brought home; looked at; hid; enjoyed; repaired; wrapped; chose; asked for
"""
_MOVED = """
walked; wandered; waited; slept; danced; sat down; stood still; laughed; sang softly; turned
around; hurried; played; rested; arrived; vanished; ran
"""
_PLACES = """
by the river; in the village; near the old bridge; under the apple tree; on the beach; behind the
church; in the kitchen; at the edge of the forest; beside the fire; on the way to school; across
the valley; in the market square; at the station; along the narrow path; above the harbour;
between the houses
"""
_TIMES = """
in the morning; last night; on Thursday; before breakfast; after the storm; at noon; all
afternoon; early in June; for an hour; just before dawn; every winter; in the evening; once a
year; yesterday
"""
_WEATHER = """
the rain had stopped; the moon was bright; it was still dark; the wind was cold; nobody was
watching; the snow lay deep; the bells were ringing; the leaves were falling; the road was empty;
the sea was calm; there was plenty of time; the air smelled of smoke
"""
_MANNER = """
slowly; without a word; with great pleasure; very carefully; as usual; in a hurry; with both
hands; for no reason; rather loudly; at once
"""
_QUALITY = """
beautiful; far too small; surprisingly heavy; worth keeping; almost new; quite ordinary; as good
as gold; not very useful; hard to forget; ready at last
"""
_NUMBERS = """
two; three; four; five; six; seven; eight; nine; ten; twelve; fifteen; twenty; thirty; a hundred
"""

_WORDS = {
    "person": _PEOPLE,
    "animal": _ANIMALS,
    "thing": _THINGS,
    "did": _DONE,
    "moved": _MOVED,
    "place": _PLACES,
    "time": _TIMES,
    "weather": _WEATHER,
    "manner": _MANNER,
    "quality": _QUALITY,
    "number": _NUMBERS,
}

# A name in braces is replaced by a choice from its list. Short patterns stand twice: they are what
# a small model learns first.
_PATTERNS = (
    "{person} {did} {thing}.",
    "{person} {did} {thing}.",
    "{person} {moved} {place}.",
    "{person} {moved} {place}.",
    "{animal} {moved} {place}.",
    "{animal} {moved} {place}.",
    "{person} {did} {thing} {place}.",
    "{time}, {person} {did} {thing}.",
    "{time}, {animal} {moved} {place}.",
    "{person} {moved} {place}, and {animal} {moved} too.",
    "{weather}, so {person} {moved} {place}.",
    "When {weather}, {person} {did} {thing}.",
    "{person} {did} {thing}; {weather}.",
    "{person} {moved} {place} {manner}.",
    "{manner}, {person} {did} {thing}.",
    "{thing} was {quality}.",
    "{thing} was {quality}!",
    "{thing} was {quality}, but {person} {did} {thing} instead.",
    "Do you know why {person} {moved} {place}?",
    "Is it true that {person} {did} {thing}?",
    "Was {thing} really {quality}?",
    "Who {did} {thing} {time}?",
    "Look, {animal}!",
    "What a day: {person} {did} {thing}, and {weather}!",
    "{number} people {moved} {place} {time}.",
    "There were {number} boats {place}, and {weather}.",
    "{person}, {person} and {person} {moved} {place}.",
)


def _choices(words: str) -> list[str]:
    return [" ".join(word.split()) for word in words.split(";")]


def demo_sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences, a pure function of its arguments.

    Args:
        count: up to 100,000; a larger count starts with the same sentences as a smaller one.
        seed: another seed gives other sentences.

    Raises:
        ValueError: a count outside 1..100000.
    """
    if not 1 <= count <= 100_000:
        raise ValueError(f"the number of sentences must lie in 1..100000, got {count}")
    rng = random.Random(seed)
    words = {name: _choices(text) for name, text in _WORDS.items()}
    # A dict keeps the order of making, so that more sentences begin with the same ones.
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        sentences[_sentence(rng, words)] = None
    return list(sentences)


def _sentence(rng: random.Random, words: dict[str, list[str]]) -> str:
    used: set[str] = set()
    parts = []
    for piece in rng.choice(_PATTERNS).split("{"):
        name, brace, rest = piece.partition("}")
        if not brace:
            parts.append(piece)
            continue
        # The same person twice in a sentence would read oddly.
        word = rng.choice([word for word in words[name] if word not in used])
        used.add(word)
        parts.append(word + rest)
    text = "".join(parts)
    # Not capitalize(), which makes the rest small: Thursday, June.
    return text[0].upper() + text[1:]
