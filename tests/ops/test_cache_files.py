# SPDX-License-Identifier: Apache-2.0
import signal
import subprocess
import sys
import threading
import time

import pytest

from sniper.ops.cache_files import locked

HOLDER = """
import time
from sniper.ops.cache_files import locked

with locked("some.lock", 10):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_stopped_process_does_not_stop_the_others(holder, own_cache):
    holder.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with (
        pytest.warns(UserWarning, match="some.lock: another process has held this lock for 0.2 s"),
        locked("some.lock", 0.2),
    ):
        assert time.monotonic() - start >= 0.2


def test_a_killed_process_gives_the_lock_up(holder, recwarn):
    holder.kill()
    with locked("some.lock", 10):
        pass
    assert not recwarn


def test_one_thread_at_a_time_is_inside(recwarn):
    inside = []

    def enter():
        for _ in range(20):
            with locked("some.lock", 60):
                inside.append(1)
                assert len(inside) == 1
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside and not recwarn
