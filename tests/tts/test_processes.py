# SPDX-License-Identifier: Apache-2.0
"""A fresh process hands back its errors and its death."""

import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from sniper.tts.errors import SpeechError
from sniper.tts.processes import default_workers, held_signals, run_in_fresh_process


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_held_signal_counts_afterwards(number):
    done = []

    def stop(*_):
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyboardInterrupt):
            with held_signals():
                with held_signals():
                    signal.raise_signal(number)
                    done.append("inside")
                done.append("in the outer one")
            done.append("after both")
        assert done == ["inside", "in the outer one"]
        assert all(signal.getsignal(n) is stop for n in before)
        with pytest.raises(KeyboardInterrupt), held_signals():  # also where what it held has failed
            signal.raise_signal(number)
            raise RuntimeError("the library's own")
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_signal_is_held_whichever_thread_the_system_gives_it_to():
    """A mask would hold it in one thread alone."""
    done = []
    with pytest.raises(KeyboardInterrupt), held_signals():
        other = threading.Thread(target=signal.raise_signal, args=[signal.SIGINT])
        other.start()
        other.join()
        done.append("inside")
    assert done == ["inside"]


def test_another_thread_holds_nothing_and_fails_at_nothing():
    done = []

    def work():
        with held_signals():
            done.append("inside")

    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert done == ["inside"]


def test_workers():
    assert 1 <= default_workers() <= os.cpu_count()
