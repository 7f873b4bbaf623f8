# SPDX-License-Identifier: Apache-2.0
"""Sound files that would poison the statistics or never end are refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import soundfile

from sniper.tts.audio import FeatureConfig, read_audio
from sniper.tts.errors import UtteranceError


@pytest.mark.parametrize("scale", [32768.0, 1e308])
def test_samples_far_outside_full_scale(tmp_path, scale):
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.full(4000, scale), 22050, subtype="DOUBLE")
    with pytest.raises(UtteranceError, match="loud.wav holds samples up to .*expected within"):
        read_audio(path, FeatureConfig())


@pytest.mark.parametrize("rate", [1, 1_000_000_000])
def test_a_rate_that_no_recording_has(tmp_path, rate):
    path = tmp_path / "rate.wav"
    soundfile.write(path, np.full(4000, 0.1), 22050)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    with pytest.raises(UtteranceError, match=f"rate.wav says a sample rate of {rate} Hz"):
        read_audio(path, FeatureConfig())


def test_a_file_is_measured_before_it_is_read(tmp_path, monkeypatch):
    """Reading or resampling it would take minutes and gigabytes."""
    import sniper.tts.audio.reading as reading

    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(700 * 1000), 1000)
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100), 22050)
    monkeypatch.setattr(soundfile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UtteranceError, match="long.wav lasts 700 s, at most 600"):
        read_audio(path, FeatureConfig())
    with pytest.raises(UtteranceError, match="short.wav is too short: 100 samples"):
        read_audio(short, FeatureConfig())
    assert reading.MAX_SECONDS == 600


def test_what_is_known_of_a_file(tmp_path):
    from sniper.tts.audio.reading import read_sound

    samples = np.full(16000, 0.25)
    samples[:160] = 1.0
    samples[8000] = -1.5
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    sound = read_sound(tmp_path / "a.wav", FeatureConfig())
    assert (sound.rate, sound.peak) == (16000, 1.5) and len(sound.samples) == 22050
    assert sound.clipped == 161 / 16000


def test_compressed_sound_that_is_cut_off(tmp_path):
    """Of an MP3 the header still tells the whole length."""
    clock = np.arange(3 * 22050) / 22050
    path, cut = tmp_path / "whole.mp3", tmp_path / "cut.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 200 * clock), 22050, format="MP3")
    config = FeatureConfig()
    assert len(read_audio(path, config)) == pytest.approx(3 * 22050, rel=0.05)
    data = path.read_bytes()
    cut.write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(UtteranceError, match="cut.wav is truncated: its header promises 3"):
        read_audio(cut, config)
