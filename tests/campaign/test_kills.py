# SPDX-License-Identifier: Apache-2.0
"""Killed, stopped or interrupted at a random moment, then the same command again: the result is
that of an uninterrupted run.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from campaigning import (
    TEXT,
    Matrix,
    Trained,
    call,
    linked,
    refused,
    seeded,
    started,
    tree,
    until_free,
)
from speech import differences, everything

from sniper.tts.locks import LOCK

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
MOMENTS = range(6)
# Interpreter and signal handlers stand after this long; a signal before ends any Python program.
BEGUN = 0.3
# Of a command that was stopped in an orderly way, or had ended before the signal came.
ORDERLY = (0, 130)


def _stop(
    command: str,
    arguments: list,
    how: str,
    moment: int,
    seconds: float,
    log: Path,
    ready: Path | None = None,
) -> int:
    """Starts a command and sends the signal at a moment within `seconds`; its exit status.

    The moments of a family of cases divide the time among themselves, so that all of it is met.
    """
    draw = seeded(command, how, moment).random()
    wait = seconds * (moment + draw) / len(MOMENTS)
    with started(command, *arguments, log=log) as process:
        if ready is not None:  # the command's first trace on the disk
            while not ready.exists() and process.is_alive():
                time.sleep(0.005)
        process.join(wait if ready is not None else max(wait, BEGUN))
        if process.is_alive():
            # As a terminal and a scheduler do: to all of its processes.
            os.killpg(process.pid, SIGNALS[how])
        process.join(60)
        assert process.exitcode is not None, "it did not end within a minute"
        status = process.exitcode
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, said
    if how != "kill" and status not in ORDERLY:
        # SIGTERM ends those commands that have nothing to save, and leaves no half file either.
        assert status == -signal.SIGTERM and command != "train", f"status {status}\n{said}"
    return status


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", SIGNALS)
def test_train(how: str, moment: int, trained: Trained, tmp_path: Path):
    run = tmp_path / "run"
    arguments = trained.arguments(run)
    for again in range(2):  # the second signal meets a resumed run
        _stop("train", arguments, how, (moment + again) % 6, 1.5, tmp_path / "log", run / LOCK)
    assert call("train", *arguments).status == 0
    assert differences(everything(run), trained.result) == []
    assert not list(run.rglob("*.tmp")) and not list(run.rglob(".writing-*"))
    left = {path.name for path in run.iterdir()}
    assert left == {path.name for path in trained.whole.iterdir()}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", SIGNALS)
def test_prepare(how: str, moment: int, trained: Trained, tmp_path: Path):
    """With two workers, which must not outlive the command."""
    root, out = trained.corpus / "corpus", tmp_path / "out"
    arguments = ["ljspeech", "--root", root, "--out", out, "--quiet", "--workers"]
    first = [*arguments, "2" if moment % 3 == 0 else "1"]
    _stop("prepare", first, how, moment, 0.8, tmp_path / "log", out / "prepare.work")
    assert call("prepare", *arguments, "1").status == 0
    whole = tmp_path / "whole"
    assert call("prepare", *arguments[:3], "--out", whole, *arguments[5:], "1").status == 0
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", SIGNALS)
def test_prepare_demo(how: str, moment: int, trained: Trained, tmp_path: Path):
    """While espeak-ng speaks, in a process of its own."""
    out = tmp_path / "out"
    arguments = ["demo", "--out", out, "--utterances", 24, "--valid", 3, "--quiet", "--workers", 1]
    _stop("prepare", arguments, how, moment, 3.0, tmp_path / "log", out)
    time.sleep(0.1)  # a process that speaks for a dead one ends by itself
    assert call("prepare", *arguments).status == 0
    assert tree(out) == tree(trained.corpus)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", SIGNALS)
def test_synthesize(how: str, moment: int, trained: Trained, tmp_path: Path):
    """What was spoken before stays whole until the new one is."""
    wav = tmp_path / "out" / "spoken.wav"
    wav.parent.mkdir()
    wav.write_bytes(old := b"what was spoken before")
    arguments = [TEXT, "--checkpoint", trained.run, "-o", wav]
    _stop("synthesize", arguments, how, moment, 0.9, tmp_path / "log")
    assert wav.read_bytes() in (old, trained.spoken)
    assert call("synthesize", *arguments).status == 0
    assert wav.read_bytes() == trained.spoken
    assert [path.name for path in wav.parent.iterdir()] == [wav.name]


@pytest.mark.parametrize("moment", range(2))
@pytest.mark.parametrize("how", SIGNALS)
def test_compare(how: str, moment: int, matrix: Matrix, tmp_path: Path):
    out = tmp_path / "out"
    options = [*matrix.options(out), "--sentences", "1"]
    _stop("compare", options, how, 1 + 3 * moment, 14.0, tmp_path / "log")
    until_free(out)
    assert call("compare", *options).status == 0
    for arm in ("block", "dense"):
        run, whole = (folder / "runs" / arm / "seed-0" for folder in (out, matrix.out))
        assert differences(everything(run), everything(whole)) == []
        assert (run / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_two_at_once(trained: Trained, tmp_path: Path):
    """The second is refused while the first works, and the first ends as if alone."""
    run = linked(trained.run, tmp_path / "run")
    arguments = trained.arguments(run)
    with started("train", *arguments, log=tmp_path / "log") as process:
        while not (run / LOCK).exists() and process.is_alive():
            time.sleep(0.002)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGSTOP)  # it cannot be done before the second comes
        done = call("train", *arguments)
        os.kill(process.pid, signal.SIGCONT)
        refused(done, f"{run} is in use by process {process.pid}")
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "log").read_text()
    assert differences(everything(run), trained.result) == []
