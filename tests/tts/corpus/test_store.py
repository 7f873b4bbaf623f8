# SPDX-License-Identifier: Apache-2.0
"""The feature file: valid safetensors, atomic, and damage is recognised."""

import numpy as np
import pytest
import safetensors.numpy

from sniper.tts.corpus.store import TensorStream, atomic_write, map_tensors, write_tensors
from sniper.tts.errors import SpeechError


def write(path, pieces, metadata=None):
    rows = sum(len(piece) for piece in pieces)
    tensors = {
        "offsets": TensorStream(np.int64, (3,), [np.array([0, 2, rows])]),
        "mel": TensorStream(np.float32, (rows, 4), iter(pieces)),
        "empty": TensorStream(np.int32, (0,), []),
    }
    write_tensors(path, tensors, metadata or {"ids": '["ä"]'})


def test_reads_back_and_the_official_reader_agrees(tmp_path):
    path = tmp_path / "a.safetensors"
    pieces = [np.random.default_rng(0).normal(size=(n, 4)) for n in (2, 5)]
    write(path, pieces)
    arrays, metadata = map_tensors(path)
    official = safetensors.numpy.load_file(path)
    assert metadata == {"ids": '["ä"]'} and arrays.keys() == official.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], official[name])
        assert arrays[name].dtype == official[name].dtype
    np.testing.assert_array_equal(arrays["mel"], np.concatenate(pieces).astype(np.float32))
    assert arrays["mel"].ctypes.data % 8 == 0
    with pytest.raises(ValueError):
        arrays["mel"][0, 0] = 1.0  # mapped read-only


def test_pieces_that_do_not_add_up_leave_nothing(tmp_path):
    wrong = {"mel": TensorStream(np.float32, (3, 4), [np.zeros((2, 4))])}
    with pytest.raises(ValueError, match="mel: 32 bytes came, 48"):
        write_tensors(tmp_path / "a.safetensors", wrong, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_damage_is_said(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(SpeechError, match="no such feature file"):
        map_tensors(path)
    write(path, [np.zeros((2, 4))])
    data = path.read_bytes()
    for broken in (b"", data[:6], data[:40], data[:-1], b"RIFF" * 100):
        path.write_bytes(broken)
        with pytest.raises(SpeechError, match="cut off or not a feature file"):
            map_tensors(path)
