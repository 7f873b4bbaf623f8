# SPDX-License-Identifier: Apache-2.0
"""From a wav file to log-mel, energy and F0 frames, and the one description of those settings.

All analysis runs in float64 on one utterance at a time, so its numbers depend neither on the number
of worker processes nor on what else is in a batch.
"""

import dataclasses
import functools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sniper.tts.errors import UtteranceError, require


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of the analysis; a checkpoint carries them, a vocoder must agree with them.

    Args:
        sample_rate: Hz; audio at any other rate is resampled to it.
        n_fft, hop_length, win_length: samples.
        n_mels, f_min, f_max: Slaney mel bands between two frequencies in Hz.
        log_base: "10" (ESPnet) or "e" (stock HiFi-GAN).
        floor: smallest mel amplitude before the logarithm.
        f0_min, f0_max: search range of F0 in Hz.

    Raises:
        ValueError: settings that cannot work together.
    """

    sample_rate: int = 22050
    n_fft: int = 1024
    hop_length: int = 256
    win_length: int = 1024
    n_mels: int = 80
    f_min: float = 80.0
    f_max: float = 7600.0
    log_base: Literal["10", "e"] = "10"
    floor: float = 1e-10
    f0_min: float = 80.0
    f0_max: float = 400.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop_length", "win_length", "n_mels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        for name in ("f_min", "f_max", "floor", "f0_min", "f0_max"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must not exceed n_fft {self.n_fft}")
        if self.hop_length > self.win_length:
            raise ValueError(
                f"hop_length {self.hop_length} must not exceed win_length {self.win_length}: "
                "audio between the frames would be lost"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"need 0 <= f_min < f_max <= sample_rate / 2, got f_min {self.f_min}, "
                f"f_max {self.f_max}, sample_rate {self.sample_rate}"
            )
        if self.log_base not in ("10", "e"):
            raise ValueError(f'log_base must be "10" or "e", got {self.log_base!r}')
        if self.floor <= 0:
            raise ValueError(f"floor must be positive, got {self.floor}")
        if not 0 < self.f0_min < self.f0_max <= self.sample_rate / 2:
            raise ValueError(
                f"need 0 < f0_min < f0_max <= sample_rate / 2, got {self.f0_min}, {self.f0_max}"
            )

    def to_json(self) -> dict:
        """Return the settings as a dict of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "FeatureConfig":
        """Build the settings from `to_json`'s dict; an unknown key is a `ValueError`."""
        unknown = set(data) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown feature settings: {', '.join(sorted(unknown))}")
        return cls(**data)

    @property
    def min_samples(self) -> int:
        """Shortest audio that can be analysed: reflect padding needs n_fft // 2 + 1 samples."""
        return max(self.n_fft // 2 + 1, self.hop_length)

    def n_frames(self, n_samples: int) -> int:
        """Frames of `n_samples` samples: n // hop (the centred STFT's last frame is dropped)."""
        return n_samples // self.hop_length


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
    triangles *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles)


def spectrum(audio: np.ndarray, config: FeatureConfig) -> torch.Tensor:
    """Amplitude spectrum |STFT| with a Hann window, centred, reflect padding.

    Args:
        audio: `[n]` samples, at least `config.min_samples`.

    Returns:
        `[n_fft // 2 + 1, n // hop]` float64.
    """
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
    mel = (mel_matrix(config) @ amplitude).clamp_min(config.floor)  # [n_mels, T]
    logarithm = mel.log10() if config.log_base == "10" else mel.log()
    return logarithm.T.contiguous().float().numpy()


def energy(amplitude: torch.Tensor) -> np.ndarray:
    """sqrt(sum of |STFT|^2 over bins) of `[bins, T]`, as `[T]` float64."""
    return amplitude.square().sum(0).sqrt().numpy()


def log_f0(audio: np.ndarray, config: FeatureConfig) -> np.ndarray | None:
    """Natural log of F0 by DIO + StoneMask, linearly interpolated over unvoiced frames.

    Returns:
        `[n // hop]` float64, or None where no frame is voiced.
    """
    pyworld = require("pyworld")
    samples = np.ascontiguousarray(audio, dtype=np.float64)
    period_ms = 1000.0 * config.hop_length / config.sample_rate
    coarse, times = pyworld.dio(
        samples,
        config.sample_rate,
        f0_floor=config.f0_min,
        f0_ceil=config.f0_max,
        frame_period=period_ms,
    )
    f0 = pyworld.stonemask(samples, coarse, times, config.sample_rate)
    # WORLD's own count can differ from n // hop by one through rounding of the period.
    frames = config.n_frames(len(samples))
    f0 = np.pad(f0, (0, max(0, frames - len(f0))))[:frames]
    voiced = np.flatnonzero(f0 > 0)
    if len(voiced) == 0:
        return None
    return np.log(np.interp(np.arange(frames), voiced, f0[voiced]))


def read_audio(path: Path, config: FeatureConfig) -> np.ndarray:
    """Read a sound file as mono at `config.sample_rate`.

    Returns:
        `[n]` float64 in [-1, 1].

    Raises:
        UtteranceError: missing, empty, truncated, unreadable, too short, or with NaN.
    """
    soundfile = require("soundfile")
    if not path.is_file():
        raise UtteranceError(f"no such wav file: {path}")
    _check_complete(path)
    try:
        audio, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = str(error).split(": ", 1)[-1]
        raise UtteranceError(f"{path} cannot be read as audio: {reason}") from error
    mono = audio.mean(axis=1)
    if len(mono) == 0:
        raise UtteranceError(f"{path} holds no audio")
    if not np.isfinite(mono).all():
        raise UtteranceError(f"{path} holds NaN or infinite samples")
    if rate != config.sample_rate:
        mono = require("soxr").resample(mono, rate, config.sample_rate, quality="VHQ")
    if len(mono) < config.min_samples:
        raise UtteranceError(
            f"{path} is too short: {len(mono)} samples, at least {config.min_samples} are needed"
        )
    return mono


def _check_complete(path: Path) -> None:
    """Refuse a RIFF file whose data chunk is cut off: libsndfile reads it without a word."""
    size = path.stat().st_size
    if size == 0:
        raise UtteranceError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                held = size - file.tell()
                # A writer into a pipe cannot know the length and leaves all ones.
                if length != 0xFFFFFFFF and held < length:
                    raise UtteranceError(
                        f"{path} is truncated: its header promises {length} bytes of audio, "
                        f"{held} are there"
                    )
                return
            file.seek(length + length % 2, 1)
    raise UtteranceError(f"{path} is truncated: it holds no audio")
