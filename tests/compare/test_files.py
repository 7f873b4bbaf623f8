# SPDX-License-Identifier: Apache-2.0
"""JSON that every reader takes, sound that browsers play."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import soundfile

from sniper.compare.files import dumps, read_json, write_json, write_mp3


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


@pytest.mark.parametrize("loudness", [0.0, 0.01, 3.0])
def test_mp3(tmp_path, loudness):
    audio = loudness * np.sin(np.arange(22050) * 0.05)
    write_mp3(tmp_path / "new" / "a.mp3", audio, 22050)
    path = tmp_path / "new" / "a.mp3"
    found, rate = soundfile.read(path)
    assert rate == 22050 and abs(len(found) - 22050) < 3000
    assert path.stat().st_size < 12000
    peak = np.abs(found[4000:18000]).max()
    assert peak == 0 if loudness == 0 else 0.8 < peak <= 1.0
