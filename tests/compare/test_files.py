# SPDX-License-Identifier: Apache-2.0
"""JSON that every reader takes, sound that browsers play."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import soundfile

from sniper.compare.files import (
    dumps,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
    write_mp3,
)


def test_json_without_nan(tmp_path):
    data = {0.5: [math.nan, np.float32(0.5), np.inf, None], "a": np.arange(2), "b": (True, "ü")}
    write_json(tmp_path / "new" / "x.json", data)
    expected = {"0.5": [None, 0.5, None, None], "a": [0, 1], "b": [True, "ü"]}
    assert read_json(tmp_path / "new" / "x.json") == expected
    assert json.loads(dumps(data)) == expected
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.json"]  # nothing temporary


def test_what_is_not_there_or_not_json(tmp_path):
    assert read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text('{"cut')
    assert read_json(tmp_path / "x.json") is None


def test_arrays_are_whole_or_nothing(tmp_path):
    path = tmp_path / "new" / "x.npz"
    write_arrays(path, {"a": np.arange(500.0), "ids": np.array(["ü", "b"])})
    found = read_arrays(path)
    assert found["a"].tolist() == list(range(500)) and found["ids"].tolist() == ["ü", "b"]
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    whole = path.read_bytes()
    damaged = [whole[:n] for n in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for at in range(0, len(whole), 97):  # one flipped bit
        damaged.append(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert set(read_arrays(path)) <= {"a", "ids"}
        for name, value in read_arrays(path).items():
            assert value.tolist() == found[name].tolist()
    assert read_arrays(tmp_path / "nowhere.npz") == {}


@pytest.mark.parametrize("loudness", [0.0, 0.01, 3.0])
def test_mp3(tmp_path, loudness):
    audio = loudness * np.sin(np.arange(22050) * 0.05)
    write_mp3(tmp_path / "new" / "a.mp3", audio, 22050)
    path = tmp_path / "new" / "a.mp3"
    found, rate = soundfile.read(path)
    assert rate == 22050 and abs(len(found) - 22050) < 3000
    assert path.stat().st_size < 12000 and [p.name for p in path.parent.iterdir()] == ["a.mp3"]
    peak = np.abs(found[4000:18000]).max()
    assert peak == 0 if loudness == 0 else 0.8 < peak <= 1.0
