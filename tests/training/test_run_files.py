# SPDX-License-Identifier: Apache-2.0
"""A run's folder belongs to one run at a time, and its files are whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sniper.training.files import only_run, write_file
from sniper.training.settings import ConfigError
from sniper.tts.locks import LOCK

_HOLD = """
import sys, time
from pathlib import Path
from sniper.training.files import only_run
with only_run(Path(sys.argv[1])):
    print("in", flush=True)
    if sys.argv[2:]:
        import os
        os.fork() or time.sleep(60)  # a worker that outlives its parent
    sys.stdin.read()
"""


def _hold(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", _HOLD, str(folder), *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    return process


def test_the_second_is_told_whose_the_folder_is(tmp_path: Path):
    other = _hold(tmp_path)
    try:
        expected = rf"{tmp_path} is in use by process {other.pid} on .+ since 20.*output=FOLDER"
        for _ in range(2):  # a refusal does not end the other's lock
            with pytest.raises(ConfigError, match=expected), only_run(tmp_path):
                pass
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(ConfigError, match="in use by another process"), only_run(tmp_path):
            pass
    finally:
        other.communicate(b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [(), ("with a worker",)])
def test_a_killed_run_leaves_the_folder_free(more: tuple[str, ...], tmp_path: Path):
    other = _hold(tmp_path, *more)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with only_run(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    other.stdin.close()


def test_a_file_is_replaced_whole_and_a_full_disk_is_named(tmp_path: Path):
    path = tmp_path / "config.yaml"
    write_file(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as error:
            write_file(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(error.value)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
