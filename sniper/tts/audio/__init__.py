# SPDX-License-Identifier: Apache-2.0
"""Sound: reading files, features of samples (log-mel, energy, F0), and mel frames back to sound.

Knows nothing of text, corpora or models.
"""

from __future__ import annotations

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.f0 import interpolated_log, log_f0, track_f0
from sniper.tts.audio.reading import read_audio
from sniper.tts.audio.spectrogram import energy, log_mel, mel_matrix, spectrum

__all__ = [
    "FeatureConfig",
    "energy",
    "interpolated_log",
    "log_f0",
    "track_f0",
    "log_mel",
    "mel_matrix",
    "read_audio",
    "spectrum",
]
