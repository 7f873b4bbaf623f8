# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a folder: train, prepare and compare keep each other out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sniper.prepare import main as prepare
from sniper.train import main as train
from sniper.tts.errors import FolderInUse, FolderLost
from sniper.tts.locks import LOCK, only_one, refuse_lost

_HOLD = """
import sys
from pathlib import Path
from sniper.tts.locks import only_one
with only_one(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds `tmp_path`."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path), "an argument"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    yield process
    process.kill()
    process.communicate()


def test_whose_it_is(other: subprocess.Popen, tmp_path: Path):
    with pytest.raises(FolderInUse) as error, only_one(tmp_path):
        pass
    said = str(error.value)
    assert (
        said.startswith(f"{tmp_path} is in use by process {other.pid} on ") and "since 20" in said
    )
    assert "'an argument'" in said and "\n" not in said.split("(")[0]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 1}', "\x00\xff", "null"])
def test_a_lock_that_says_nothing_still_holds(other: subprocess.Popen, tmp_path: Path, text: str):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(FolderInUse, match="in use by another process"), only_one(tmp_path):
        pass


def test_who_waits_gets_it_when_the_other_is_done(other: subprocess.Popen, tmp_path: Path):
    threading.Timer(0.5, other.kill).start()
    with only_one(tmp_path, wait=30):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_what_a_dead_process_left_is_no_lock(other: subprocess.Popen, tmp_path: Path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).exists()
    with only_one(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["mine", '{"pid": 1}', "[1]", "{"])
def test_somebody_elses_file_under_our_name_stays(tmp_path: Path, text: str):
    (tmp_path / LOCK).write_text(text)
    with only_one(tmp_path):
        command = [sys.executable, "-c", _HOLD, str(tmp_path)]
        held = subprocess.run(command, input=b"", capture_output=True)
        assert held.returncode == 1 and b"in use by another process" in held.stderr
    assert (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize("text", ["", "\0\0\0", "\n"])
def test_what_holds_nothing_is_ours(tmp_path: Path, text: str):
    (tmp_path / LOCK).write_text(text)
    with only_one(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_through_a_link(tmp_path: Path, there: bool):
    target = tmp_path / "mine.json"
    if there:
        target.write_text('{"pid": 1, "host": "h", "since": "s"}')
    (tmp_path / LOCK).symlink_to(target)
    with pytest.raises(OSError, match=f"is a link, .* remove it: '{tmp_path / LOCK}'"):
        with only_one(tmp_path):
            pass
    assert (tmp_path / LOCK).is_symlink() and target.exists() == there


def test_a_file_called_lock_is_anybodys(tmp_path: Path):
    (tmp_path / "lock").write_text('{"pid": 1, "host": "h", "since": "s"}')
    with only_one(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["lock"]


def test_within_one_process_the_outer_lock_stays(tmp_path: Path):
    def others() -> int:
        command = [sys.executable, "-c", _HOLD, str(tmp_path)]
        done = subprocess.run(command, input=b"", capture_output=True)
        return done.returncode

    with only_one(tmp_path):
        with only_one(tmp_path / "." / ""):
            pass
        assert others() == 1
    assert others() == 0


def _in_place_of(folder: Path) -> None:
    folder.mkdir()
    (folder / LOCK).write_text('{"pid": 7, "host": "h", "since": "s"}')


@pytest.mark.parametrize(
    "become, said",
    [
        (lambda folder: None, "moved, removed or replaced"),
        (Path.mkdir, "moved, removed or replaced"),
        (Path.touch, "moved, removed or replaced"),
        (_in_place_of, "is in use by process 7 on h since s"),
    ],
    ids=["moved", "another", "a file", "another's"],
)
def test_a_folder_that_is_moved_is_lost(tmp_path: Path, become: Callable, said: str):
    """And what then lies in its place is not touched."""
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse_lost(folder)  # of what it has not locked it says nothing
    with only_one(folder):
        refuse_lost(folder)
        folder.rename(tmp_path / "moved")
        become(folder)
        with pytest.raises(FolderLost, match=said):
            refuse_lost(folder)
    assert (folder / LOCK).exists() == (become is _in_place_of)
    refuse_lost(folder)


def test_a_lock_that_is_removed_by_hand(tmp_path: Path):
    """It is lost once somebody else has one there, who keeps it."""
    with only_one(tmp_path):
        (tmp_path / LOCK).unlink()
        refuse_lost(tmp_path)
        (tmp_path / LOCK).write_text("not yet said who")
        with pytest.raises(FolderLost, match="in use by another process, since this"):
            refuse_lost(tmp_path)
    assert (tmp_path / LOCK).read_text() == "not yet said who"


def test_the_commands_keep_each_other_out(
    other: subprocess.Popen, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The same for all; that of the comparison is in its own tests."""
    (tmp_path / "keep.txt").touch()
    (tmp_path / "prepare.work").touch()
    commands = [
        (prepare, ["demo", "--out", str(tmp_path), "--utterances", "2", "--force"], "--out"),
        (train, ["--fresh", f"output={tmp_path}", "data.root=x"], "output=FOLDER"),
    ]
    for main, arguments, remedy in commands:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert f"error: {tmp_path} is in use by process {other.pid}" in said and remedy in said
        assert "Traceback" not in said
    assert (tmp_path / "prepare.work").exists(), "--force deletes nothing under the other's hands"
