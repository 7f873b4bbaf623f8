# SPDX-License-Identifier: Apache-2.0
"""Recordings as an aligner takes them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from sniper.tts.aligners.audio import clipped_share, read_speech
from sniper.tts.aligners.english import AUDIO
from sniper.tts.errors import UtteranceError


def test_rate_length_and_remarks(tmp_path):
    tone = np.sin(np.arange(44100 * 31) / 20) * 0.5
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), 44100)
    samples, rate, remarks = read_speech(tmp_path / "a.wav", AUDIO)
    assert (len(samples), rate, remarks) == (16000 * 31, 44100, ["lasts 31 s"])
    soundfile.write(tmp_path / "b.wav", (tone[:16000] * 10).clip(-1, 1), 16000)
    _, _, remarks = read_speech(tmp_path / "b.wav", AUDIO)
    assert len(remarks) == 1 and remarks[0].startswith("clipped: 8")


def test_silence_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with pytest.raises(UtteranceError, match="a.wav is silent"):
        read_speech(tmp_path / "a.wav", AUDIO)


def test_a_loud_recording_is_not_a_clipped_one():
    loud = np.array([[0.5], [1.0], [0.5], [1.0], [-1.0], [0.2]])
    assert clipped_share(loud) == 0
    assert clipped_share(np.ones((4, 2))) == 0.5
    assert clipped_share(np.ones((2, 1))) == 0
