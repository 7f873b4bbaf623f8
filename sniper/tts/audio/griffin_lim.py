# SPDX-License-Identifier: Apache-2.0
"""Log-mel frames to audio by Griffin-Lim: no model, so it speaks for any mel settings.

Phase is guessed, so the voice sounds a little metallic; a neural vocoder trained for the same mel
settings does better.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.spectrogram import mel_matrix
from sniper.tts.audio.writing import limit_peak


@functools.lru_cache(maxsize=8)
def _inverse_mel(config: FeatureConfig) -> torch.Tensor:
    return torch.linalg.pinv(mel_matrix(config)).float()


def mel_to_amplitude(log_mel: torch.Tensor, config: FeatureConfig) -> torch.Tensor:
    """Amplitude spectrum max(0, pinv(M) exp(mel)) of log-mel frames.

    Args:
        log_mel: `[T, n_mels]`, not normalised, in the base of `config`.

    Returns:
        `[n_fft // 2 + 1, T]` float32.
    """
    mel = log_mel.float()
    mel = 10.0**mel if config.log_base == "10" else mel.exp()
    # The pseudo-inverse falls below zero between bands, and an amplitude cannot be negative.
    return (_inverse_mel(config).to(mel.device) @ mel.T).clamp_min(0.0)


def mel_to_audio(
    log_mel: torch.Tensor | np.ndarray,
    config: FeatureConfig,
    n_iter: int = 60,
    momentum: float = 0.99,
    seed: int = 0,
    limit: bool = True,
) -> np.ndarray:
    """Audio whose log-mel comes near the given one, by fast Griffin-Lim.

    Args:
        log_mel: `[T, n_mels]`, not normalised, in the base of `config`; on any device.
        n_iter: each costs one STFT and its inverse.
        momentum: in [0, 1).
        seed: of the first phase; equal input gives equal samples.
        limit: whether audio with a peak above 1 is scaled down to it. Pieces of one recording are
            to be scaled together, by `limit_peak`.

    Returns:
        `[T * hop_length]` float32 at `config.sample_rate`, within [-1, 1] where limited.

    Raises:
        ValueError: a wrong shape, or values that are not finite.

    Source: Perraudin, Balazs, Søndergaard, A fast Griffin-Lim algorithm (WASPAA 2013).
    """
    frames = torch.as_tensor(log_mel).detach()
    if frames.ndim != 2 or frames.shape[1] != config.n_mels or len(frames) == 0:
        raise ValueError(f"expected mel [T, {config.n_mels}], got {list(frames.shape)}")
    if not torch.isfinite(frames).all():
        raise ValueError("the mel holds NaN or infinite values: nothing can be heard in it")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    amplitude = mel_to_amplitude(frames, config)
    # A centred STFT has one frame more than the n // hop that features keep. A very short mel is
    # held long enough for the reflect padding.
    samples = len(frames) * config.hop_length
    total = max(len(frames), -(-config.min_samples // config.hop_length)) + 1
    last = amplitude[:, -1:].expand(-1, total - len(frames))
    amplitude = torch.cat([amplitude, last], dim=1)
    audio = _griffin_lim(amplitude, config, n_iter, momentum, seed)[:samples]
    audio = audio * _fades(samples, config, audio.device)
    samples_out = audio.cpu().numpy()
    return limit_peak(samples_out) if limit else samples_out


def _griffin_lim(
    amplitude: torch.Tensor, config: FeatureConfig, n_iter: int, momentum: float, seed: int
) -> torch.Tensor:
    window = torch.hann_window(config.win_length, device=amplitude.device)
    shape = {"n_fft": config.n_fft, "hop_length": config.hop_length, "window": window}
    shape["win_length"] = config.win_length
    length = (amplitude.shape[1] - 1) * config.hop_length
    # Drawn on the CPU, so that every device starts from the same phase.
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(amplitude.shape, generator=generator).to(amplitude.device) * (2 * torch.pi)
    phase = torch.polar(torch.ones_like(amplitude), angle)
    previous = torch.zeros_like(phase)
    for _ in range(n_iter):
        audio = torch.istft(amplitude * phase, **shape, length=length)
        rebuilt = torch.stft(audio, **shape, center=True, pad_mode="reflect", return_complex=True)
        # In proportion to the paper's rebuilt + momentum (rebuilt - previous); only the direction
        # of each number is used.
        step = rebuilt - previous * (momentum / (1 + momentum))
        # A bin of exactly zero has no direction, and 0 / 0 would spread NaN over all samples.
        phase = step / step.abs().clamp_min(1e-16)
        previous = rebuilt
    return torch.istft(amplitude * phase, **shape, length=length)


def _fades(samples: int, config: FeatureConfig, device: torch.device) -> torch.Tensor:
    """1 inside, 5 ms ramps at both ends: audio that starts off zero would click."""
    ramp = max(1, min(samples // 2, config.sample_rate // 200))
    position = torch.arange(samples, device=device)
    return (torch.minimum(position, samples - 1 - position) / ramp).clamp_max(1.0)
