# SPDX-License-Identifier: Apache-2.0
"""What the controls of synthesis do, in units of the world."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sniper.tts.corpus.dataset import load_corpus_info
from sniper.tts.errors import SpeechError
from sniper.tts.model.config import FastSpeech2Config
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.speaker import PAUSE_SECONDS, Speaker
from sniper.tts.text.text import LexiconFrontend, Vocabulary

TEXT = "The grey horse slept by the river."

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def speaker(demo_corpus: Path) -> Speaker:
    """Random weights whose durations are those of speech."""
    torch.manual_seed(0)
    info = load_corpus_info(demo_corpus)
    layers = {"layers": 1, "channels": 32}
    config = FastSpeech2Config(
        vocab_size=len(info.vocabulary),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        ffn_dim=64,
        duration_predictor=layers,
        pitch_predictor=layers,
        energy_predictor=layers,
        postnet_layers=0,
    )
    model = FastSpeech2(config)
    with torch.no_grad():
        model.duration_predictor.out.bias.fill_(2.5)
        model.duration_predictor.out.weight.mul_(0.2)
    return Speaker(model, info)


@pytest.fixture
def heard(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> list:
    """The model's outputs, in its own units."""
    outputs, infer = [], speaker.model.infer

    def listen(*args, **kwargs):
        outputs.append(infer(*args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(speaker.model, "infer", listen)
    return outputs


def test_lengths_agree(speaker: Speaker):
    speech = speaker.speak(TEXT)
    (durations,), (phones,) = speech.durations, speech.phones
    assert len(durations) == len(phones) + 1  # the end of the sentence
    assert speech.mel.shape == (durations.sum(), 80)
    assert speech.audio.shape == (durations.sum() * speaker.info.features.hop_length,)
    assert speech.audio.dtype == speech.mel.dtype == np.float32
    assert 0 < np.abs(speech.audio).max() <= 1
    assert np.array_equal(speaker.speak(TEXT).audio, speech.audio)


@pytest.mark.parametrize("speed", [0.5, 2.0, 4.0])
def test_speed_divides_the_frames(speaker: Speaker, speed: float):
    normal = speaker.speak(TEXT, vocode=False)
    changed = speaker.speak(TEXT, vocode=False, speed=speed)
    assert len(changed.mel) == pytest.approx(len(normal.mel) / speed, abs=1)


@pytest.mark.parametrize("semitones", [12.0, -5.0])
def test_pitch_is_in_semitones_of_hertz(speaker: Speaker, heard: list, semitones: float):
    speaker.speak(TEXT, vocode=False)
    speaker.speak(TEXT, vocode=False, pitch=semitones)
    statistics = speaker.info.statistics
    before, after = (
        (out.pitch[0] * statistics.pitch_std + statistics.pitch_mean).exp() for out in heard
    )
    assert 40 < float(before.median()) < 800  # hertz
    expected = torch.full_like(before, 2 ** (semitones / 12))
    torch.testing.assert_close(after / before, expected, rtol=1e-4, atol=0)
    assert heard[0].durations.equal(heard[1].durations)
    assert not heard[0].mel.equal(heard[1].mel)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_energy_is_a_factor(speaker: Speaker, heard: list, factor: float):
    speaker.speak(TEXT, vocode=False)
    speaker.speak(TEXT, vocode=False, energy=factor)
    statistics = speaker.info.statistics
    before, after = (
        out.energy[0] * statistics.energy_std + statistics.energy_mean for out in heard
    )
    torch.testing.assert_close(after, factor * before, rtol=1e-4, atol=1e-4)
    assert not heard[0].mel.equal(heard[1].mel)


def test_the_mel_is_not_normalised(speaker: Speaker, heard: list):
    speech = speaker.speak(TEXT, vocode=False)
    assert speech.audio.shape == (0,)
    statistics = speaker.info.statistics
    expected = heard[0].mel[0].numpy() * statistics.mel_std + statistics.mel_mean
    np.testing.assert_allclose(speech.mel, expected, rtol=1e-6)


def test_sentences_are_spoken_one_by_one_with_pauses(speaker: Speaker):
    sentences = [TEXT, "Two children laughed!"]
    alone = [speaker.speak(sentence) for sentence in sentences]
    together = speaker.speak(" ".join(sentences))
    assert together.phones == [phones for one in alone for phones in one.phones]
    assert np.array_equal(together.mel, np.concatenate([one.mel for one in alone]))
    pause = round(PAUSE_SECONDS * speaker.info.features.sample_rate)
    first, second = (one.audio for one in alone)
    assert np.array_equal(together.audio[: len(first)], first)
    assert not together.audio[len(first) : len(first) + pause].any()
    assert np.array_equal(together.audio[len(first) + pause :], second)


def test_what_was_guessed_is_said(speaker: Speaker):
    letters = LexiconFrontend({"b": "b"}, trailing_pause=False, language="xx", characters=True)
    spelling = Speaker(speaker.model, replace(speaker.info, frontend=letters))
    speech = spelling.speak("Sim b!", vocode=False)
    assert speech.guessed == {"sim": "s i m"}
    assert spelling.how_guessed(speech.guessed) == (
        "in no lexicon, read by their letters: sim {s i m}"
    )
    assert speaker.speak(TEXT, vocode=False).guessed == {}
    with pytest.raises(SpeechError, match=r": ñu \(the voice has no ñ u\), да \(Cyrillic\);"):
        spelling.speak("Ñu b! Да.")


def test_a_voice_of_mfas_phones_reads_words_it_never_heard(speaker: Speaker):
    phones = "m m̩ mʲ ɪ ɲ i s ɛ ɹ æ k cʰ t ow".split()
    vocabulary = Vocabulary.from_phones(phones)
    frontend = LexiconFrontend({"cat": "cʰ æ t"}, trailing_pause=False)
    info = replace(speaker.info, vocabulary=vocabulary, frontend=frontend)
    script = Speaker(speaker.model, info).read("Mini cat.")
    assert script.guessed == {"mini": "mʲ ɪ ɲ ɪ"}
    said = r": measure \(the voice has no ʒ ə\), shy \(the voice has no ʃ aɪ\);"
    with pytest.raises(SpeechError, match=said):
        Speaker(speaker.model, info).read("Mini measure. Shy cat.")


def test_a_voice_whose_recordings_have_no_pauses_speaks_without(speaker: Speaker):
    frontend = LexiconFrontend({"hut": "h u t"}, trailing_pause=False)
    info = replace(speaker.info, vocabulary=Vocabulary.from_phones("hut"), frontend=frontend)
    silent = Speaker(speaker.model, info)
    with pytest.warns(UserWarning, match="the voice has no pauses.*: left out: sil") as warned:
        speech = silent.speak("Hut, hut, hut. Hut - hut.", vocode=False)
    assert speech.phones == [list("huthuthut"), list("huthut")] and len(warned) == 1
    with pytest.raises(SpeechError, match="these phonemes: x"), pytest.warns(UserWarning):
        silent.read("Hut, {x}.")


def test_phonemes_in_braces_are_taken_as_they_are(speaker: Speaker):
    (phones,) = speaker.speak(TEXT, vocode=False).phones
    braces = "{" + " ".join(phones) + "}"
    assert speaker.speak(braces, vocode=False).phones == [phones]


@pytest.mark.parametrize(
    ("text", "controls", "said"),
    [
        ("", {}, "no known phoneme in the text"),
        (" ... !", {}, "no known phoneme in the text"),
        ("{}", {}, "no known phoneme"),
        ("{QQ ZZ}", {}, "not trained with these phonemes: QQ ZZ"),
        (TEXT, {"speed": 0}, "speed: expected a number from 0.1 to 10, got 0"),
        (TEXT, {"speed": 1e-9}, "speed: "),
        (TEXT, {"speed": math.nan}, "speed: "),
        (TEXT, {"speed": math.inf}, "speed: "),
        (TEXT, {"energy": -1}, "energy: expected a number above 0"),
        (TEXT, {"energy": 1e300}, "energy: "),
        (TEXT, {"pitch": 49}, "pitch: expected semitones within"),
        (TEXT, {"pitch": math.nan}, "pitch: "),
    ],
)
def test_what_cannot_be_spoken(speaker: Speaker, text: str, controls: dict, said: str):
    with pytest.raises(SpeechError) as error:
        speaker.speak(text, **controls)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["duration_predictor", "mel_out"])
def test_broken_weights(speaker: Speaker, part: str):
    broken = FastSpeech2(speaker.model.config)
    with torch.no_grad():
        for p in getattr(broken, part).parameters():
            p.fill_(math.nan)
    with pytest.raises(SpeechError, match="weights are broken"):
        Speaker(broken, speaker.info).speak(TEXT)


def test_a_name_with_accents_is_found_however_they_are_encoded():
    composed, apart = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    for there, asked in ((composed, apart), (apart, composed)):
        model = SimpleNamespace(info=SimpleNamespace(speakers={"anna": None, there: None}))
        assert Speaker.who(model, asked) == there  # pyright: ignore
