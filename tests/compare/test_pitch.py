# SPDX-License-Identifier: Apache-2.0
"""F0 by autocorrelation."""

from __future__ import annotations

import numpy as np
import pytest

from sniper.compare.pitch import f0
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.griffin_lim import mel_to_audio
from sniper.tts.audio.spectrogram import log_mel, spectrum

CONFIG = FeatureConfig()


def _voice(hz: np.ndarray | float, seconds: float = 1.0) -> np.ndarray:
    """Ten harmonics of equal strength, their phases apart."""
    clock = np.arange(round(seconds * 22050))
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, clock.shape)) / 22050
    return 0.05 * sum(np.sin(k * phase + k * k) for k in range(1, 11))


@pytest.mark.parametrize("hz", [82.0, 110.0, 173.3, 251.0, 390.0])
def test_a_voice(hz):
    audio = _voice(hz)
    found = f0(audio, CONFIG)
    assert len(found) == len(audio) // 256
    np.testing.assert_allclose(found[5:-5], hz, rtol=2e-3)


def test_a_voice_that_moves():
    hz = np.linspace(120, 180, 22050)
    np.testing.assert_allclose(f0(_voice(hz), CONFIG)[5:-5], hz[::256][5:86][:76], rtol=0.01)


def test_noise_silence_and_what_is_too_quiet_are_unvoiced():
    noise = 0.1 * np.random.default_rng(0).normal(size=22050)
    assert (f0(noise, CONFIG) > 0).mean() < 0.05
    assert (f0(np.zeros(5000), CONFIG) == 0).all()
    assert len(f0(np.zeros(0), CONFIG)) == 0
    audio = np.concatenate([_voice(150.0), 0.01 * _voice(150.0)])
    found = f0(audio, CONFIG)
    assert (found[5:80] > 0).all() and (found[95:] == 0).all()


def test_a_voice_through_griffin_lim():
    audio = _voice(140.0)
    mel = log_mel(spectrum(audio, CONFIG), CONFIG)
    found = f0(mel_to_audio(mel, CONFIG, n_iter=30), CONFIG)[5:-5]
    voiced = found[found > 0]
    assert len(voiced) > 0.9 * len(found)
    assert np.abs(np.log(voiced / 140)).max() < 0.05
