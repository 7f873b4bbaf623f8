# SPDX-License-Identifier: Apache-2.0
"""English alignment: exact times of synthetic speech, recordings of a person, and refusals."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soxr

from sniper.tts.aligners.audio import read_speech
from sniper.tts.aligners.english import AUDIO, RATE, EnglishAligner
from sniper.tts.aligners.pronounce import EnglishWords, acoustic_model, read_variants
from sniper.tts.errors import UtteranceError
from sniper.tts.text.espeak import SAMPLE_RATE, espeak

# Debian's pocketsphinx-testdata; elsewhere, unpacked.
LIBRIVOX = Path(
    os.environ.get("POCKETSPHINX_TESTDATA", "/usr/share/pocketsphinx/test/data"), "librivox"
)


@pytest.fixture(scope="module")
def words() -> EnglishWords:
    return EnglishWords(read_variants(acoustic_model()[1]), espeak=True)


def speak(text: str):
    """What espeak-ng says, at 16 kHz, with the faint noise that every room has."""
    speech = espeak().synthesize(text, "en-us")
    samples = soxr.resample(speech.audio / 32768, SAMPLE_RATE, RATE)
    return speech, samples + np.random.RandomState(0).normal(0, 3e-4, len(samples))


def aligner(words: EnglishWords, texts, folder: Path) -> EnglishAligner:
    return EnglishAligner(
        {w: words.variants(w) for text in texts for w in words.words(text)}, folder
    )


def test_borders_of_synthetic_speech(words, tmp_path):
    text = "Seven small boats were waiting near the old harbour, and the men sang."
    speech, samples = speak(text)
    found, remarks = aligner(words, [text], tmp_path).align(samples, words.words(text))
    assert [w.label for w in found.words if w.label] == words.words(text) and remarks == []
    assert found.phones[-1].end == len(samples) / RATE
    # Sibilants sound alike in both alphabets, and are the same ones in the same order.
    exact = [
        start / SAMPLE_RATE
        for phone, start in zip(speech.phones, speech.starts, strict=True)
        if phone == "s"
    ]
    ours = [phone.start for phone in found.phones if phone.label == "S"]
    assert len(exact) == len(ours) == 4
    np.testing.assert_allclose(ours, exact, atol=0.05)
    assert np.median(np.abs(np.subtract(ours, exact))) < 0.025


def test_words_of_other_audio_do_not_pass(words, tmp_path):
    spoken = "The long story was almost new."
    other = "Seven boats were waiting near the old harbour, and all of the men sang."
    _, samples = speak(spoken)
    both = aligner(words, [spoken, other], tmp_path)
    right, _ = both.align(samples, words.words(spoken))
    try:
        wrong, _ = both.align(samples, words.words(other))
        assert wrong.likelihood < right.likelihood - 1
    except UtteranceError as error:
        assert "do not lead to the end of its audio" in str(error)
    with pytest.raises(UtteranceError, match="do not lead to the end of its audio"):
        both.align(samples[:1500], words.words(spoken))
    again, _ = both.align(samples, words.words(spoken))
    assert again == right, "what failed before leaves no trace"


@pytest.mark.skipif(not LIBRIVOX.is_dir(), reason="Debian's pocketsphinx-testdata is not installed")
def test_recordings_of_a_person(words, tmp_path):
    lines = (LIBRIVOX / "transcription").read_text().splitlines()
    pairs = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line).groups() for line in lines]
    assert len(pairs) == 5
    one = aligner(words, [text for text, _ in pairs], tmp_path)
    for text, name in pairs:
        samples, rate, remarks = read_speech(LIBRIVOX / f"{name}.wav", AUDIO)
        assert rate == RATE and remarks == []
        found, remarks = one.align(samples, words.words(text))
        assert [w.label for w in found.words if w.label] == text.split() and remarks == []
        assert -2 < found.likelihood < 0
        # She begins and ends in silence, and speech is louder than what lies around it.
        assert found.words[0].label == found.words[-1].label == ""
        loud, quiet = [], []
        for word in found.words:
            piece = samples[int(word.start * RATE) : int(word.end * RATE)]
            (loud if word.label else quiet).append(piece)
        assert np.std(np.concatenate(loud)) > 4 * np.std(np.concatenate(quiet))
    # The transcript of another recording: not taken, or far less likely.
    samples, _, _ = read_speech(LIBRIVOX / f"{pairs[2][1]}.wav", AUDIO)
    right, _ = one.align(samples, words.words(pairs[2][0]))
    try:
        wrong, _ = one.align(samples, words.words(pairs[3][0]))
        assert wrong.likelihood < right.likelihood - 2
    except UtteranceError:
        pass
