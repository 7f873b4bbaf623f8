# SPDX-License-Identifier: Apache-2.0
"""From samples to log-mel and energy frames.

All analysis runs in float64 on one utterance at a time, so its numbers depend neither on the number
of worker processes nor on what else is in a batch.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from sniper.tts.audio.config import FeatureConfig


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    linear = hz / (200.0 / 3.0)
    # Slaney: linear below 1 kHz (15 mel), then 27 steps per factor of 6.4.
    return np.where(
        hz < 1000.0, linear, 15.0 + 27.0 * np.log(np.maximum(hz, 1e-9) / 1e3) / np.log(6.4)
    )


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(
        mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) * (mel - 15.0) / 27.0)
    )


@functools.lru_cache(maxsize=8)
def mel_matrix(config: FeatureConfig) -> torch.Tensor:
    """Slaney mel filterbank: triangles of unit area in Hz.

    Returns:
        `[n_mels, n_fft // 2 + 1]` float64; multiplied with an amplitude spectrum `[bins, T]`.

    Source: M. Slaney, Auditory Toolbox (1998); the default of librosa.filters.mel.
    """
    limits = _hz_to_mel(np.array([config.f_min, config.f_max]))
    edges = _mel_to_hz(np.linspace(limits[0], limits[1], config.n_mels + 2))  # [n_mels + 2] Hz
    bins = np.arange(config.n_fft // 2 + 1) * (config.sample_rate / config.n_fft)
    rising = (bins[None, :] - edges[:-2, None]) / np.diff(edges[:-1])[:, None]
    falling = (edges[2:, None] - bins[None, :]) / np.diff(edges[1:])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    # Of equal area, so that white noise gives the same value in narrow and wide bands.
    triangles *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles)


def spectrum(audio: np.ndarray, config: FeatureConfig) -> torch.Tensor:
    """Amplitude spectrum |STFT| with a Hann window, centred, reflect padding.

    Args:
        audio: `[n]` samples, at least `config.min_samples`.

    Returns:
        `[n_fft // 2 + 1, n // hop]` float64.
    """
    # The periodic window, as in librosa and ESPnet; the symmetric one gives slightly other mels.
    window = torch.hann_window(config.win_length, dtype=torch.float64)
    stft = torch.stft(
        torch.from_numpy(np.asarray(audio, dtype=np.float64)),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        win_length=config.win_length,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    return stft.abs()[:, : config.n_frames(len(audio))]


def log_mel(amplitude: torch.Tensor, config: FeatureConfig) -> np.ndarray:
    """log(max(M |STFT|, floor)) of `[bins, T]`, as `[T, n_mels]` float32."""
    # Of the amplitude and not of the power, as in ESPnet and HiFi-GAN.
    mel = (mel_matrix(config) @ amplitude).clamp_min(config.floor)  # [n_mels, T]
    logarithm = mel.log10() if config.log_base == "10" else mel.log()
    return logarithm.T.contiguous().float().numpy()


def energy(amplitude: torch.Tensor) -> np.ndarray:
    """sqrt(sum of |STFT|^2 over bins) of `[bins, T]`, as `[T]` float64."""
    return amplitude.square().sum(0).sqrt().numpy()
