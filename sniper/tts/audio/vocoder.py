# SPDX-License-Identifier: Apache-2.0
"""Who makes sound of log-mel frames: Griffin-Lim, or a HiFi-GAN trained for the same mels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.griffin_lim import mel_to_audio
from sniper.tts.audio.hifigan import HifiGan
from sniper.tts.audio.hifigan_files import MelSettings, read_hifigan
from sniper.tts.errors import SpeechError

# Frames that a HiFi-GAN computes at once: memory stays bounded, and the frames around a chunk,
# which are computed twice, stay few beside it.
CHUNK_FRAMES = 256
# Logarithm, floor and normalisation are not among these: they can be converted.
_COMPARED = ("sample_rate", "n_fft", "hop_length", "win_length", "n_mels", "f_min", "f_max")
_LOG = {"10": math.log(10.0), "e": 1.0, "2": math.log(2.0)}


class Vocoder(Protocol):
    """Sound of one piece of speech; pieces of one text are to be scaled together."""

    @property
    def about(self) -> str:
        """One line on who it is, and what it could not make sure of."""
        ...

    def __call__(self, mel: np.ndarray) -> np.ndarray:
        """Samples `[T * hop_length]` float32 of log-mels `[T, n_mels]` as the features have them.

        Raises:
            ValueError: a wrong shape, or values that are not finite.
        """
        ...


class GriffinLim:
    """Griffin-Lim for these features: no model, so it speaks for any settings of the mel."""

    about = (
        "sound by Griffin-Lim, a little metallic; a HiFi-GAN does better (--vocoder PATH, in "
        "training vocoder=PATH)"
    )

    def __init__(self, features: FeatureConfig):
        self.features = features

    def __call__(self, mel: np.ndarray) -> np.ndarray:
        # Sentences that are limited one by one would differ in loudness.
        return mel_to_audio(mel, self.features, limit=False)


class MelConversion(nn.Module):
    """Log-mels of one analysis as those of another that differs in logarithm and normalisation.

    Args:
        features: what comes in.
        settings: what goes out; its floor is not below that of `features`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: FeatureConfig, settings: MelSettings):
        super().__init__()
        base = _LOG[settings.log_base]
        self.factor = _LOG[features.log_base] / base
        self.floor = None if settings.floor is None else math.log(settings.floor) / base
        mean = np.zeros(features.n_mels) if settings.mean is None else settings.mean
        scale = np.ones(features.n_mels) if settings.scale is None else settings.scale
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, mel: Tensor) -> Tensor:
        mel = mel * self.factor
        if self.floor is not None:  # what lies below, the other analysis would have raised to it
            mel = mel.clamp_min(self.floor)
        return (mel - self.mean) / self.scale


class HifiGanVocoder:
    """A HiFi-GAN that speaks a model's mels.

    Args:
        generator: in evaluation mode.
        settings: of the mels that it was trained on.
        features: of the mels that come.
        name: what to call it.
        device: where it computes.

    Raises:
        SpeechError: mels that cannot be converted exactly.
    """

    def __init__(
        self,
        generator: HifiGan,
        settings: MelSettings,
        features: FeatureConfig,
        name: str = "the vocoder",
        device: torch.device | str = "cpu",
    ):
        refuse_other_mels(settings, features, name)
        self.features = features
        self.device = torch.device(device)
        self.generator = generator.to(self.device)
        self.conversion = MelConversion(features, settings).to(self.device)
        # Told and not refused: hardly any config on Hugging Face has them all.
        unknown = [key for key in _COMPARED if getattr(settings, key) is None]
        self.about = f"sound by the HiFi-GAN {name}"
        if unknown:
            self.about += f"; its files do not say {', '.join(unknown)}: taken to be the voice's"

    def __call__(self, mel: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self.stream(mel)))

    def module(self) -> nn.Module:
        """The whole way from `[T, n_mels]` to samples `[T * hop_length]`, for export."""
        return _Alone(self.conversion, self.generator)

    def stream(self, mel: np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[np.ndarray]:
        """The samples that a call gives, in pieces of `chunk` frames as they are ready.

        Raises:
            ValueError: a wrong shape, or values that are not finite.
        """
        if mel.ndim != 2 or mel.shape[1] != self.features.n_mels or len(mel) == 0:
            raise ValueError(f"expected mel [T, {self.features.n_mels}], got {list(mel.shape)}")
        if not np.isfinite(mel).all():
            raise ValueError("the mel holds NaN or infinite values: nothing can be heard in it")
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1 frame, got {chunk}")
        frames = self.conversion(torch.as_tensor(mel, dtype=torch.float32).to(self.device))
        for samples in self.generator.stream(frames, chunk):
            yield samples.float().cpu().numpy()


class _Alone(nn.Module):
    def __init__(self, conversion: MelConversion, generator: HifiGan):
        super().__init__()
        self.conversion, self.generator = conversion, generator

    def forward(self, mel: Tensor) -> Tensor:
        return self.generator(self.conversion(mel)[None])[0]


def load_vocoder(
    path: str | Path | None, features: FeatureConfig, device: torch.device | str = "cpu"
) -> Vocoder:
    """The vocoder in `path`, see `read_hifigan`, for mels of `features`; None: Griffin-Lim.

    Raises:
        SpeechError: it cannot be read, or was trained on mels that these are not.
    """
    if path is None:
        return GriffinLim(features)
    generator, settings = read_hifigan(Path(path))
    return HifiGanVocoder(generator, settings, features, str(path), device)


def refuse_other_mels(settings: MelSettings, features: FeatureConfig, name: str) -> None:
    """Refuses mels that no conversion turns exactly into those of the vocoder.

    Raises:
        SpeechError: with the settings of both side by side.
    """
    differing = [
        key
        for key in _COMPARED
        if getattr(settings, key) is not None and getattr(settings, key) != getattr(features, key)
    ]
    # A higher floor can be put on; what lay below a floor is lost.
    if settings.floor is not None and settings.floor < features.floor:
        differing.append("floor")
    if differing:
        both = [(key, getattr(settings, key), getattr(features, key)) for key in differing]
        others = "; ".join(f"{key} {there:g} there, {here:g} here" for key, there, here in both)
        options = " ".join(f"--{key.replace('_', '-')} {there:g}" for key, there, _ in both)
        raise SpeechError(
            f"vocoder {name} was trained on other mels than the voice's: {others}. Take one for "
            f"the voice's mels, or train a voice on a corpus prepared with {options}"
        )
