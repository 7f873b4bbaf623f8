# SPDX-License-Identifier: Apache-2.0
"""Vocoders for a voice: mels are converted exactly or refused, pieces are the whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from vocoders import write_hugging_face, write_jik876, write_parallel_wavegan

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.griffin_lim import mel_to_audio
from sniper.tts.audio.spectrogram import log_mel, spectrum
from sniper.tts.audio.vocoder import GriffinLim, HifiGanVocoder, load_vocoder
from sniper.tts.errors import SpeechError

HERE = FeatureConfig()  # base 10, from 1e-10

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Loud noise, and silence below every floor."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 0.1, 256 * 40), np.zeros(256 * 20)])


def _mel(sound: np.ndarray, **settings) -> np.ndarray:
    features = dataclasses.replace(HERE, **settings)
    return log_mel(spectrum(sound, features), features)


def test_griffin_lim_is_the_default(sound: np.ndarray):
    vocoder, mel = load_vocoder(None, HERE), _mel(sound)
    assert isinstance(vocoder, GriffinLim) and "--vocoder" in vocoder.about
    np.testing.assert_array_equal(vocoder(mel), mel_to_audio(mel, HERE, limit=False))


def test_the_logarithm_is_converted(tmp_path: Path, sound: np.ndarray):
    """As if the sound had been analysed as the vocoder's was."""
    reference = write_jik876(tmp_path)
    theirs = torch.from_numpy(_mel(sound, log_base="e", floor=1e-5))
    audio = load_vocoder(tmp_path, HERE)(_mel(sound))
    assert audio.dtype == np.float32 and np.abs(audio).max() <= 1
    np.testing.assert_allclose(audio, reference(theirs[None])[0].numpy(), atol=1e-4)


def test_the_normalisation_is_converted(tmp_path: Path, sound: np.ndarray):
    reference, mean, scale = write_parallel_wavegan(tmp_path)
    theirs = torch.from_numpy((_mel(sound) - mean) / scale)
    from_e = load_vocoder(tmp_path, dataclasses.replace(HERE, log_base="e"))
    wanted = reference(theirs[None])[0].numpy()
    np.testing.assert_allclose(load_vocoder(tmp_path, HERE)(_mel(sound)), wanted, atol=1e-4)
    np.testing.assert_allclose(from_e(_mel(sound, log_base="e")), wanted, atol=1e-4)


def test_what_files_do_not_say_is_said(tmp_path: Path, sound: np.ndarray):
    reference = write_hugging_face(tmp_path)
    vocoder = load_vocoder(tmp_path, HERE)
    assert "do not say sample_rate, n_fft, win_length, f_min, f_max" in vocoder.about
    wanted = reference(torch.from_numpy(_mel(sound))).numpy()
    np.testing.assert_allclose(vocoder(_mel(sound)), wanted, atol=1e-4)


def test_streaming_gives_the_same_samples(tmp_path: Path, sound: np.ndarray):
    write_jik876(tmp_path)
    vocoder, mel = load_vocoder(tmp_path, HERE), _mel(sound)
    assert isinstance(vocoder, HifiGanVocoder)
    whole = vocoder.generator(vocoder.conversion(torch.from_numpy(mel)[None]))[0].numpy()
    pieces = list(vocoder.stream(mel, chunk=7))
    assert [len(piece) for piece in pieces] == [7 * 256] * 8 + [4 * 256]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)
    np.testing.assert_allclose(vocoder(mel), whole, atol=1e-4)


def test_other_mels_are_refused_with_both_side_by_side(tmp_path: Path):
    write_jik876(tmp_path, fmin=0, fmax=8000, sampling_rate=24000)
    with pytest.raises(SpeechError) as error:
        load_vocoder(tmp_path, HERE)
    assert str(error.value).startswith(
        f"vocoder {tmp_path} was trained on other mels than the voice's: sample_rate 24000 there, "
        "22050 here; f_min 0 there, 80 here; f_max 8000 there, 7600 here. "
    )
    # With options as `prepare` takes them.
    assert str(error.value).endswith("prepared with --sample-rate 24000 --f-min 0 --f-max 8000")
    write_jik876(tmp_path)
    with pytest.raises(SpeechError, match="floor 1e-05 there, 0.001 here"):
        load_vocoder(tmp_path, dataclasses.replace(HERE, floor=1e-3))


def test_mels_that_cannot_be_heard(tmp_path: Path):
    write_jik876(tmp_path)
    vocoder = load_vocoder(tmp_path, HERE)
    for mel, said in (
        (np.zeros((0, 80)), "expected mel"),
        (np.zeros((5, 79)), r"expected mel \[T, 80\], got \[5, 79\]"),
        (np.full((5, 80), np.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=said):
            vocoder(mel.astype(np.float32))
