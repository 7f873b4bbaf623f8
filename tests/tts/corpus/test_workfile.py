# SPDX-License-Identifier: Apache-2.0
"""The work file survives a kill at any moment, and damage is noticed."""

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from sniper.tts.corpus.features import Features
from sniper.tts.corpus.workfile import Record, WorkFile
from sniper.tts.errors import SpeechError


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    features = Features(
        rng.normal(size=(number + 2, 4)).astype(np.float32),
        np.array([1, number + 1], dtype=np.int32),
        np.array([np.nan, 1], dtype=np.float32),
        np.array([0.5, 2], dtype=np.float32),
    )
    return Record(f"id{number}", "Tëxt", ("a", "ˈb"), (("word", "a ˈb"),), features=features)


def same(left: Record, right: Record) -> bool:
    plain = dataclasses.replace(left, features=None) == dataclasses.replace(right, features=None)
    if left.features is None or right.features is None:
        return plain and left.features is right.features
    return plain and all(
        np.array_equal(getattr(left.features, name), getattr(right.features, name), equal_nan=True)
        for name in ("mel", "durations", "pitch", "energy")
    )


def test_records_come_back(tmp_path):
    records = [record(1), Record("bad", "x", problem="no wav"), record(2)]
    work = WorkFile(tmp_path / "w", {"a": 1})
    for entry in records:
        work.append(entry)
    assert len(work) == 3 and same(work.read(2), records[2])
    assert all(same(a, b) for a, b in zip(work, records, strict=True))
    work.close()
    again = WorkFile(tmp_path / "w", {"a": 2})
    assert again.settings == {"a": 1}, "what the file was begun with"
    assert all(same(a, b) for a, b in zip(again, records, strict=True))


def test_a_killed_process_leaves_the_complete_records(tmp_path):
    path = tmp_path / "w"
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_workfile import WorkFile, record\n"
        "work = WorkFile(Path(sys.argv[1]), {'a': 1})\n"
        "for number in range(3): work.append(record(number))\n"
        "work._database.execute('BEGIN')\n"
        "work.append(record(3))\n"
        "os.kill(os.getpid(), 9)"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", program, str(path), here])
    assert done.returncode == -9
    work = WorkFile(path, {"a": 2})
    assert work.settings == {"a": 1} and len(work) == 3
    assert all(same(a, record(n)) for n, a in enumerate(work))
    work.append(record(3))
    assert len(work) == 4 and same(work.read(3), record(3))
    work.close()
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_nothing_is_left_of_what_is_read_after_a_kill_and_removed(tmp_path):
    """SQLite's journal of the killed process too, which a connection that writes nothing leaves."""
    path = tmp_path / "w"
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_workfile import WorkFile, record\n"
        "work = WorkFile(Path(sys.argv[1]), {})\n"
        "work.append(record(0))\n"
        "os.kill(os.getpid(), 9)"
    )
    here = str(Path(__file__).parent)
    assert subprocess.run([sys.executable, "-c", program, str(path), here]).returncode == -9
    assert {p.name for p in tmp_path.iterdir()} == {"w", "w-journal"}
    work = WorkFile(path, {})
    assert len(work) == 1
    work.remove()
    assert list(tmp_path.iterdir()) == []


OLD_FORMAT = b"\x10\x00\x00\x00" + bytes(60)


@pytest.mark.parametrize("data", [b"", OLD_FORMAT, b"SQLite format 3\0" + b"x" * 5000])
def test_what_is_no_work_file_is_begun_anew(tmp_path, data):
    path = tmp_path / "w"
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        work = WorkFile(path, {"a": 1})
    assert len(work) == 0 and bool(said) == bool(data)
    work.append(record(0))
    assert same(work.read(0), record(0))


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "w"
    work = WorkFile(path, {})
    work.append(record(1))
    work.close()
    data = bytearray(path.read_bytes())
    data[data.rindex(np.float32(2).tobytes())] ^= 1  # the last value of its energy
    path.write_bytes(data)
    with pytest.raises(SpeechError, match="is damaged: delete it and prepare again"):
        WorkFile(path, {}).read(0)


def test_two_writers_are_refused(tmp_path):
    work = WorkFile(tmp_path / "w", {})
    with pytest.raises(SpeechError, match="another process"):
        WorkFile(tmp_path / "w", {})
    work.close()
    WorkFile(tmp_path / "w", {}).close()


def test_a_full_disk_names_the_file_and_what_was_there_stays(tmp_path):
    work = WorkFile(tmp_path / "w", {"a": 1})
    work.append(record(0))
    pages = work._database.execute("PRAGMA page_count").fetchone()[0]
    work._database.execute(f"PRAGMA max_page_count={pages}")  # as a disk without one more page
    with pytest.raises(SpeechError, match=f"{tmp_path / 'w'} cannot be written: .*full"):
        for number in range(100):
            work.append(record(500 + number))
    work.close()
    again = WorkFile(tmp_path / "w", {})
    assert same(again.read(0), record(0)) and len(again) >= 1
    again.append(record(1))


def test_what_is_known_of_the_sound_comes_back(tmp_path):
    work = WorkFile(tmp_path / "w", {})
    known = dataclasses.replace(record(1), sound=(16000, 0.5, 0.25))
    voiced = dataclasses.replace(known.features, voiced=0.75)
    work.append(dataclasses.replace(known, features=voiced))
    assert work.read(0).sound == (16000, 0.5, 0.25) and work.read(0).features.voiced == 0.75
