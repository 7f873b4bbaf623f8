# SPDX-License-Identifier: Apache-2.0
"""Runs of a matrix: planned, killed, taken up again, refused."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from comparing import Compared
from speech import differences, everything, fit

from sniper.compare import files, worker
from sniper.compare.arms import load_matrix
from sniper.compare.matrix import (
    _Clock,
    _describe_end,
    epochs_of,
    execute,
    plan,
    refuse_changes,
    share_of,
)
from sniper.training.config import ConfigError
from sniper.tts.locks import LOCK


def test_all_arms_of_a_seed_before_the_next_seed(matrix_file: Path):
    runs = plan(load_matrix(str(matrix_file)), Path("out"), threads=2)
    expected = ["block seed 0", "dense seed 0", "broken seed 0"]
    assert [str(run) for run in runs] == expected + [e.replace("0", "1") for e in expected]
    assert runs[4].folder == Path("out/runs/dense/seed-1")
    assert runs[4].config.train.seed == 1 and runs[4].config.train.threads == 2


def test_shares_are_neighbours_and_all_runs(matrix_file: Path):
    runs = plan(load_matrix(str(matrix_file)), Path("out"), threads=1)
    for count in range(1, 7):
        shares = [share_of(runs, i, count) for i in range(1, count + 1)]
        assert sum(shares, []) == runs and all(shares)
    assert {run.seed for run in share_of(runs, 1, 2)} == {0}
    with pytest.raises(ConfigError, match="--shard 2/7: expected at most 6 shares, one a run"):
        share_of(runs, 2, 7)


def test_what_others_are_at_is_left_to_them(matrix_file: Path, tmp_path: Path, monkeypatch):
    """Two shares never train one run, however they were cut."""
    run = plan(load_matrix(str(matrix_file)), tmp_path, threads=1)[1]
    run.folder.mkdir(parents=True)
    other = in_use(run.folder)
    said: list[str] = []
    try:
        outcome = execute([run], tmp_path / "truth", say=said.append, shared=True)
        monkeypatch.setattr(worker, "_SAVING_SECONDS", 0.0)
        monkeypatch.setattr(worker, "_stop_with_parent", lambda: None)
        assert worker.main([str(run.folder), "--truth", str(tmp_path / "truth")]) == 1
    finally:
        other.communicate(b"\n")
    assert outcome.failed == {} and not outcome.stopped
    assert said == [f"dense seed 0: left to others, {said[0].split(', ', 1)[1]}"]
    assert f"in use by process {other.pid} on" in said[0]
    assert {p.name for p in run.folder.iterdir()} <= {LOCK}  # no run.yaml, no result


def test_stopped_while_a_run_is_started(matrix_file: Path, tmp_path: Path, monkeypatch):
    """It cannot be told before it is there, and would train to its end."""
    (run, *_) = plan(load_matrix(str(matrix_file)), tmp_path, threads=1)
    said: list[str] = []

    def start(*_: object) -> subprocess.Popen:
        signal.raise_signal(signal.SIGTERM)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9)"])

    monkeypatch.setattr("sniper.compare.matrix._start", start)
    assert execute([run], tmp_path / "truth", say=said.append).stopped
    assert "block seed 0: killed by SIGTERM; the same command goes on with it" in said[-1]


def in_use(folder: Path) -> subprocess.Popen:
    """A process that works in a folder until it is told to end."""
    program = "import sys, pathlib; from sniper.tts.locks import only_one\n"
    program += "with only_one(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", program, folder], stdin=pipe, stdout=pipe)
    assert other.stdout.readline() == b"in\n"
    return other


def test_runs_of_different_lengths(matrix_file: Path):
    runs = plan(load_matrix(str(matrix_file)), Path("out"), threads=1)
    assert epochs_of(runs) == "3"
    train = runs[1].config.train.model_copy(update={"epochs": 5})
    config = runs[1].config.model_copy(update={"train": train})
    assert epochs_of([*runs, dataclasses.replace(runs[1], config=config)]) == "3 to 5"


@pytest.mark.parametrize("arm", ["block", "dense"])
def test_stopped_or_killed_and_taken_up_again(compared: Compared, tmp_path: Path, arm: str):
    """Ctrl-C met the one, `kill -9` of the whole the other; neither shows in the result."""
    assert compared.stopped.endswith("stopped, saved; the same command continues\n")
    before, after = compared.left
    assert 1 <= before <= after < 3
    run = compared.run(arm)
    log = (run.folder / "log.txt").read_text()
    assert "stopping after this update" in log and "resumed at epoch" in log
    trainer = fit(run.config.model_copy(update={"output": str(tmp_path)}))
    assert trainer.progress.epoch == 3
    assert differences(everything(run.folder), everything(tmp_path)) == []


def test_a_killed_run_is_said_to_be_one(compared: Compared):
    words = "killed by SIGKILL; the same command goes on with it"
    assert _describe_end(compared.run("dense"), -signal.SIGKILL, train=True) == words


def test_an_arm_that_diverges_is_recorded_and_the_rest_goes_on(compared: Compared):
    for seed in (0, 1):
        broken = compared.run("broken", seed)
        result = files.read_json(broken.folder / "result.json")
        assert result["status"] == "diverged" and "is not finite in epoch 1" in result["message"]
        assert broken.trained() and broken.measured()
        assert f"broken seed {seed}: diverged: the loss" in compared.said
        for arm in ("block", "dense"):
            assert compared.run(arm, seed).trained() and compared.run(arm, seed).measured(3)
    assert "block seed 1: validation loss " in compared.said
    assert "6/6" in compared.said and "left" in compared.said


def test_nothing_is_done_twice(compared: Compared, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("sniper.compare.matrix.subprocess.Popen", never)
    outcome = execute(compared.runs, compared.out / "truth", sentences=32)
    assert not outcome.failed and not outcome.stopped
    with pytest.raises(AssertionError, match="a process was started"):
        execute(compared.runs, compared.out / "truth", sentences=2)  # measured on other sentences


def test_other_settings_are_refused_with_the_difference(compared: Compared, tmp_path: Path):
    refuse_changes(compared.runs)
    moved = load_matrix(str(compared.file), overrides=["data.root=elsewhere", "sample_text=Hm."])
    refuse_changes(plan(moved, compared.out, threads=1))
    changed = load_matrix(str(compared.file), overrides=["train.lr=0.5"])
    with pytest.raises(ConfigError) as refused:
        refuse_changes(plan(changed, compared.out, threads=2))
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{compared.out} holds runs with other settings:"
    one = ["  train.lr: 1.0 there, 0.5 now", "  train.threads: 1 there, 2 now"]
    assert lines[1:4] == ["block seed 0:", *one]
    assert "broken seed 1:" in lines and "another --output" in lines[-1]
    refuse_changes(plan(changed, tmp_path, threads=2))


def test_a_run_that_fails_does_not_stop_the_others(
    compared: Compared, tmp_path: Path, listener: ModuleType
):
    """Without training there is nothing to measure in the one, and all in the other."""
    runs = plan(compared.matrix, tmp_path, threads=1)[:2]
    shutil.copytree(compared.run("dense").folder, runs[1].folder)
    (runs[1].folder / "evaluation.json").unlink()
    runs[0].folder.mkdir(parents=True)
    said: list[str] = []
    shutil.copytree(compared.run("block").folder, runs[0].folder, dirs_exist_ok=True)
    (runs[0].folder / "evaluation.json").unlink()
    for weights in (runs[0].folder / "checkpoints").rglob("model.safetensors"):
        weights.write_bytes(b"cut off")
    outcome = execute(
        runs, compared.out / "truth", jobs=2, train=False, sentences=3, say=said.append
    )
    assert list(outcome.failed) == ["block seed 0"] and not outcome.stopped
    assert "cannot be read, it is damaged" in outcome.failed["block seed 0"]
    assert runs[0].trained() and not runs[0].measured()  # tried again next time
    assert runs[1].measured(3)
    assert any(line.endswith("measured; no epoch left") for line in said)
    assert "dense seed 0: is measured" in said


def test_how_far_it_is_without_a_bar(compared: Compared, monkeypatch: pytest.MonkeyPatch):
    """Lines now and then in a log, none beside a bar."""
    now = 1000.0
    monkeypatch.setattr("sniper.compare.matrix.time.monotonic", lambda: now)
    with _Clock(compared.runs, compared.runs[:2]) as clock:
        assert not clock.due()
        now += 61
        assert clock.due() and not clock.due()
        assert str(clock).startswith("12 of 18 epochs done; ")  # of the broken one there are none
    now += 61
    with monkeypatch.context() as patch:
        patch.setattr(clock, "_bar", SimpleNamespace(disable=False))
        assert not clock.due()
    assert clock.due()
