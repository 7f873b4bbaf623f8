# SPDX-License-Identifier: Apache-2.0
"""A fresh process hands back its errors and its death."""

import os

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.processes import default_workers, run_in_fresh_process


def test_death_is_an_error():
    with pytest.raises(SpeechError, match="exit code 3"):
        run_in_fresh_process(os._exit, 3)


def test_a_speech_error_and_another_process(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_in_fresh_process(os.rmdir, tmp_path / "none")
    (tmp_path / "there").mkdir()
    run_in_fresh_process(os.rmdir, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_workers():
    assert 1 <= default_workers() <= os.cpu_count()
