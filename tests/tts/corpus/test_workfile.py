# SPDX-License-Identifier: Apache-2.0
"""The work file survives being cut off anywhere."""

import dataclasses

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


def test_cut_off_anywhere_it_keeps_the_complete_records(tmp_path):
    path = tmp_path / "w"
    work = WorkFile(path, {})
    ends = []
    for number in range(3):
        work.append(record(number))
        ends.append(path.stat().st_size)
    work.close()
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        work = WorkFile(path, {})
        complete = sum(end <= size for end in ends)
        assert len(work) == complete
        for number in range(complete, 3):
            work.append(record(number))
        work.close()
        assert path.read_bytes() == data


def test_a_torn_write_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "w"
    work = WorkFile(path, {})
    work.append(record(0))
    work.append(record(1))
    work.close()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    work = WorkFile(path, {})
    assert len(work) == 1


def test_two_writers_are_refused(tmp_path):
    work = WorkFile(tmp_path / "w", {})
    with pytest.raises(SpeechError, match="another process"):
        WorkFile(tmp_path / "w", {})
    work.close()
    WorkFile(tmp_path / "w", {}).close()
