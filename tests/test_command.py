# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends a command at any moment without a traceback."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sniper.command import exit_with, is_of_output, path_argument, reader_has_gone
from sniper.tts.files import for_shell

# The interpreter's own start is not ours, nor are the modules of its library that a command's first
# lines import, which take a second on a busy machine. All else is imported under `exit_with`.
_START = """
import runpy, sys
from sniper import command

def exit_with(main):
    print("up", flush=True)
    ended(main)

ended, command.exit_with = command.exit_with, exit_with
runpy.run_module(f"sniper.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("command", "seconds"),
    [(c, s) for c in ("train", "prepare") for s in (0.1, 0.7, 1.6, 2.4)]
    + [(c, s) for c in ("synthesize", "export", "doctor", "compare.__main__") for s in (0.1, 0.7)]
    + [("__main__", s) for s in (0.1, 0.7)],
)
def test_ctrl_c_prints_no_traceback(command: str, seconds: float, tmp_path: Path):
    nothing = ["--checkpoint", tmp_path / "none", "-o"]
    arguments = {
        "train": [f"output={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}"],
        "prepare": ["demo", "--out", tmp_path / "data"],
        "synthesize": ["Some text.", *nothing, tmp_path / "a.wav"],
        "export": [*nothing, tmp_path / "a.onnx"],
        "doctor": [],
        "compare.__main__": ["--output", tmp_path / "out", f"data.root={tmp_path / 'data'}"],
        "__main__": ["prepare", "demo", "--out", tmp_path / "data"],
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _START, command, *map(str, arguments[command])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "up\n"
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    # On a fast machine it is done: there is no such checkpoint, or nothing is wrong.
    assert process.returncode in (130, 1, 0 if command == "doctor" else 130), said


def test_the_exit_status_is_the_commands():
    before = signal.getsignal(signal.SIGINT)

    def interrupted() -> int:
        raise KeyboardInterrupt

    try:
        for main, status in ((lambda: 0, 0), (lambda: 2, 2), (interrupted, 130)):
            with pytest.raises(SystemExit) as exit:
                exit_with(main)
            assert exit.value.code == status
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("pressed", "status"), [(True, 130), (False, 1)])
def test_a_ctrl_c_that_a_library_swallows(pressed: bool, status: int):
    """As numpy's and torch's imports do, which then fail for want of what was not loaded."""
    program = f"""
import signal
from sniper.command import exit_with

def main():
    try:
        if {pressed}:
            signal.raise_signal(signal.SIGINT)
    except BaseException:
        pass
    raise ImportError("cannot load module more than once per process")

exit_with(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    assert ("Traceback" in done.stderr) == (not pressed)


def test_a_ctrl_c_in_a_finalizer_is_not_lost():
    """Nor one in a callback of Python's imports, where no exception can go on either."""
    program = """
import signal, time
from sniper.command import exit_with

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def main():
    for _ in range(3):
        Finalized()
    time.sleep(60)
    return 0

exit_with(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_a_ctrl_c_that_an_import_swallows_is_not_lost(tmp_path: Path):
    """As torch's import does one that comes in its import of numpy, and goes on without numpy."""
    (tmp_path / "swallowed.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    (tmp_path / "swallows.py").write_text("try: import swallowed\nexcept BaseException: pass")
    program = """
import time
from sniper.command import exit_with

def main():
    import swallows
    time.sleep(60)
    return 0

exit_with(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=30,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_other_faults_of_finalizers_are_told():
    program = """
from sniper.command import exit_with

class Finalized:
    def __del__(self):
        raise ValueError("in here")

exit_with(lambda: Finalized() and 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "ValueError: in here" in done.stderr


def test_letters_that_the_terminal_does_not_have_are_escaped():
    program = "from sniper.command import exit_with; exit_with(lambda: print('ä\\u2192') or 3)"
    env = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"\\xe4\\u2192\n", b"")


def test_a_warning_of_ours_is_one_line():
    program = (
        "import warnings; from sniper.command import exit_with; "
        "from sniper.tts.text.normalize import normalize_english; "
        "exit_with(lambda: [normalize_english('So \\U0001f642'), warnings.warn('of others')] and 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours, other = done.stderr.splitlines()[:2]
    assert ours == "warning: left out, it has no reading: '\U0001f642'"
    assert other == "<string>:1: UserWarning: of others"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_takes_what_is_printed(closed: str, tmp_path: Path):
    """And no file that is opened later has its number."""
    program = """
import os, sys
from sniper.command import exit_with

def main():
    with open(sys.argv[1], "w") as file:
        print("out"), print("err", file=sys.stderr)
        os.write(2, b"by number")
        file.write(str(file.fileno() > 2))
    return 3

exit_with(main)
"""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program]
    done = subprocess.run([*command, tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == 3 and (tmp_path / "file").read_text() == "True"
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "out\n")
    assert done.stderr == ("" if "2>&-" in closed else "err\nby number")


def test_a_reader_that_has_gone_is_no_traceback():
    program = "from sniper.command import exit_with; exit_with(lambda: print('x' * 10**6) or 0)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_behind_the_output_is_named(buffered: bool):
    """Also where it shows at the end alone, after argparse's."""
    usage = "argparse.ArgumentParser().parse_args(['--help'])"
    for main in ("print('x' * 10**5) or 0", "sys.exit(print('x') or 0)", usage):
        program = (
            f"import argparse, sys; from sniper.command import exit_with; exit_with(lambda: {main})"
        )
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-c", program],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
            )
        said = "error: standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said)


def test_an_error_of_a_file_is_not_of_the_output():
    assert is_of_output(OSError(errno.ENOSPC, "full"))
    assert not is_of_output(OSError(errno.ENOSPC, "full", "file"))
    assert not is_of_output(OSError(errno.EIO, "of reading, say"))
    assert not is_of_output(ValueError("of something else"))


def test_a_path_that_no_shell_has_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for given, meant in (("~/a", "/home/somebody/a"), ("~", "/home/somebody"), ("./~/a", "~/a")):
        assert path_argument(given) == Path(meant)
    for nothing in ("", " "):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a path, got"):
            path_argument(nothing)


@pytest.mark.parametrize("path", ["~", "~/a b", "~anna", "-x", "a/~", "$HOME", "/a"])
def test_a_path_in_a_command_is_taken_for_itself(path: str):
    (word,) = shlex.split(for_shell(Path(path)))
    assert path_argument(word) == Path(path) and not word.startswith(("~", "-"))


def test_whether_a_reader_has_gone(monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert not reader_has_gone()
        os.close(reader)
        assert reader_has_gone()
