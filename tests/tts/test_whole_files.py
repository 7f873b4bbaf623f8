# SPDX-License-Identifier: Apache-2.0
"""A file is whole or not there, a full disk is named, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from sniper.tts.files import atomic_write, checksum, damaged_file, is_as_written, sealed, write_json


def _full(path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fails)
        with pytest.raises(OSError) as error, atomic_write(path) as file:
            file.write(b"new")
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_none(tmp_path, monkeypatch, where):
    path = tmp_path / "a.bin"
    _full(path, monkeypatch, where)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    _full(path, monkeypatch, where)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_where_it_cannot_be_opened_the_users_name_is_said(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", tmp_path):
        with pytest.raises(OSError) as error, atomic_write(path):
            pass
        assert error.value.filename == str(path)


def test_what_the_content_raises_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"), atomic_write(tmp_path / "a"):
        (tmp_path / "none").read_bytes()
    with pytest.raises(OSError, match="just text: .*a'$"), atomic_write(tmp_path / "a"):
        raise OSError("just text")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_stays_a_pipe_and_a_link_a_link(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as file:
        file.write(b"through")
    assert os.read(reader, 20) == b"through" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    (tmp_path / "link").symlink_to("there")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_bytes() == b"x"
    with pytest.raises(OSError, match="No space left.*/dev/full"), atomic_write(Path("/dev/full")):
        with open("/dev/full", "wb", buffering=0) as full:
            try:
                full.write(b"x")
            except OSError as error:
                raise OSError(error.errno, error.strerror) from None
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_seal_is_of_the_values(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    data = {"format": 1, "loss": float("inf"), "rows": [{"x": 0.1, 3: -0.0}], "text": "ä\ud800"}
    whole = sealed(data, "about.json", tmp_path, ["a"])
    text = json.dumps(whole)
    read = json.loads(text)
    assert is_as_written(read, "about.json") and damaged_file(read, tmp_path, ["a"]) is None
    assert is_as_written(dict(reversed(read.items())), "about.json")
    assert not is_as_written(json.loads(text.replace("0.1", "0.2")), "about.json")
    assert not is_as_written(json.loads(text.replace('"a"', '"b"')), "about.json")
    (tmp_path / "a").write_bytes(b"Content")
    assert damaged_file(read, tmp_path, ["a"]) == "a"
    for old in ({}, {"checksums": None}, {"checksums": [1]}, {"checksums": {}}):
        assert is_as_written(old, "about.json") and damaged_file(old, tmp_path, ["a"]) is None


def test_checksum_is_crc_32(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789")
    assert checksum(tmp_path / "a") == "crc32:cbf43926"  # the check value of the algorithm


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a", {"ä": [1]})
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n "ä": [\n  1\n ]\n}\n'
