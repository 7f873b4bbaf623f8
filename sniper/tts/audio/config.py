# SPDX-License-Identifier: Apache-2.0
"""The one description of how sound is analysed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

# Beyond these, arrays are as large as the memory, for nothing that can be heard.
LARGEST = {
    "sample_rate": 1_000_000,
    "n_fft": 65_536,
    "hop_length": 65_536,
    "win_length": 65_536,
    "n_mels": 4_096,
}
# WORLD's filters are as long as the lowest period.
LOWEST_F0 = 1.0


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
            # 256.0 would do for arithmetic and fail deep inside of torch.stft.
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
            if value > LARGEST[name]:
                raise ValueError(f"{name} must be at most {LARGEST[name]}, got {value}")
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
        if self.f0_min < LOWEST_F0:
            raise ValueError(f"f0_min must be at least {LOWEST_F0:g} Hz, got {self.f0_min}")

    def to_json(self) -> dict:
        """Return the settings as a dict of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> FeatureConfig:
        """Build the settings from `to_json`'s dict; an unknown key is a `ValueError`."""
        # A setting that this version does not know may change the analysis, so it cannot be passed
        # over.
        unknown = set(data) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown feature settings: {', '.join(sorted(unknown))}")
        return cls(**data)

    @property
    def min_samples(self) -> int:
        """Shortest audio that can be analysed: reflect padding needs n_fft // 2 + 1 samples."""
        # Audio that is shorter than a hop has no frame.
        return max(self.n_fft // 2 + 1, self.hop_length)

    def n_frames(self, n_samples: int) -> int:
        """Frames of `n_samples` samples: n // hop (the centred STFT's last frame is dropped)."""
        # With the STFT's last frame a vocoder, which makes `hop_length` samples of each, would
        # speak longer than the recording.
        return n_samples // self.hop_length
