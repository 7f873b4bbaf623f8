# SPDX-License-Identifier: Apache-2.0
"""What is unusual in the utterances that a preparation took: said at its end, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.workfile import Record, features_of
from sniper.tts.text.text import PAUSE, is_phoneme

# In read speech about half of the frames are voiced; a whole corpus beyond these was not tracked
# well, or is no speech.
USUAL_VOICED = (0.3, 0.9)
FEW_VOICED = 0.1  # of one utterance
MAX_CLIPPED = 0.001  # share of samples at full scale
MAX_PAUSE_SECONDS = 5.0
MAX_UTTERANCE_SECONDS = 30.0
# Aligners that know phonemes by three states of 10 ms squeeze those that they do not find to 30 ms.
SQUEEZED_SECONDS = 0.035
# A transcript that says something else has phonemes that are squeezed or drawn out: an utterance of
# so many is reported where their mean length is so many times that of the others, or the inverse.
OTHER_PACE, MIN_PHONEMES = 2.0, 8
# An utterance is reported where the corpus without it would have a mean that lies this many
# deviations elsewhere, or a deviation this many times smaller.
MOVED_MEAN, MOVED_DEVIATION = 0.1, 1.1
_NAMED = 10


class Census:
    """Looks at one utterance after the other, and keeps a few numbers of each.

    Args:
        config: settings of the analysis.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._ids: list[str] = []
        self._frames: list[int] = []
        self._speakers: list[str] = []
        self._voiced: list[float] = []  # share of frames
        self._sounds: list[tuple[int, float, float]] = []  # rate, peak, share clipped
        self._pauses: list[float] = []  # the longest, in seconds
        self._phonemes: list[np.ndarray] = []  # frames of each
        self._pitch: list[np.ndarray] = []  # of the tokens that have one, log Hz
        self._sums: dict[str, list[tuple[int, float, float]]] = {}

    def add(self, record: Record, speaker: str = "") -> None:
        """Take in a usable utterance, of a speaker with this name."""
        features, config = features_of(record), self._config
        self._ids.append(record.id)
        self._frames.append(record.n_frames)
        self._speakers.append(speaker)
        pitch = features.pitch[~np.isnan(features.pitch)].astype(np.float64)
        self._pitch.append(pitch)
        # Work of earlier versions does not say how much is voiced, only whether anything is.
        self._voiced.append(0.0 if len(pitch) == 0 else features.voiced)
        self._sounds.append(record.sound or (config.sample_rate, 0.0, 0.0))
        spoken = [is_phoneme(phone) for phone in record.phones]
        self._phonemes.append(features.durations[np.array(spoken, dtype=bool)])
        pauses = [d for p, d in zip(record.phones, features.durations, strict=True) if p == PAUSE]
        self._pauses.append(max(pauses, default=0) * config.hop_length / config.sample_rate)
        energy = features.energy[~np.isnan(features.energy)].astype(np.float64)
        level = features.mel.mean(axis=1, dtype=np.float64)
        for name, values in (("loudness", level), ("pitch", pitch), ("energy", energy)):
            sums = (len(values), float(values.sum()), float((values**2).sum()))
            self._sums.setdefault(name, []).append(sums)

    def seconds(self) -> np.ndarray:
        """Length of each utterance."""
        return np.array(self._frames) * self._config.hop_length / self._config.sample_rate

    def summary(self) -> str:
        """Hours, who speaks, the shortest and the longest, what was resampled, the range of F0 and
        how long the alignment's phonemes are, in a line.

        Of no utterance: "".
        """
        if not self._ids:
            return ""
        seconds, config = self.seconds(), self._config
        low, high = int(seconds.argmin()), int(seconds.argmax())
        rates = sorted({rate for rate, _, _ in self._sounds} - {config.sample_rate})
        resampled = sum(rate != config.sample_rate for rate, _, _ in self._sounds)
        of = f" from {', '.join(map(str, rates))} Hz" if rates else ""
        pitch = np.concatenate(self._pitch)
        f0 = "no F0"
        if len(pitch):
            f0 = "F0 {:.0f} to {:.0f} Hz (5th to 95th percentile of the phonemes)".format(
                *np.exp(np.percentile(pitch, (5, 95)))
            )
        return (
            f"{seconds.sum() / 3600:.2f} h{self._who()}; "
            f"shortest {seconds[low]:.2f} s ({self._ids[low]}), "
            f"longest {seconds[high]:.2f} s ({self._ids[high]}, {self._frames[high]} frames, which "
            f"train.max_frames must hold); {resampled} resampled{of}; {f0}; {self._alignment()}"
        )

    def _who(self) -> str:
        """How many speakers there are, and how little and how much there is of one."""
        minutes = dict.fromkeys(sorted(set(self._speakers)), 0.0)
        if set(minutes) <= {""}:
            return ""
        for name, seconds in zip(self._speakers, self.seconds(), strict=True):
            minutes[name] += seconds / 60
        least, most = min(minutes, key=minutes.__getitem__), max(minutes, key=minutes.__getitem__)
        if least == most:
            return f" by one speaker ({most})"
        return (
            f" by {len(minutes)} speakers, from {minutes[least]:.1f} min ({least}) to "
            f"{minutes[most]:.1f} min ({most})"
        )

    def _alignment(self) -> str:
        frame = self._config.hop_length / self._config.sample_rate
        lengths = np.concatenate(self._phonemes) * frame
        squeezed = (lengths <= SQUEEZED_SECONDS).mean()
        return (
            f"phonemes of {1000 * np.median(lengths):.0f} ms in the median, {squeezed:.0%} of at "
            f"most {1000 * SQUEEZED_SECONDS:.0f} ms, the longest of {lengths.max():.2f} s"
        )

    def _other_pace(self) -> np.ndarray:
        """Whether an utterance's phonemes are far longer or shorter than the others'."""
        means = np.array([lengths.mean() for lengths in self._phonemes])
        ratio = means / np.median(means) if len(means) else means
        many = np.array([len(lengths) >= MIN_PHONEMES for lengths in self._phonemes], dtype=bool)
        return many & ((ratio >= OTHER_PACE) | (ratio <= 1 / OTHER_PACE))

    def lines(self) -> list[str]:
        """What is unusual, a line each; none where nothing is."""
        voiced = np.array(self._voiced)
        peaks, clipped = (np.array([s[i] for s in self._sounds]) for i in (1, 2))
        found = [
            *self._pitch_lines(voiced),
            self._listed(peaks > 1, "samples outside -1 to 1", "scale them anew"),
            self._listed(
                clipped > MAX_CLIPPED,
                f"more than {MAX_CLIPPED:.1%} of the samples are at full scale",
                "they were clipped where they were recorded",
            ),
            self._listed(
                np.array(self._pauses) > MAX_PAUSE_SECONDS,
                f"a pause longer than {MAX_PAUSE_SECONDS:g} s",
                "cut it out, or look at the alignment",
            ),
            self._listed(
                self.seconds() > MAX_UTTERANCE_SECONDS,
                f"longer than {MAX_UTTERANCE_SECONDS:g} s",
                "cut them at pauses, or raise train.max_frames to the longest",
            ),
            self._listed(
                self._other_pace(),
                f"phonemes {OTHER_PACE:g} times as long or short as in the others",
                "look whether the transcript says what is spoken",
            ),
            *self._outliers(),
        ]
        return [line for line in found if line]

    def _pitch_lines(self, voiced: np.ndarray) -> list[str]:
        config, limits = self._config, "set --f0-min and --f0-max to the voice's range"
        lines = [
            self._listed(
                voiced == 0,
                f"no voiced frame between {config.f0_min:g} and {config.f0_max:g} Hz",
                limits,
            ),
            self._listed(
                (0 < voiced) & (voiced < FEW_VOICED),
                f"fewer than {FEW_VOICED:.0%} of the frames are voiced",
                limits,
            ),
        ]
        some = voiced > 0
        if some.any() and not np.isnan(voiced[some]).all():
            share = np.nansum((voiced * self._frames)[some]) / np.array(self._frames)[some].sum()
            if not USUAL_VOICED[0] <= share <= USUAL_VOICED[1]:
                lines.append(
                    f"{share:.0%} of the frames are voiced, usual are {USUAL_VOICED[0]:.0%} to "
                    f"{USUAL_VOICED[1]:.0%}: {limits}, or look whether it is speech"
                )
        pitch = np.concatenate([*self._pitch, np.zeros(0)])
        for name, limit in (("--f0-min", config.f0_min), ("--f0-max", config.f0_max)):
            near = np.abs(pitch - math.log(limit)) < 0.03
            if len(pitch) and near.mean() > 0.1:
                lines.append(
                    f"the F0 of {near.mean():.0%} of the phonemes is within 3 % of {name} "
                    f"({limit:g} Hz): the voice seems to go beyond it"
                )
        return lines

    def _outliers(self) -> list[str]:
        """Each utterance without which a mean or deviation of the corpus would be another."""
        found = []
        for name, sums in self._sums.items():
            table = np.array(sums, dtype=np.float64)
            table, ids = table[table[:, 0] > 0], np.array(self._ids)[table[:, 0] > 0]
            if len(table) < 8:
                continue  # of so few, each one moves them
            rest = table.sum(axis=0) - table
            mean, deviation = _moments(table.sum(axis=0)[None])
            mean_without, without = _moments(rest)
            own, _ = _moments(table)
            spread = np.median(np.abs(own - np.median(own))) * 1.4826 + 0.05 * without
            far = np.abs(own - np.median(own)) > 6 * spread
            moved = np.abs(mean - mean_without) > MOVED_MEAN * without
            moved |= deviation > MOVED_DEVIATION * without
            for index in np.flatnonzero(moved & far):
                found.append(
                    f"{ids[index]} alone moves the corpus' {name}: mean {mean[0]:.3g} and "
                    f"deviation {deviation[0]:.3g} with it, {mean_without[index]:.3g} and "
                    f"{without[index]:.3g} without: listen to it"
                )
        return found

    def _listed(self, which: Sequence[bool] | np.ndarray, what: str, remedy: str) -> str:
        names = [name for name, unusual in zip(self._ids, which, strict=True) if unusual]
        if not names:
            return ""
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{what} in {len(names)} of {len(self._ids)} utterances "
            f"({', '.join(names[:_NAMED])}{more}): {remedy}"
        )


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of `[N, 3]` counts, sums and sums of squares."""
    mean = sums[:, 1] / sums[:, 0]
    return mean, np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - mean**2, 1e-12))
