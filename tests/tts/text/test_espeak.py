# SPDX-License-Identifier: Apache-2.0
"""espeak-ng itself: exact times, and reading equals speaking; test_demo has equal bytes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.features import frame_durations
from sniper.tts.errors import SpeechError
from sniper.tts.text.espeak import PAUSES, clean_text, espeak, unknown_letters, word_phones
from sniper.tts.text.frontends import EspeakFrontend
from sniper.tts.text.grammar import demo_sentences

ODD_TEXTS = [
    "Hello world. And, so on",
    'Mr. Smith said: "Go away," and left (at 3.5 pm) — déjà vu… The end',
    "Don't -- 'no way', the dogs' bones.",
    "12,345 apples cost $3.50 on 5/6/2020.",
    "www.example.com is a site, e.g. this one. J. R. R. Tolkien.",
    "First line\n\nsecond line",
    "A very " + "long " * 300 + "end.",
    "Emoji 😀 and 你好.",
]


@pytest.mark.parametrize("text", [*demo_sentences(40, seed=3), *ODD_TEXTS])
def test_reading_equals_speaking(text):
    engine = espeak()
    speech = engine.synthesize(text)
    read = [p for clause in engine.clauses(text) for p in (*clause.phones, clause.mark)]
    assert list(speech.phones) == read
    assert speech.phones[-1] in PAUSES
    boundaries = np.array([*speech.starts, len(speech.audio)])
    assert boundaries[0] == 0 and (np.diff(boundaries) >= 0).all()
    n_frames = len(speech.audio) // 256
    durations = frame_durations(boundaries, n_frames, FeatureConfig())
    assert durations.sum() == n_frames and durations[-1] >= 4, "the closing pause is heard"


def test_punctuation_becomes_the_pause_token():
    clauses = espeak().clauses("Wait, please; then: go! Why? Because.")
    assert [clause.mark for clause in clauses] == [",", ";", ":", "!", "?", "."]


def test_titles_do_not_end_a_clause():
    assert len(espeak().clauses("Mr. Brown met Dr. Green.")) == 1


def test_clean_text():
    assert clean_text('"Well," he said -- (quietly).') == "Well, he said, quietly."
    assert clean_text("don't  'stop'") == "don't stop"


def test_a_long_data_path_works(tmp_path):
    import espeakng_loader

    folder = tmp_path / ("x" * 120) / ("y" * 120)
    folder.mkdir(parents=True)
    (folder / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    code = (
        "import espeakng_loader; from sniper.tts.text.espeak import espeak; "
        f"espeakng_loader.get_data_path = lambda: {str(folder / 'espeak-ng-data')!r}; "
        "print(espeak().clauses('Yes.')[0].phones)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(("j", "ˈɛ", "s"))


def test_threads_take_turns():
    engine = espeak()
    sentences = demo_sentences(24, seed=5)
    expected = [engine.clauses(sentence) for sentence in sentences]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(engine.clauses, sentences)) == expected


def test_a_voice_has_the_name_of_its_language_too():
    """Their files are called en and fr."""
    british = espeak().clauses("bird hair", "en-gb")
    assert british == espeak().clauses("bird hair", "en") != espeak().clauses("bird hair", "en-us")
    assert espeak().clauses("jour", "fr-fr")[0].phones == ("ʒ", "ˈu", "ʁ")


def test_letters_that_a_voice_does_not_know_are_not_read_by_their_script():
    """It would say "Chinese letter, Chinese letter", and a corpus be aligned with that."""
    assert unknown_letters("水をマレーシアから", "ja") == ["水"]
    assert unknown_letters("das привет λ é", "de") == list("привет")
    # In the second the points alone are not known, and the voice spells the word.
    for voice, word in (("ja", "日本"), ("he", "שָׁלוֹם"), ("ko", "國")):
        assert word_phones(word, voice) == ()
    known = (
        "ja マレーシア がっこう cmn 你好 ko 책을 ru привет he שלום hi किताबें ar كِتَابٌ de λ fa کتاب‌ها"
    )
    for entry in known.split(" "):
        if entry.isascii():
            voice = entry
        else:
            assert word_phones(entry, voice), entry
    with pytest.raises(
        SpeechError, match="voice en-us does not know the letters 你 好 in the text"
    ):
        EspeakFrontend("en-us").phones("Hello 你好.")


def test_errors_are_said():
    for voice in ("klingon-7", ""):
        with pytest.raises(SpeechError, match=f"no voice '{voice}'"):
            espeak().clauses("Hello.", voice)
    for text in ("", "...", "—"):
        assert espeak().clauses(text) == []
        with pytest.raises(SpeechError, match="no known phoneme"):
            espeak().synthesize(text)
