# SPDX-License-Identifier: Apache-2.0
"""Sound files: what was meant is written, and what would be cut off is said."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sniper.tts.audio import writing
from sniper.tts.audio.writing import Spool, save_wav, save_wav_of
from sniper.tts.errors import SpeechError


def test_save_wav(tmp_path):
    save_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -2.0, 2.0]), 22050)
    audio, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 22050
    np.testing.assert_allclose(audio, [0, 0.5, -1, 1], atol=1e-4)


def test_clipping_is_said(tmp_path):
    with pytest.warns(UserWarning, match="loud.wav: samples up to 2 are clipped"):
        save_wav(tmp_path / "loud.wav", np.array([0.5, 2.0]), 22050)


def test_the_bytes_are_those_of_the_sound_library(tmp_path: Path):
    audio = np.random.default_rng(0).uniform(-1, 1, 1001).astype(np.float32)
    audio[:3] = 1, -1, 0
    soundfile.write(tmp_path / "there.wav", audio, 22050, subtype="PCM_16")
    save_wav(tmp_path / "here.wav", audio, 22050)
    with Spool(tmp_path / "blocks.wav") as spool:
        for part in np.split(audio, [0, 400, 401]):
            spool.add(part)
        assert spool.rows == 1001 and spool.peak == 1
        assert not list(tmp_path.glob("blocks*")), "it has no name"
        stream = io.BytesIO()  # which, as a pipe, is never gone back in
        stream.seek = stream.tell = None  # pyright: ignore
        save_wav_of(stream, spool.blocks(100), spool.rows, 22050)
    there = (tmp_path / "there.wav").read_bytes()
    assert (tmp_path / "here.wav").read_bytes() == there == stream.getvalue()


def test_frames_come_back_in_blocks_of_whole_rows(tmp_path: Path):
    frames = np.arange(35, dtype=np.float32).reshape(7, 5)
    with Spool(None) as spool:
        spool.add(frames[:3].astype(np.float64))
        spool.add(frames[3:])
        assert spool.shape == (7, 5)
        for size, rows in ((10, [2, 2, 2, 1]), (3, [1] * 7)):
            blocks = list(spool.blocks(size))
            assert [len(block) for block in blocks] == rows
            assert np.array_equal(np.concatenate(blocks), frames)


def test_what_a_wav_cannot_say_and_where_nothing_can_be_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writing, "_MOST_SAMPLES", 3)
    with pytest.raises(SpeechError, match="more than a WAV file of 4 GiB holds"):
        save_wav(tmp_path / "a.wav", np.zeros(4), 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError) as error:
        Spool(tmp_path)
    assert error.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        Spool(tmp_path / "nowhere" / "a.wav")
    assert error.value.filename == str(tmp_path / "nowhere" / "a.wav")
    Spool(Path(os.devnull)).__exit__()  # /dev is no place for files
    full = Spool(tmp_path / "full.wav")
    full._file.close()
    full._file = open("/dev/full", "wb", buffering=0)
    with pytest.raises(OSError, match="No space left.*full.wav"):
        full.add(np.zeros(9))
