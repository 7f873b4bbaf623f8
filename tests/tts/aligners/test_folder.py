# SPDX-License-Identifier: Apache-2.0
"""The journal: what is done stays done, whatever ended the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sniper.tts.aligners.folder import (
    CORRECTED,
    JOURNAL,
    SETTINGS,
    Outcome,
    Sources,
    content_of,
    fingerprint,
    gather,
    open_folder,
)
from sniper.tts.errors import FolderInUse, OtherSettings, SpeechError
from sniper.tts.files import checksum_of_bytes


def of(content: dict[str, str] | None = None, /, **marks: str) -> Sources:
    """What is to be aligned, by fingerprints; contents only where they may be asked for."""
    return Sources(marks, lambda name: (content or {})[name])


def put(folder, name: str, content: str = "", **about) -> None:
    """An utterance that was aligned, and its TextGrid."""
    path = folder.textgrid(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("as written")
    written = checksum_of_bytes(b"as written")
    folder.add(Outcome(name, f"mark of {name}", content=content, written=written, **about))


def test_outcomes_survive_a_line_that_was_cut(tmp_path):
    good = Outcome("a", "1", remarks=("long",), likelihood=-1.5, phones={"AH0": (2, 11.0)})
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        folder.textgrid("a").parent.mkdir()
        folder.textgrid("a").write_text("")
        folder.add(good)
        folder.add(Outcome("b", "2", problem="no such wav file"))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"id": "c", "finger')
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        assert folder.outcomes["a"].remarks == ("long",) and set(folder.outcomes) == {"a", "b"}
        assert list(folder.outcomes["a"].phones["AH0"]) == [2, 11.0]
        assert folder.is_done("a", of(a="1")) and folder.is_done("b", of(b="2"))
        assert not folder.is_done("a", of(a="other")) and not folder.is_done("c", of(c="3"))
        folder.add(Outcome("c", "3", problem="x"))
        folder.textgrid("a").unlink()
        assert not folder.is_done("a", of(a="1"))
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        assert set(folder.outcomes) == {"a", "b", "c"}, "the line after the cut one counts"


def test_a_textgrid_of_an_earlier_text_goes(tmp_path):
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        put(folder, "a")
        folder.add(Outcome("a", "2", problem="no word"))
        assert not folder.textgrid("a").exists()


def test_other_settings_damage_and_force(tmp_path):
    (tmp_path / "TextGrid").mkdir()
    for name in ("TextGrid/a.TextGrid", "TextGrid/notes.txt"):
        (tmp_path / name).write_text("")
    with open_folder(tmp_path, {"align": "x"}, force=False):
        pass
    with pytest.raises(SpeechError, match="align is 'x' there, 'y' now"):
        with open_folder(tmp_path, {"align": "y"}, force=False):
            pass
    (tmp_path / SETTINGS).write_text("[]")
    with pytest.raises(SpeechError, match="align.json is damaged; --force"):
        with open_folder(tmp_path, {"align": "x"}, force=False):
            pass
    with pytest.warns(UserWarning, match="gave way to others: 1, kept"):
        with open_folder(tmp_path, {"align": "y"}, force=True) as folder:
            assert folder.outcomes == {} and not folder.textgrid("a").exists()
    assert (tmp_path / "TextGrid/notes.txt").exists(), "not ours"


def test_one_process_at_a_time(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from sniper.tts.aligners.folder import open_folder\n"
        "with open_folder(Path(sys.argv[1]), {'align': 'x'}, False):\n"
        "    print('in', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(FolderInUse, match=f"is in use by process {other.pid} .*another --out"):
        with open_folder(tmp_path, {"align": "x"}, force=False):
            pass
    other.communicate("\n", timeout=60)
    theirs = tmp_path / "align.lock"
    theirs.write_text("somebody's")
    with open_folder(tmp_path, {"align": "x"}, force=False):
        pass
    assert theirs.read_text() == "somebody's"
    assert {path.name for path in tmp_path.iterdir()} == {"align.json", "align.jsonl", theirs.name}


def test_fingerprints(tmp_path):
    wav = tmp_path / "a.wav"
    missing = fingerprint("a", wav)
    wav.write_bytes(b"1")
    assert len({missing, fingerprint("a", wav), fingerprint("b", wav)}) == 3


def test_contents(tmp_path):
    wav, other = tmp_path / "a.wav", tmp_path / "b.wav"
    assert content_of("a", wav) == content_of("a", tmp_path) == ""
    wav.write_bytes(b"1")
    other.write_bytes(b"2")
    first = content_of("a", wav)
    assert len({"", first, content_of("b", wav), content_of("a", other)}) == 4
    other.write_bytes(b"1")
    os.utime(wav, (1, 1))
    assert content_of("a", wav) == content_of("a", other) == first


def test_the_same_content_counts_where_the_times_are_others(tmp_path):
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        put(folder, "a", content="same")
        put(folder, "b")
        folder.add(Outcome("c", "1", problem="silent", content="same"))
        new, same = {"a": "2", "b": "2", "c": "2"}, {"a": "same", "b": "same", "c": "same"}
        assert not folder.is_done("a", of({"a": "other"}, **new))
        assert not folder.is_done("b", of(same, **new)), "of an earlier version"
        assert folder.is_done("a", of(same, **new)) and folder.is_done("c", of(same, **new))
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        assert folder.is_done("a", of(a="2")) and folder.is_done("c", of(c="2")), "kept in mind"


def test_a_corpus_that_was_moved(tmp_path):
    """It is the same where most of it is; another one is refused."""
    was, now = {"root": "/a", "align": "x"}, {"root": "/b", "align": "x"}
    with open_folder(tmp_path, was, force=False) as folder:
        for name in ("a", "b", "c", "d"):
            put(folder, name, content=f"content of {name}")
        folder.add(Outcome("e", "1", problem="silent"))
    moved = of(a="mark of a", b="mark of b", c="mark of c")
    copied = of({n: f"content of {n}" for n in "abc"} | {"d": "other"}, a="", b="", c="", d="")
    half = of(a="mark of a", b="mark of b", e="1")
    other = of(dict.fromkeys("abcd", "other"), a="2", b="2", c="2", d="2")
    for sources in (half, other, None):
        with pytest.raises(OtherSettings, match="root is '/a' there, '/b' now"):
            with open_folder(tmp_path, now, force=False, sources=sources):
                pass
    with pytest.raises(OtherSettings, match="align is 'x' there, 'y' now; root is '/a' there"):
        with open_folder(tmp_path, {**now, "align": "y"}, force=False, sources=moved):
            pass
    assert json.loads((tmp_path / SETTINGS).read_text()) == was
    with open_folder(tmp_path, now, force=False, sources=moved) as folder:
        assert folder.is_done("a", moved)
    assert json.loads((tmp_path / SETTINGS).read_text()) == now
    with open_folder(tmp_path, was, force=False, sources=copied) as folder:
        assert folder.is_done("a", copied) and not folder.is_done("d", copied)
    assert json.loads((tmp_path / SETTINGS).read_text()) == was


def test_a_journal_of_an_earlier_version(tmp_path):
    """It goes by size and time, wherever the corpus lies, and knows nothing of corrections."""
    with open_folder(tmp_path, {"root": "/a"}, force=False) as folder:
        put(folder, "a", content="same")
    line = json.loads((tmp_path / JOURNAL).read_text())
    del line["content"], line["written"]
    (tmp_path / JOURNAL).write_text(json.dumps(line) + "\n")
    with open_folder(tmp_path, {"root": "/b"}, False, of(a="mark of a")) as folder:
        assert folder.is_done("a", of(a="mark of a"))
        assert not folder.is_done("a", of({"a": "same"}, a="other"))
        folder.textgrid("a").write_text("by hand, perhaps")
        folder.make_way("a")
        assert folder.kept == 0


def test_what_was_corrected_by_hand_is_kept(tmp_path):
    def correct(name: str, how: str) -> None:
        (tmp_path / "TextGrid" / f"{name}.TextGrid").write_text(how)

    def kept() -> dict[str, str]:
        paths = (tmp_path / CORRECTED).rglob("*.TextGrid")
        return {p.relative_to(tmp_path / CORRECTED).as_posix(): p.read_text() for p in paths}

    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        for name in ("a", "anna/b", "c", "d", "old"):
            put(folder, name)
        folder.add(Outcome("old", "1"))
        for name in ("a", "anna/b", "c", "old"):
            correct(name, "by hand")
    with pytest.warns(UserWarning, match=f"by hand gave way to others: 2, kept in .*{CORRECTED}$"):
        with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
            for name in ("a", "d"):
                folder.make_way(name)
            folder.add(Outcome("anna/b", "2", problem="no word"))
            assert not folder.is_done("a", of(a="mark of a"))
            # Killed when the TextGrid was written: the next run finds no correction.
            correct("d", "of the aligner")
    assert kept() == {"a.TextGrid": "by hand", "anna/b.TextGrid": "by hand"}
    assert not folder.textgrid("a").exists() and not folder.textgrid("anna/b").exists()
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        folder.make_way("d")
        put(folder, "a")
        correct("a", "once more")
        assert folder.kept == 0
    with pytest.warns(UserWarning, match="gave way to others: 2, kept"):
        with open_folder(tmp_path, {"align": "y"}, force=True) as folder:
            assert folder.outcomes == {} and not list((tmp_path / "TextGrid").rglob("*.TextGrid"))
    assert kept() == {
        "a.TextGrid": "by hand",
        "a.2.TextGrid": "once more",
        "anna/b.TextGrid": "by hand",
        "c.TextGrid": "by hand",
    }
    assert (tmp_path / JOURNAL).read_bytes() == b""


@pytest.mark.parametrize("force", [False, True])
def test_textgrids_that_no_journal_names_are_kept(tmp_path, force):
    """Of a journal that is lost, or made by hand where there could be none."""
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        folder.add(Outcome("mute", "1", problem="silent"))
        for name in ("anna/a", "mute", "b"):
            folder.textgrid(name).parent.mkdir(parents=True, exist_ok=True)
            folder.textgrid(name).write_text(f"{name} by hand")
        assert folder.is_done("mute", of(mute="1")), "prepare takes it"
    with pytest.warns(UserWarning, match=f"gave way to others: 3, kept in .*{CORRECTED}$"):
        with open_folder(tmp_path, {"align": "x"}, force) as folder:
            folder.make_way("anna/a")
            folder.make_way("mute")
            folder.add(Outcome("b", "1", problem="no word"))
    assert not list((tmp_path / "TextGrid").rglob("*.TextGrid"))
    for name in ("anna/a", "mute", "b"):
        assert (tmp_path / CORRECTED / f"{name}.TextGrid").read_text() == f"{name} by hand"
    # Killed when the first TextGrid was written: the next run finds nothing of anybody's.
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        folder.make_way("new")
        folder.textgrid("new").write_text("of the aligner")
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        assert not folder.is_done("new", of(new="1"))
        folder.make_way("new")
        assert folder.kept == 0
        for name in ("new", "anna/a", "mute"):
            put(folder, name)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl", "", ".corrected"}


def test_corrections_of_shares_are_gathered(tmp_path):
    with open_folder(tmp_path / "one", {"root": "/a"}, False) as folder:
        for name in ("a", "b", "c"):
            put(folder, name)
        folder.keep(folder.textgrid("b"), "b")
        put(folder, "b")
        folder.textgrid("a").write_text("by hand")
        folder.make_way("c")
        folder.textgrid("c").unlink()
        folder.kept = 0
    whole = tmp_path / "whole"
    with pytest.warns(UserWarning, match="gave way to others: 1, kept in .*whole"):
        gather([tmp_path / "one"], whole, ["a", "b", "c"])
    assert (whole / CORRECTED / "b.TextGrid").read_text() == "as written"
    assert (whole / "TextGrid" / "a.TextGrid").read_text() == "by hand"
    with open_folder(whole, {"root": "/a"}, False) as folder:
        assert set(folder.outcomes) == {"a", "b"}, "the third is to be aligned"
        folder.make_way("a")
        assert (whole / CORRECTED / "a.TextGrid").read_text() == "by hand"
        folder.kept = 0


def test_shares_are_gathered(tmp_path):
    for name, settings in (("one", {"way": "a"}), ("two", {"way": "a"})):
        with open_folder(tmp_path / name, settings, False) as folder:
            path = folder.textgrid(f"{name}/x")
            path.parent.mkdir(parents=True)
            path.write_text(name)
            os.utime(path, (1e9, 1e9))
            folder.add(Outcome(f"{name}/x", "mark"))
            folder.add(Outcome(f"{name}/y", "mark", problem="silent"))
    order = ["two/x", "one/y", "one/x", "two/y"]
    for _ in range(2):  # a second time there is nothing to do
        gather([tmp_path / "one", tmp_path / "two"], tmp_path / "whole", order)
    with open_folder(tmp_path / "whole", {"way": "a"}, False) as whole:
        assert list(whole.outcomes) == order  # that of the corpus, not of the shares
        assert all(whole.is_done(name, of(**{name: "mark"})) for name in whole.outcomes)
        found = whole.textgrid("two/x")
        assert found.read_text() == "two" and found.stat().st_mtime == 1e9
    with open_folder(tmp_path / "other", {"way": "b"}, False):
        pass
    with pytest.raises(SpeechError, match="way is 'b' there, 'a' now"):
        gather([tmp_path / "one", tmp_path / "other"], tmp_path / "new", order)
    with pytest.raises(SpeechError, match="nothing holds no alignment: prepare that share again"):
        gather([tmp_path / "one", tmp_path / "nothing"], tmp_path / "new", order)
