# SPDX-License-Identifier: Apache-2.0
"""Features of one utterance, averaged per token, and their statistics over a corpus."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sniper.tts import audio as analysis
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import UtteranceError


@dataclass(frozen=True)
class Features:
    """What a model learns from, not normalised.

    Args:
        mel: `[T, n_mels]` float32, log amplitude.
        durations: `[L]` int32 frames; they sum to T.
        pitch: `[L]` float32, mean log F0; NaN where there is none (a token of no frames, or an
            utterance without a voiced frame).
        energy: `[L]` float32; NaN for a token of no frames.
        voiced: share of the frames in which an F0 was found; NaN where that is not known.
    """

    mel: np.ndarray
    durations: np.ndarray
    pitch: np.ndarray
    energy: np.ndarray
    voiced: float = math.nan


def frame_durations(boundaries: np.ndarray, n_frames: int, config: FeatureConfig) -> np.ndarray:
    """Whole frames per token: rounded cumulative boundaries, differenced.

    Args:
        boundaries: `[L + 1]` sample positions (fractions allowed), from 0, not decreasing; the
            last one is replaced by the end of the audio.
        n_frames: frames of the utterance.

    Returns:
        `[L]` int32 that sum to `n_frames` exactly.
    """
    # np.round takes halves to the even neighbour, now up and now down; floor(x + 0.5) always takes
    # them up.
    frames = np.floor(np.asarray(boundaries, dtype=np.float64) / config.hop_length + 0.5)
    frames = np.minimum(frames, n_frames).astype(np.int32)
    # The last frames belong to the last token, whatever the aligner's clock says.
    frames[-1] = n_frames
    return np.diff(frames)


def average_by_duration(values: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Mean of the frames of each token, NaN for a token of no frames.

    Args:
        values: `[T]`, T = sum of durations.
        durations: `[L]` frames.

    Returns:
        `[L]` float32.
    """
    # Differences of running sums, in double: no loop over tokens, and no loss in long recordings.
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.cumsum(durations)
    with np.errstate(invalid="ignore"):
        return ((sums[ends] - sums[ends - durations]) / durations).astype(np.float32)


def extract(samples: np.ndarray, boundaries: np.ndarray, config: FeatureConfig) -> Features:
    """Analyse one utterance.

    Args:
        samples: `[n]` at `config.sample_rate`.
        boundaries: `[L + 1]` token boundaries in samples, see `frame_durations`.

    Raises:
        UtteranceError: durations and frames do not match.
    """
    n_frames = config.n_frames(len(samples))
    durations = frame_durations(boundaries, n_frames, config)
    if durations.min() < 0 or durations.sum() != n_frames:
        total = durations.clip(min=0).sum()
        raise UtteranceError(f"the durations sum to {total} frames but the audio has {n_frames}")
    amplitude = analysis.spectrum(samples, config)
    f0 = analysis.track_f0(samples, config)
    # Interpolated through what is unvoiced, so that a consonant has the pitch of the vowels around
    # it.
    log_f0 = analysis.interpolated_log(f0)
    # A whisper has no pitch; the rest of it is still worth learning from.
    if log_f0 is None:
        log_f0 = np.full(n_frames, math.nan)
    return Features(
        mel=analysis.log_mel(amplitude, config),
        durations=durations,
        pitch=average_by_duration(log_f0, durations),
        energy=average_by_duration(analysis.energy(amplitude), durations),
        voiced=float(np.mean(f0 > 0)),
    )


