# SPDX-License-Identifier: Apache-2.0
"""Sound files: what was meant is written, and what would be cut off is said."""

import numpy as np
import pytest
import soundfile

from sniper.tts.audio.writing import save_wav


def test_save_wav(tmp_path):
    save_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -2.0, 2.0]), 22050)
    audio, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 22050
    np.testing.assert_allclose(audio, [0, 0.5, -1, 1], atol=1e-4)


def test_clipping_is_said(tmp_path):
    with pytest.warns(UserWarning, match="loud.wav: samples up to 2 are clipped"):
        save_wav(tmp_path / "loud.wav", np.array([0.5, 2.0]), 22050)
