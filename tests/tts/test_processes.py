# SPDX-License-Identifier: Apache-2.0
"""A fresh process hands back its errors and its death."""

import math
import os
import subprocess
import sys

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.processes import default_workers, run_in_fresh_process


def test_death_is_an_error():
    with pytest.raises(SpeechError, match="exit code 3"):
        run_in_fresh_process(os._exit, 3)


def test_errors_come_back(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_in_fresh_process(os.rmdir, tmp_path / "none")


def test_an_unexpected_error_is_told_and_leaves_no_traceback(capfd):
    with pytest.raises(SpeechError, match="unexpected error in sqrt: ValueError: math domain"):
        run_in_fresh_process(math.sqrt, -1.0)
    assert capfd.readouterr() == ("", "")


def test_a_script_without_a_main_guard(tmp_path):
    (tmp_path / "there").mkdir()
    script = (
        "import os\nfrom sniper.tts.processes import run_in_fresh_process\n"
        f"run_in_fresh_process(os.rmdir, {str(tmp_path / 'there')!r})\nprint('once')\n"
    )
    done = subprocess.run([sys.executable], input=script, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("once\n", "")
    assert not (tmp_path / "there").exists()


def test_workers():
    assert 1 <= default_workers() <= os.cpu_count()
