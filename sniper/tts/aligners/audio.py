# SPDX-License-Identifier: Apache-2.0
"""Sound as an aligner takes it, and what is remarkable about a recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.reading import full_scale, read_audio
from sniper.tts.errors import UtteranceError, require

# Neighbouring samples at full scale: a loud recording touches it, a clipped one stays there.
_CLIPPED_RUN = 3
_CLIPPED_SHARE = 1e-3
_LONG_SECONDS = 30.0


def read_speech(wav: Path, config: FeatureConfig) -> tuple[np.ndarray, int, list[str]]:
    """Read a recording, mono and resampled.

    Returns:
        Samples `[n]` float64 in [-1, 1] at `config.sample_rate`, the file's own rate in Hz, and
        remarks about it, a phrase each.

    Raises:
        UtteranceError: it cannot be read, or is silent.
    """
    samples = read_audio(wav, config)
    if not samples.any():
        raise UtteranceError(f"{wav} is silent: all of its samples are zero")
    soundfile = require("soundfile")
    rate = soundfile.info(wav).samplerate
    remarks = []
    seconds = len(samples) / config.sample_rate
    if seconds > _LONG_SECONDS:
        remarks.append(f"lasts {seconds:.0f} s")
    # Read once more as the file has it: resampling rounds off what clipping has cut flat.
    raw, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    share = clipped_share(raw, full_scale(wav))
    if share > _CLIPPED_SHARE:
        remarks.append(f"clipped: {share:.1%} of its samples are at full scale")
    # Resampling can pass full scale a little.
    return np.clip(samples, -1.0, 1.0), rate, remarks


def clipped_share(samples: np.ndarray, full: float = 0.999) -> float:
    """Share of samples in runs at the largest amplitude of the file, near or above full scale.

    Args:
        samples: `[n, channels]`.
        full: what counts as full scale.
    """
    high = np.abs(samples) >= full
    if len(high) < _CLIPPED_RUN:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(high, _CLIPPED_RUN, axis=0).all(axis=-1)
    return float(runs.sum() / high.size)
