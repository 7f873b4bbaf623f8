# SPDX-License-Identifier: Apache-2.0
"""One run in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import Compared, until

from sniper.compare import files
from sniper.compare.worker import alone, machine, main, status
from sniper.training.config import dump


def test_a_finished_run_says_how_it_went(compared: Compared):
    folder = compared.run("dense").folder
    result = files.read_json(folder / "result.json")
    assert status(folder) == "trained" and result["message"] == ""
    assert result["wall_seconds"] > 0
    assert result["machine"]["threads"] == 1 and result["machine"]["torch"].startswith("2.")
    assert status(folder / "nowhere") is None


def test_the_machine():
    found = machine()
    assert found["cores"] >= 1 and found["cpu"] and found["sniper"]
    assert "system" in found and "date" in found


def test_settings_that_cannot_be_trained_are_a_failure(compared: Compared, tmp_path: Path, capsys):
    config = dump(compared.run("dense").config).replace("max_frames: 1300", "max_frames: 10")
    (tmp_path / "run.yaml").write_text(config.replace(str(compared.out), str(tmp_path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sniper.compare.worker._stop_with_parent", lambda: None)
        assert main([str(tmp_path), "--truth", str(tmp_path / "truth")]) == 1
    assert "train.max_frames: longer than max_frames_per_batch = 10" in capsys.readouterr().err
    assert status(tmp_path) == "failed"
    assert "train.max_frames" in files.read_json(tmp_path / "result.json")["message"]


def test_only_one_works_in_a_folder(tmp_path: Path):
    program = "import sys, pathlib; from sniper.compare.worker import alone\n"
    program += "with alone(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(BlockingIOError), alone(tmp_path, wait=False):
            pass
    finally:
        other.kill()
        other.communicate()
    with alone(tmp_path, wait=False):
        pass


def test_it_stops_when_its_parent_is_gone():
    """The life line is a pipe; its other end closes however the parent dies."""
    program = "import time, threading; from sniper.compare import worker\n"
    program += "threading.Thread(target=worker._stop_with_parent, daemon=True).start()\n"
    program += "print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        until(lambda: process.poll() is not None, 20)
        assert process.returncode == -signal.SIGTERM
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
