# SPDX-License-Identifier: Apache-2.0
"""One run in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from comparing import Compared, until
from speech import tiny

from sniper.compare import files
from sniper.compare.worker import (
    _record,
    forget_failure,
    machine,
    main,
    of_a_comparison,
    read_result,
    status,
)
from sniper.training import checkpoint
from sniper.training.checkpoint import Checkpoint, CheckpointError
from sniper.training.config import ConfigError, dump
from sniper.training.progress import Interrupted
from sniper.training.restore import refuse_other_speech
from sniper.tts.corpus.dataset import load_corpus_info


def test_a_finished_run_says_how_it_went(compared: Compared):
    folder = compared.run("dense").folder
    result = files.read_json(folder / "result.json")
    assert status(folder) == "trained" and result["message"] == ""
    (begun, ended), *more = result["spans"]
    assert more and begun < ended < more[0][0]  # it was killed, and taken up again later
    assert sum(b - a for a, b in result["spans"]) == pytest.approx(result["wall_seconds"])
    assert result["machine"]["threads"] == 1 and result["machine"]["torch"].startswith("2.")
    assert status(folder / "nowhere") is None


def test_the_machine():
    found = machine()
    assert found["cores"] >= 1 and found["cpu"] and found["sniper"]
    assert "system" in found and "date" in found


def test_settings_that_cannot_be_trained_are_a_failure(compared: Compared, tmp_path: Path, capsys):
    config = dump(compared.run("dense").config).replace("max_frames: 1300", "max_frames: 10")
    (tmp_path / "run.yaml").write_text(config.replace(str(compared.out), str(tmp_path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sniper.compare.worker._stop_with_parent", lambda: None)
        assert main([str(tmp_path), "--truth", str(tmp_path / "truth")]) == 1
    assert "train.max_frames: longer than max_frames_per_batch = 10" in capsys.readouterr().err
    assert status(tmp_path) == "failed"
    assert "train.max_frames" in files.read_json(tmp_path / "result.json")["message"]


def test_a_fault_of_ours_is_recorded_as_what_it_is(compared: Compared, tmp_path: Path, capsys):
    """Not as the message of an earlier failure."""
    config = dump(compared.run("dense").config).replace(str(compared.out), str(tmp_path))
    (tmp_path / "run.yaml").write_text(config)
    before = {"status": "failed", "message": "old", "wall_seconds": 5.0, "machine": None}
    files.write_json(tmp_path / "result.json", before)
    assert read_result(tmp_path) == {**before, "spans": []}
    forget_failure(tmp_path)
    assert read_result(tmp_path) == {**before, "status": "stopped", "message": "", "spans": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sniper.compare.worker._stop_with_parent", lambda: None)
        patch.setattr(
            import_module("sniper.training.run"), "open_run", lambda config, relayed: 1 // 0
        )
        assert main([str(tmp_path), "--truth", str(tmp_path / "truth")]) == 1
    assert "Traceback" in capsys.readouterr().err
    result = read_result(tmp_path)
    assert result["status"] == "failed" and len(result["spans"]) == 1
    assert result["message"].startswith("ZeroDivisionError: ")
    assert result["message"].endswith(f"see {tmp_path}/log.txt")


@pytest.mark.parametrize("how", ["trained", "stopped", "failed"])
def test_a_run_whose_checkpoints_are_gone_is_trained_anew(tmp_path: Path, monkeypatch, how: str):
    """What is known of the lost training, its time and what was measured, is not the new one's."""
    run = tmp_path / "run"
    files.write_text(run / "run.yaml", dump(tiny(tmp_path / "corpus", run)))
    lost = {"status": how, "message": "", "wall_seconds": 5.0, "spans": [[1.0, 6.0]]}
    files.write_json(run / "result.json", lost)
    files.write_json(run / "evaluation.json", {})
    found: list[str] = []

    def open_run(config: object, relayed: bool) -> None:
        assert relayed  # the matrix says it too, and a second signal must not stop at once
        found.extend(path.name for path in run.iterdir())
        raise Interrupted

    monkeypatch.setattr("sniper.compare.worker._stop_with_parent", lambda: None)
    monkeypatch.setattr(import_module("sniper.training.run"), "open_run", open_run)
    assert main([str(run), "--truth", str(tmp_path / "truth")]) == 130
    assert found and not {"result.json", "evaluation.json"} & set(found)
    result = read_result(run)
    assert result["status"] == "stopped" and len(result["spans"]) == 1


def test_a_clock_that_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A session does not end before it began, and takes nothing from those before it."""
    monkeypatch.setattr("sniper.compare.worker.time.time", lambda: 500.0)
    _record(tmp_path, "stopped", "", started=400.0)
    _record(tmp_path, "trained", "", started=900.0)
    result = read_result(tmp_path)
    assert result["spans"] == [[400.0, 500.0], [900.0, 900.0]] and result["wall_seconds"] == 100.0


def test_advice_is_what_compare_has(demo_corpus: Path, tmp_path: Path):
    """Of its runs' errors: there is no --fresh, and a run's folder is not chosen."""
    run = tmp_path / "seed-0"
    (run / "checkpoints/step-00000001").mkdir(parents=True)
    (run / "checkpoints/step-00000001/meta.json").write_text("{")
    info = load_corpus_info(demo_corpus)
    saved = Checkpoint(run, {}, {}, {"speech": json.loads(json.dumps(info.to_json()))})
    other = dataclasses.replace(info, features=dataclasses.replace(info.features, f_min=1.0))
    calls = (
        lambda: checkpoint.exists(run),
        lambda: checkpoint.read_meta(run / "checkpoints/step-00000001"),
        lambda: refuse_other_speech(saved, other, run),
    )
    for call in calls:
        with pytest.raises((CheckpointError, ConfigError), match="--fresh") as error:
            call()
        said = of_a_comparison(error.value)
        assert said.endswith("delete the run's folder to train it anew"), said
        assert "--fresh" not in said and "output=" not in said


@pytest.mark.parametrize("content", ["", "[]", "[1]", "null", '{"sta'])
def test_a_damaged_result_is_as_not_begun(tmp_path: Path, content: str):
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) == read_result(tmp_path / "nowhere")
    assert status(tmp_path) is None


def test_it_stops_when_its_parent_is_gone():
    """The life line is a pipe; its other end closes however the parent dies."""
    program = "import time, threading; from sniper.compare import worker\n"
    program += "threading.Thread(target=worker._stop_with_parent, daemon=True).start()\n"
    program += "print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        until(lambda: process.poll() is not None, 20)
        assert process.returncode == -signal.SIGTERM
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
