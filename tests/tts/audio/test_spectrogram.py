# SPDX-License-Identifier: Apache-2.0
"""Settings, mel filterbank, spectra, F0 and what can be wrong with a sound file."""

import numpy as np
import pytest
import soundfile
import torch

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.f0 import log_f0
from sniper.tts.audio.reading import read_audio
from sniper.tts.audio.spectrogram import energy, log_mel, mel_matrix, spectrum
from sniper.tts.errors import UtteranceError

CONFIG = FeatureConfig()


def tone(seconds: float, hz: float, rate: int = 22050) -> np.ndarray:
    """A voice-like pulse: ten harmonics of `hz`."""
    time = np.arange(int(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 11)) * 0.2


@pytest.mark.parametrize(
    "bad",
    [
        {"sample_rate": 0},
        {"hop_length": 256.0},
        {"win_length": 2048},
        {"hop_length": 1025},
        {"f_max": 12000.0},
        {"f_min": 8000.0},
        {"log_base": "2"},
        {"floor": 0.0},
        {"f0_min": 500.0},
        {"f0_max": float("nan")},
    ],
)
def test_config_refuses_what_cannot_work(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FeatureConfig(**bad)


def test_config_goes_through_json():
    config = FeatureConfig(hop_length=200, log_base="e")
    assert FeatureConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="hop_size"):
        FeatureConfig.from_json({"hop_size": 1})


def test_mel_matrix_linear_part_by_hand():
    # Below 1 kHz the scale is linear: a band over 0..800 Hz peaks at 400 Hz with height 2/800.
    config = FeatureConfig(
        8000, n_fft=40, hop_length=10, win_length=40, n_mels=1, f_min=0.0, f_max=800.0
    )
    expected = torch.zeros(21, dtype=torch.float64)
    expected[1:4] = torch.tensor([0.5, 1.0, 0.5]) * 2 / 800
    torch.testing.assert_close(mel_matrix(config), expected[None])


def test_mel_matrix_logarithmic_part_by_hand():
    # 1 kHz is 15 mel and 6.4 kHz 42: a band between has its centre at 28.5 mel, sqrt(6.4) kHz.
    config = FeatureConfig(
        16000, n_fft=16000, hop_length=100, win_length=400, n_mels=1, f_min=1000.0, f_max=6400.0
    )
    row = mel_matrix(config)[0]
    assert row.argmax() == round(1000 * 6.4**0.5)
    assert row[:1001].sum() < 1e-15 and row[6400:].sum() < 1e-15
    assert row.sum() == pytest.approx(1.0, rel=1e-6)  # unit area in Hz


def test_default_mel_matrix_covers_its_range_only():
    matrix = mel_matrix(CONFIG)
    assert matrix.shape == (80, 513) and (matrix >= 0).all()
    assert (matrix.sum(1) > 0).all(), "an empty band would be constant"
    assert matrix[:, :3].sum() == 0 and matrix[:, 354:].sum() == 0


def test_spectrum_has_one_frame_per_hop():
    for samples in (1024, 1279, 1280, 5000):
        audio = np.random.default_rng(0).normal(size=samples)
        amplitude = spectrum(audio, CONFIG)
        assert amplitude.shape == (513, samples // 256)
        assert log_mel(amplitude, CONFIG).shape == (samples // 256, 80)


def test_spectrum_equals_a_direct_transform():
    audio = np.random.default_rng(1).normal(size=4096)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frame = audio[5 * 256 - 512 : 5 * 256 + 512] * window
    expected = np.abs(np.fft.rfft(frame))
    np.testing.assert_allclose(spectrum(audio, CONFIG)[:, 5].numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(
        energy(spectrum(audio, CONFIG))[5], np.sqrt((expected**2).sum()), rtol=1e-12
    )


def test_silence_is_the_floor():
    amplitude = spectrum(np.zeros(2048), CONFIG)
    assert (log_mel(amplitude, CONFIG) == -10).all()
    natural = FeatureConfig(log_base="e", floor=1e-5)
    np.testing.assert_allclose(log_mel(amplitude, natural), np.log(1e-5), rtol=1e-6)
    assert log_f0(np.zeros(22050), CONFIG) is None


def test_f0_of_a_tone_and_over_a_gap():
    found = log_f0(tone(1.0, 200.0), CONFIG)
    assert found.shape == (86,)
    np.testing.assert_allclose(found[5:-5], np.log(200), atol=0.01)
    gap = np.concatenate([tone(0.5, 150.0), np.zeros(22050), tone(0.5, 300.0)])
    middle = np.exp(log_f0(gap, CONFIG)[len(gap) // 512])
    assert 190 < middle < 260, "linear in Hz between the voiced ends"


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_other_rates_are_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 220.0, rate), rate)
    audio = read_audio(tmp_path / "a.wav", CONFIG)
    assert abs(len(audio) - 22050) <= 1
    np.testing.assert_allclose(np.exp(log_f0(audio, CONFIG)[10:-10]), 220, rtol=0.01)


def test_stereo_becomes_the_mean(tmp_path):
    stereo = np.stack([np.full(2000, 0.5), np.full(2000, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 22050, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", CONFIG), 0.125)


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    good = tmp_path / "good.wav"
    soundfile.write(good, tone(0.5, 200.0), 22050)
    data = good.read_bytes()
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "truncated.wav").write_bytes(data[: len(data) // 2])
    (tmp_path / "header.wav").write_bytes(data[:30])
    (tmp_path / "garbage.wav").write_bytes(b"this is not audio at all" * 10)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 22050)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 22050)
    soundfile.write(tmp_path / "nan.wav", np.full(3000, np.nan), 22050, subtype="FLOAT")
    expected = {
        "missing": "no such wav",
        "empty": "empty",
        "truncated": "truncated",
        "header": "truncated",
        "garbage": "cannot be read as audio",
        "none": "no audio",
        "short": "too short",
        "nan": "NaN",
    }
    for name, message in expected.items():
        with pytest.raises(UtteranceError, match=message) as caught:
            read_audio(tmp_path / f"{name}.wav", CONFIG)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_wav_from_a_pipe_is_complete(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5, 200.0), 22050)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    position = data.index(b"data") + 4
    data[position : position + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav", CONFIG)) == 11025
