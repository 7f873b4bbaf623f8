# SPDX-License-Identifier: Apache-2.0
"""Sound files that would poison the statistics or never end are refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import soundfile

from sniper.tts.aligners.audio import read_speech
from sniper.tts.audio import FeatureConfig, read_audio
from sniper.tts.audio.reading import read_sound
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


KINDS = [
    ("WAV", "LITTLE"),
    ("WAV", "BIG"),  # RIFX
    ("RF64", "FILE"),
    ("AIFF", "FILE"),
    ("AIFF", "LITTLE"),  # AIFC
    ("SVX", "FILE"),
    ("AU", "BIG"),
    ("AU", "LITTLE"),
    ("W64", "FILE"),
    ("NIST", "FILE"),
]


@pytest.mark.parametrize(("kind", "endian"), KINDS)
def test_sound_that_is_cut_off(tmp_path, kind, endian):
    """libsndfile reads what is left of these without a word."""
    path, config = tmp_path / "a.wav", FeatureConfig()
    soundfile.write(path, np.full(22050, 0.1), 22050, "PCM_16", endian, kind)
    assert len(read_audio(path, config)) == 22050
    data = path.read_bytes()
    # AIFF counts eight bytes before the samples.
    more = 8 if kind == "AIFF" else 0
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UtteranceError, match=f"promises {44100 + more} bytes of audio, 2"):
        read_audio(path, config)
    path.write_bytes(data[:13])
    with pytest.raises(UtteranceError, match="truncated"):
        read_audio(path, config)


@pytest.mark.parametrize("length", [0x7F000008, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize(("kind", "name"), [("WAV", b"data"), ("AIFF", b"SSND"), ("AU", b".snd")])
def test_a_length_that_its_writer_could_not_know(tmp_path, kind, name, length):
    """Into a pipe, as sox, espeak-ng and ffmpeg write."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(22050, 0.1), 22050, "PCM_16", "FILE", kind)
    data = bytearray(path.read_bytes())
    at = data.index(name) + (8 if kind == "AU" else 4)
    data[at : at + 4] = struct.pack("<I" if kind == "WAV" else ">I", length)
    path.write_bytes(data)
    assert len(read_audio(path, FeatureConfig())) == 22050
    data[at : at + 4] = struct.pack("<I" if kind == "WAV" else ">I", 0x7EFFFFFF)
    path.write_bytes(data)
    with pytest.raises(UtteranceError, match="promises 2130706431 bytes of audio, 441"):
        read_audio(path, FeatureConfig())


def test_lengths_that_lead_nowhere(tmp_path):
    """Damaged headers end the search."""
    path = tmp_path / "a.wav"
    for kind, at, length in (("W64", 56, 0), ("W64", 56, 2**64 - 1), ("RF64", 16, 2**32 - 1)):
        soundfile.write(path, np.full(22050, 0.1), 22050, format=kind)
        data, width = bytearray(path.read_bytes()), 8 if kind == "W64" else 4
        data[at : at + width] = length.to_bytes(width, "little")
        path.write_bytes(data)
        with pytest.raises(UtteranceError, match="it holds no audio"):
            read_audio(path, FeatureConfig())


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "ALAW", "ULAW", "FLOAT"])
def test_clipping_is_seen_in_every_format(tmp_path, subtype):
    """Of which the largest sample is 0.98 in telephone's."""
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.clip(3 * np.sin(np.arange(4000) / 30), -1, 1), 22050, subtype=subtype)
    assert read_sound(path, FeatureConfig()).clipped > 0.7
    _, _, remarks = read_speech(path, FeatureConfig())
    assert remarks and "clipped" in remarks[0]
    soundfile.write(path, 0.9 * np.sin(np.arange(4000) / 30), 22050, subtype=subtype)
    assert read_sound(path, FeatureConfig()).clipped == 0
