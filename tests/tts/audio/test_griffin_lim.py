# SPDX-License-Identifier: Apache-2.0
"""Griffin-Lim: near the mel it was given, deterministic, without clicks or clipping."""

import numpy as np
import pytest
import torch

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.griffin_lim import mel_to_amplitude, mel_to_audio
from sniper.tts.audio.spectrogram import log_mel, spectrum
from sniper.tts.audio.writing import limit_peak
from sniper.tts.text.espeak import espeak

CONFIG = FeatureConfig()


@pytest.fixture(autouse=True)
def _one_thread():
    """Short transforms: handing them to more threads costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return espeak().synthesize("The quiet teacher walked by the river.").audio / 32768.0


@pytest.mark.parametrize("log_base", ["10", "e"])
def test_round_trip(speech, log_base):
    config = FeatureConfig(log_base=log_base, floor=1e-4)
    mel = log_mel(spectrum(speech, config), config)
    audio = mel_to_audio(mel, config, n_iter=40)
    assert audio.dtype == np.float32 and len(audio) == len(mel) * 256
    again = log_mel(spectrum(audio, config), config)
    unit = 1.0 if log_base == "10" else np.log(10)
    heard = mel > np.log10(1e-2) * unit
    assert np.abs(again - mel)[heard].mean() < 0.08 * unit


def test_more_iterations_come_nearer(speech):
    mel = log_mel(spectrum(speech, CONFIG), CONFIG)

    def distance(n_iter):
        amplitude = mel_to_amplitude(torch.from_numpy(mel), CONFIG)
        audio = mel_to_audio(mel, CONFIG, n_iter=n_iter)
        return float((spectrum(audio, CONFIG) - amplitude).norm() / amplitude.norm())

    assert distance(30) < 0.6 * distance(0)


def test_deterministic_and_leaves_the_random_state(speech):
    mel = torch.from_numpy(log_mel(spectrum(speech, CONFIG), CONFIG))
    state = torch.get_rng_state()
    first = mel_to_audio(mel, CONFIG, n_iter=3)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(mel_to_audio(mel, CONFIG, n_iter=3), first)
    assert not np.array_equal(mel_to_audio(mel, CONFIG, n_iter=3, seed=1), first)


def test_loud_input_is_scaled_and_the_ends_are_silent(speech):
    mel = log_mel(spectrum(speech * 20, CONFIG), CONFIG)
    audio = mel_to_audio(mel, CONFIG, n_iter=3)
    assert np.abs(audio).max() == pytest.approx(1.0)
    assert audio[0] == 0 and audio[-1] == 0


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_very_short(frames):
    assert (
        len(mel_to_audio(np.full((frames, 80), -3.0, dtype=np.float32), CONFIG, 2)) == frames * 256
    )


def test_bad_values():
    for mel, message in (
        (np.zeros((0, 80)), "expected mel"),
        (np.zeros((5, 79)), r"expected mel \[T, 80\], got \[5, 79\]"),
        (np.full((5, 80), np.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            mel_to_audio(mel.astype(np.float32), CONFIG)
    with pytest.raises(ValueError, match="momentum"):
        mel_to_audio(np.zeros((5, 80), dtype=np.float32), CONFIG, momentum=1.0)


def test_pieces_of_one_recording_have_one_gain():
    rng = np.random.default_rng(0)
    config = FeatureConfig()
    soft = rng.normal(-2.0, 0.1, (20, 80)).astype(np.float32)
    pieces = [mel_to_audio(mel, config, n_iter=2, limit=False) for mel in (soft, soft + 3)]
    assert np.abs(pieces[1]).max() > 1
    whole = limit_peak(np.concatenate(pieces))
    assert np.abs(whole).max() == pytest.approx(1)
    ratio = np.abs(whole[len(pieces[0]) :]).max() / np.abs(whole[: len(pieces[0])]).max()
    assert ratio == pytest.approx(1000, rel=1e-3), "loud stays as much louder as it was"
    again = mel_to_audio(soft + 3, config, n_iter=2)
    assert np.abs(again).max() == pytest.approx(1)
