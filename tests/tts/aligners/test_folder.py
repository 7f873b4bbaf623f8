# SPDX-License-Identifier: Apache-2.0
"""The journal: what is done stays done, whatever ended the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sniper.tts.aligners.folder import JOURNAL, SETTINGS, Outcome, fingerprint, gather, open_folder
from sniper.tts.errors import SpeechError


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
        assert folder.is_done("a", "1") and folder.is_done("b", "2")
        assert not folder.is_done("a", "other") and not folder.is_done("c", "3")
        folder.add(Outcome("c", "3", problem="x"))
        folder.textgrid("a").unlink()
        assert not folder.is_done("a", "1")
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        assert set(folder.outcomes) == {"a", "b", "c"}, "the line after the cut one counts"


def test_a_textgrid_of_an_earlier_text_goes(tmp_path):
    with open_folder(tmp_path, {"align": "x"}, force=False) as folder:
        folder.textgrid("a").parent.mkdir()
        folder.textgrid("a").write_text("")
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
    with pytest.raises(SpeechError, match="another process is aligning"):
        with open_folder(tmp_path, {"align": "x"}, force=False):
            pass
    other.communicate("\n", timeout=60)
    with open_folder(tmp_path, {"align": "x"}, force=False):
        pass


def test_fingerprints(tmp_path):
    wav = tmp_path / "a.wav"
    missing = fingerprint("a", wav)
    wav.write_bytes(b"1")
    assert len({missing, fingerprint("a", wav), fingerprint("b", wav)}) == 3


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
        assert all(whole.is_done(name, "mark") for name in whole.outcomes)
        found = whole.textgrid("two/x")
        assert found.read_text() == "two" and found.stat().st_mtime == 1e9
    with open_folder(tmp_path / "other", {"way": "b"}, False):
        pass
    with pytest.raises(SpeechError, match="way is 'b' there, 'a' now"):
        gather([tmp_path / "one", tmp_path / "other"], tmp_path / "new", order)
    with pytest.raises(SpeechError, match="nothing holds no alignment: prepare that share again"):
        gather([tmp_path / "one", tmp_path / "nothing"], tmp_path / "new", order)