@dataclass(frozen=True)
class Prosody:
    """Mean and standard deviation of one speaker's pitch and energy, over tokens with a value."""

    pitch_mean: float
    pitch_std: float
    energy_mean: float
    energy_std: float


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation over the training set.

    Args:
        mel_mean, mel_std: `[n_mels]` per mel bin over frames.
        pitch_mean, pitch_std, energy_mean, energy_std: over tokens that have a value.
    """

    mel_mean: np.ndarray
    mel_std: np.ndarray
    pitch_mean: float
    pitch_std: float
    energy_mean: float
    energy_std: float

    def of(self, prosody: Prosody) -> "Statistics":
        """These with pitch and energy of one speaker."""
        return replace(self, **vars(prosody))

    def normalize_mel(self, mel: np.ndarray) -> np.ndarray:
        """(mel - mean) / std of `[..., n_mels]`, float32."""
        return (mel - self.mel_mean) / self.mel_std

    def denormalize_mel(self, mel):
        """mel * std + mean of `[..., n_mels]`, a numpy array or a torch tensor."""
        if isinstance(mel, np.ndarray):
            return mel * self.mel_std + self.mel_mean
        return mel * mel.new_tensor(self.mel_std) + mel.new_tensor(self.mel_mean)

    def normalize_pitch(self, pitch: np.ndarray) -> np.ndarray:
        """(pitch - mean) / std of `[L]`; 0, the mean, where there is no value."""
        return _standardize(pitch, self.pitch_mean, self.pitch_std)

    def normalize_energy(self, energy: np.ndarray) -> np.ndarray:
        """(energy - mean) / std of `[L]`; 0, the mean, where there is no value."""
        return _standardize(energy, self.energy_mean, self.energy_std)

    @property
    def prosody(self) -> Prosody:
        """What is of the speaker alone."""
        return Prosody(self.pitch_mean, self.pitch_std, self.energy_mean, self.energy_std)

    def to_json(self) -> dict:
        """Return plain lists and numbers; `from_json` gives back the same bits."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("mel_mean", "mel_std"):
            data[name] = [float(value) for value in data[name]]
        return data

    @classmethod
    def from_json(cls, data: dict) -> "Statistics":
        """Build from `to_json`'s dict."""
        arrays = {name: np.array(data[name], np.float32) for name in ("mel_mean", "mel_std")}
        return cls(**{**data, **arrays})


def _standardize(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    standard = (values - np.float32(mean)) / np.float32(std)
    return np.where(np.isnan(values), np.float32(0.0), standard)


class _Moments:
    """Running mean and variance by merging blocks (Chan et al.), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0
        self.square: np.ndarray | float = 0.0

    def add(self, block: np.ndarray) -> None:
        """Take in `[n, ...]` rows."""
        if len(block) == 0:
            return
        block = block.astype(np.float64)
        mean = block.mean(axis=0)
        delta = mean - self.mean
        total = self.count + len(block)
        self.square = (
            self.square
            + ((block - mean) ** 2).sum(axis=0)
            + delta**2 * (self.count * len(block) / total)
        )
        self.mean = self.mean + delta * (len(block) / total)
        self.count = total

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation; 0 and 1 where nothing came or nothing varies."""
        std = np.sqrt(np.asarray(self.square, dtype=np.float64) / max(1, self.count))
        return np.asarray(self.mean, dtype=np.float64), np.where(std > 1e-8, std, 1.0)


def compute_statistics(utterances: Iterable[Features]) -> Statistics:
    """Mean and deviation over utterances, read once and in order.

    Tokens without a value (NaN: no frames, or no voiced frame in the utterance) do not count.
    """
    mel = _Moments()

    def listen() -> Iterator[Features]:
        for features in utterances:
            mel.add(features.mel)
            yield features

    prosody = compute_prosody(listen())
    mean, std = mel.result()
    return Statistics(mean.astype(np.float32), std.astype(np.float32), **vars(prosody))


def compute_prosody(utterances: Iterable[Features]) -> Prosody:
    """What `compute_statistics` says of pitch and energy."""
    pitch, energy = _Moments(), _Moments()
    for features in utterances:
        pitch.add(features.pitch[~np.isnan(features.pitch)])
        energy.add(features.energy[~np.isnan(features.energy)])
    return Prosody(*(float(value) for moments in (pitch, energy) for value in moments.result()))
