# SPDX-License-Identifier: Apache-2.0
"""Sound files that would poison the statistics or never end are refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import soundfile

from sniper.tts.audio import FeatureConfig, read_audio
from sniper.tts.errors import UtteranceError


@pytest.mark.parametrize("scale", [32768.0, 1e308])
def test_samples_far_outside_full_scale(tmp_path, scale):
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.full(4000, scale), 22050, subtype="DOUBLE")
    with pytest.raises(UtteranceError, match="loud.wav holds samples up to .*expected within"):
        read_audio(path, FeatureConfig())


@pytest.mark.parametrize("rate", [1, 1_000_000_000])
def test_a_rate_that_no_recording_has(tmp_path, rate):
    path = tmp_path / "rate.wav"
    soundfile.write(path, np.full(4000, 0.1), 22050)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    with pytest.raises(UtteranceError, match=f"rate.wav says a sample rate of {rate} Hz"):
        read_audio(path, FeatureConfig())
