# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up at any byte: one error that names the place, nothing lost, and with more
room the same command ends right. Needs a file system of its own, so root.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigning import TEXT, Matrix, Trained, call, linked, refused, tree
from speech import HEARD, differences, everything, with_lexicon

from sniper.training import checkpoint
from sniper.tts.locks import LOCK

# kB, from not even a lock to nearly enough.
SIZES = (4, 16, 64, 200, 400, 800, 1200, 1600, 2400, 3200)
ROOM = 64_000


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, kilobytes: int) -> None:
        size = f"remount,size={kilobytes}k"
        subprocess.run(["mount", "-o", size, str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}k", "campaign", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", SIZES)
def test_train(kilobytes: int, disk: Disk, trained: Trained):
    run = disk.folder / "run"
    disk.resize(kilobytes)
    done = call("train", *trained.arguments(run))
    if done.status:
        # 1 where an update was lost, 2 where it had not begun or had ended.
        said = refused(done, str(disk.folder), statuses=(1, 2))
        assert "No space left" in said or "free the disk" in said, said
        assert not list(run.rglob("*.tmp")) and not list(run.rglob(".writing-*"))
        disk.resize(ROOM)
        assert call("train", *trained.arguments(run)).status == 0
    assert differences(everything(run), trained.result) == []


@pytest.mark.parametrize("kilobytes", SIZES)
def test_a_run_that_goes_on(kilobytes: int, disk: Disk, trained: Trained):
    """The checkpoint before stays, whatever happens to the next."""
    run = disk.folder / "run"
    subprocess.run(["cp", "-r", str(trained.run), str(run)], check=True)
    before = everything(run)
    used = sum(p.stat().st_blocks * 512 for p in run.rglob("*")) // 1024
    disk.resize(used + 4 + kilobytes // 2)
    done = call("train", *trained.arguments(run))
    if done.status:
        said = refused(done, str(disk.folder), statuses=(1, 2))
        assert "No space left" in said or "free the disk" in said, said
        kept = everything(run)
        assert not differences(kept, before) or not differences(kept, trained.result)
        disk.resize(ROOM)
        assert call("train", *trained.arguments(run)).status == 0
    assert differences(everything(run), trained.result) == []


@pytest.mark.parametrize("kilobytes", SIZES)
def test_prepare(kilobytes: int, disk: Disk, trained: Trained):
    out = disk.folder / "out"
    arguments = ["demo", "--out", out, "--utterances", 24, "--valid", 3, "--quiet", "--workers", 1]
    disk.resize(2 * kilobytes)
    done = call("prepare", *arguments)
    if done.status:
        said = refused(done, str(disk.folder), statuses=(2,))
        assert "space" in said or "full" in said, said
        assert not (out / "corpus.json").exists() and not list(out.rglob("*.tmp"))
        disk.resize(ROOM)
        assert call("prepare", *arguments).status == 0
    assert tree(out) == tree(trained.corpus)


@pytest.mark.parametrize("kilobytes", (4, 16, 40, 80))
@pytest.mark.parametrize("old", (False, True), ids=("new", "over-an-old-one"))
def test_synthesize(kilobytes: int, old: bool, disk: Disk, trained: Trained):
    wav = disk.folder / "spoken.wav"
    before = {}
    if old:
        wav.write_bytes(b"what was spoken before")
        before = tree(disk.folder)
    disk.resize(kilobytes)
    arguments = [TEXT, "--checkpoint", trained.run, "-o", wav]
    done = call("synthesize", *arguments)
    if done.status:
        said = refused(done, str(wav), statuses=(1,))
        assert "space" in said, said
        assert tree(disk.folder) == before
        disk.resize(ROOM)
        assert call("synthesize", *arguments).status == 0
    assert wav.read_bytes() == trained.spoken


@pytest.mark.parametrize("kilobytes", (4, 16, 64))
def test_a_mel(kilobytes: int, disk: Disk, trained: Trained):
    mel = disk.folder / "spoken.npy"
    disk.resize(kilobytes)
    arguments = [TEXT, "--checkpoint", trained.run, "--mel", mel]
    done = call("synthesize", *arguments)
    if done.status:
        assert "space" in refused(done, str(disk.folder), statuses=(1,))
        assert tree(disk.folder) == {}
        disk.resize(ROOM)
        assert call("synthesize", *arguments).status == 0
    assert sorted(tree(disk.folder)) == ["spoken.json", "spoken.npy"]


@pytest.mark.parametrize("kilobytes", (0, 4, 12, 40))
def test_words_for_a_run(kilobytes: int, disk: Disk, trained: Trained, tmp_path: Path):
    """Every checkpoint has its old words or its new ones, and is whole."""
    run, words = with_lexicon(trained.run, disk.folder / "run"), tmp_path / "words.dict"
    words.write_text("whale W EY1 L\n")
    used = sum(p.stat().st_blocks * 512 for p in run.rglob("*")) // 1024
    disk.resize(used + 4 + kilobytes)
    arguments = ["lexicon", words, "--to", run]
    done = call("prepare", *arguments)
    if done.status:
        said = refused(done, str(run), statuses=(2,))
        assert "No space left" in said, said
        for which in ("last", "best"):
            checkpoint.load(run, which)
        assert not list(run.rglob("*.tmp")) and not (run / LOCK).exists()
        disk.resize(ROOM)
        assert call("prepare", *arguments).status == 0
    for which in ("last", "best"):
        found = checkpoint.load(run, which).meta["speech"]["frontend"]["lexicon"]
        assert found == {**HEARD, "whale": "W EY1 L"}


@pytest.mark.parametrize("kilobytes", (16, 120, 300))
def test_export(kilobytes: int, disk: Disk, trained: Trained):
    path = disk.folder / "model.pt2"
    disk.resize(kilobytes)
    arguments = ["--checkpoint", trained.run, "-o", path]
    done = call("export", *arguments)
    assert done.status == 1, done.err
    assert "space" in refused(done, str(disk.folder), statuses=(1,))
    assert tree(disk.folder) == {}


@pytest.mark.parametrize("kilobytes", (8, 40, 200))
def test_the_report_of_a_comparison(kilobytes: int, disk: Disk, matrix: Matrix):
    subprocess.run(["cp", "-r", str(matrix.out), str(disk.folder / "out")], check=True)
    out = disk.folder / "out"
    before = tree(out)
    used = sum(p.stat().st_blocks * 512 for p in out.rglob("*")) // 1024
    subprocess.run(["rm", "-r", str(out / "report")], check=True)
    freed = used - sum(p.stat().st_blocks * 512 for p in out.rglob("*")) // 1024
    disk.resize(used - freed + min(kilobytes, freed - 4))
    options = [*matrix.options(out), "--report-only"]
    done = call("compare", *options)
    assert "space" in refused(done, str(disk.folder), statuses=(2,))
    assert not list(out.rglob("*.tmp"))
    disk.resize(ROOM)
    assert call("compare", *options).status == 0
    assert sorted(tree(out)) == sorted(before)


def test_the_caches_of_measurements(disk: Disk, trained: Trained, monkeypatch: pytest.MonkeyPatch):
    """A full home costs a run nothing but the measuring."""
    from sniper.ops import timings

    disk.resize(4)
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(disk.folder / "cache"))
    monkeypatch.setattr(timings, "_choices", None)
    run = linked(trained.run, disk.folder.parent / "run")
    assert call("train", *trained.arguments(run)).status == 0
    assert not [name for name in tree(disk.folder) if name.count(".json.")]
