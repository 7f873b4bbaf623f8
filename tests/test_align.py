# SPDX-License-Identifier: Apache-2.0
"""The command: what it prints, how it ends, killed or whole; and prepare without alignments."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from speech import command

from sniper import prepare
from sniper.align import main
from sniper.tts.corpus.dataset import load_corpus_info
from sniper.tts.corpus.demo import write_demo_corpus


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """Synthetic recordings without alignments."""
    root = tmp_path_factory.mktemp("spoken")
    write_demo_corpus(root, 8, seed=5, voice="en-us", progress=False)
    (root / "alignments.jsonl").unlink()
    return root


def test_exit_statuses_and_lines(spoken, tmp_path, capsys):
    arguments = ["--root", str(spoken), "--out", str(tmp_path / "out"), "--quiet", "--workers=1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("8 utterances aligned, 0.0") and "report.md" in printed
    assert main([*arguments, "--language", "de"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([*arguments, "--align", "english", "--language", "de"]) == 2
    assert "knows English alone" in capsys.readouterr().err
    empty = tmp_path / "empty"
    shutil.copytree(spoken, empty)
    shutil.rmtree(empty / "wavs")
    (empty / "wavs").mkdir()
    assert main(["--root", str(empty), "--out", str(tmp_path / "e"), *arguments[4:]]) == 1
    assert "no utterance could be aligned" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--align", "mfa"])
    assert stopped.value.code == 2


def test_a_killed_run_is_continued(spoken, tmp_path):
    out = tmp_path / "out"
    arguments = ["--root", spoken, "--out", out, "--workers", 1]
    process = command("align", *arguments)
    journal, until = out / "align.jsonl", time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = [json.loads(line)["id"] for line in journal.read_text().split("\n") if line[-1:] == "}"]
    stamps = {n: (out / "TextGrid" / f"{n}.TextGrid").stat().st_mtime_ns for n in done}
    again = command("align", *arguments)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "aligning" in errors, errors
    assert len(list((out / "TextGrid").iterdir())) == 8
    for name, stamp in stamps.items():
        assert (out / "TextGrid" / f"{name}.TextGrid").stat().st_mtime_ns == stamp, "done once"


def test_prepare_aligns_by_itself(spoken, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["ljspeech", "--root", str(spoken), "--out", str(out), "--quiet", "--workers=1"]
    assert prepare.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "8 utterances aligned" in printed and "7 train, 1 valid" in printed
    info = load_corpus_info(out)
    assert {"AH0", "S"} <= set(info.vocabulary.symbols)
    assert prepare.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"{out} was prepared already: 7 train, 1 valid")
    grids = str(out / "alignment" / "TextGrid")
    assert prepare.main([*arguments, "--textgrids", grids, "--align", "english"]) == 2
    assert "give one of the two" in capsys.readouterr().err
