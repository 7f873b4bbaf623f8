# SPDX-License-Identifier: Apache-2.0
"""Several ranks under torchrun, disturbed: all start again from the last checkpoint, and end with
the bits of a training that nobody has disturbed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from campaigning import seeded
from speech import differences, everything, tiny
from torchruns import Machines, Torchrun, torchrun, two_machines

from sniper.training.config import dump

RANKS = range(2)
# Two kills each.
MOMENTS = range(10)
SAVES = range(5)
# Seconds from a rank's first line to its end, and of training within them, where nobody disturbs.
WHOLE, TRAINING = 9.0, 3.0
# File operations of one checkpoint, about.
OPERATIONS = 24


class Undisturbed:
    """A training of two ranks, with a checkpoint after every update, and where it leads."""

    def __init__(self, folder: Path, corpus: Path):
        few = {"batches_per_epoch": 8, "max_frames": 700, "checkpoint_minutes": 0.0}
        self.config = folder / "tiny.yaml"
        self.config.write_text(dump(tiny(corpus, folder / "run", train=few)), encoding="utf-8")
        self.run = folder / "run"
        with torchrun(folder / "trace", *self.arguments(self.run)) as whole:
            assert whole.end() == 0, whole.said()
            assert whole.trace(0, 0, "saved") == 24
        self.result: dict[str, Any] = everything(self.run)

    def arguments(self, run: Path, *more: str) -> list[str]:
        return ["--config", str(self.config), f"output={run}", *more]


@pytest.fixture(scope="session")
def undisturbed(
    demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory, choices_of_its_own: None
) -> Iterator[Undisturbed]:
    yield Undisturbed(tmp_path_factory.mktemp("undisturbed"), demo_corpus)


def _checked(done: Torchrun, run: Path, undisturbed: Undisturbed) -> None:
    """Nothing lost beyond one checkpoint's interval, which here is one update; the same end."""
    assert done.end() == 0, done.said()
    assert "Traceback" not in done.err, done.err
    for start in range(1, 4):
        first = done.trace(start, 0, "first")
        if first is None:  # killed before it trained, or nothing was left to train
            continue
        before = range(start)
        reached = max((done.trace(s, 0, "update") or 0 for s in before), default=0)
        saved = max((done.trace(s, 0, "saved") or 0 for s in before), default=0)
        assert saved <= first and reached - 1 <= first <= reached + 1, (first, saved, reached)
    assert differences(everything(run), undisturbed.result) == []
    assert not list(run.rglob("*.tmp")) and not list(run.rglob(".writing-*"))
    assert {path.name for path in run.iterdir()} == {p.name for p in undisturbed.run.iterdir()}


def _kill(at_work: Torchrun, start: int, rank: int, trace: str, seconds: float) -> None:
    """Kills a rank of one start so long after one of its traces, if it still lives then."""
    if not at_work.until(lambda: at_work.trace(start, rank, trace) is not None):
        return
    time.sleep(seconds)
    try:
        os.kill(at_work.trace(start, rank, "pid") or 0, signal.SIGKILL)
    except ProcessLookupError:
        return  # it had ended
    # All are started again, or all had done their work.
    at_work.until(lambda: at_work.trace(start + 1, rank, "pid") is not None)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rank", RANKS)
def test_killed_at_a_moment(rank: int, moment: int, undisturbed: Undisturbed, tmp_path: Path):
    """Once between start and end, once in training."""
    draw, run = seeded("torchrun", rank, moment), tmp_path / "run"
    first = WHOLE * (moment + draw.random()) / len(MOMENTS)
    arguments = undisturbed.arguments(run)
    with torchrun(tmp_path / "trace", *arguments, restarts=3) as at_work:
        _kill(at_work, 0, rank, "pid", first)
        start = 1 if at_work.trace(1, rank, "pid") is not None else 0
        _kill(at_work, start, rank, "first", TRAINING * draw.random())
        _checked(at_work, run, undisturbed)


@pytest.mark.parametrize("number", SAVES)
@pytest.mark.parametrize("rank", RANKS)
def test_killed_while_a_checkpoint_is_saved(
    rank: int, number: int, undisturbed: Undisturbed, tmp_path: Path
):
    """Before one of its file operations, which rank 0 does; others go on to the next update."""
    draw, run = seeded("saving", rank, number), tmp_path / "run"
    span = OPERATIONS if rank == 0 else 2
    at = [1 + draw.randrange(span * (number + 1)) for _ in range(2)]
    saving = ",".join(f"{start}-{rank}:{n}" for start, n in enumerate(at))
    arguments = undisturbed.arguments(run)
    with torchrun(tmp_path / "trace", *arguments, restarts=3, SAVING=saving) as at_work:
        assert at_work.until(lambda: at_work.trace(2, rank, "first") is not None)
        _checked(at_work, run, undisturbed)


@pytest.mark.parametrize("how", ("int", "term"))
def test_torchrun_is_stopped(how: str, undisturbed: Undisturbed, tmp_path: Path):
    """As a terminal and a scheduler do it: saved after an update, and the same command goes on."""
    run = tmp_path / "run"
    arguments = undisturbed.arguments(run)
    with torchrun(tmp_path / "trace", *arguments) as at_work:
        assert at_work.until(lambda: (at_work.trace(0, 1, "update") or 0) > 5)
        if how == "int":
            os.killpg(at_work.process.pid, signal.SIGINT)
        else:
            at_work.process.terminate()
        assert at_work.end() != 0
        assert at_work.err.count("stopped, saved; the same command continues") == 1
        assert "error: " not in at_work.err, at_work.err
        assert at_work.trace(0, 0, "saved") == (at_work.trace(0, 0, "update") or 0) + 1
    with torchrun(tmp_path / "again", *arguments) as at_work:
        assert at_work.end() == 0
    assert differences(everything(run), undisturbed.result) == []


def test_a_rank_that_hangs_is_started_again(undisturbed: Undisturbed, tmp_path: Path):
    """Its neighbour waits for `train.timeout_minutes` and says who does not answer; torchrun gives
    the one that hangs half a minute more.
    """
    run = tmp_path / "run"
    arguments = undisturbed.arguments(run, "train.timeout_minutes=0.05")
    with torchrun(tmp_path / "trace", *arguments, restarts=1) as at_work:
        assert at_work.until(lambda: (at_work.trace(0, 1, "update") or 0) > 5)
        os.kill(at_work.trace(0, 1, "pid") or 0, signal.SIGSTOP)
        assert at_work.until(lambda: at_work.trace(1, 1, "pid") is not None)
        (said,) = [line for line in at_work.err.splitlines() if line.startswith("error: ")]
        assert "rank 1 of 2 does not answer any more; it was killed or stopped" in said
        _checked(at_work, run, undisturbed)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(two_machines())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"two network namespaces need root and iproute2: {error}")
        yield made


def _on_both(
    machines: Machines, stack: contextlib.ExitStack, folder: Path, *arguments: str, **more: str
) -> list[Torchrun]:
    """torchrun with a rank on each machine, as docs/distributed.md has it."""
    started = []
    for number, address in enumerate(machines.addresses):
        rendezvous = [
            "--nnodes=2",
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={machines.addresses[0]}:29500",
            "--rdzv_id=campaign",
            # Both have the name of this machine, by which torchrun would know which one it is on.
            f"--rdzv_conf=is_host={int(number == 0)}",
            f"--local_addr={address}",
        ]
        each = torchrun(
            folder / f"machine-{number}",
            *arguments,
            ranks=1,
            rendezvous=tuple(rendezvous),
            inside=machines.inside(number),
            **more,
        )
        started.append(stack.enter_context(each))
    return started


def test_two_machines(machines: Machines, undisturbed: Undisturbed, tmp_path: Path):
    """With an address each: the bits of two ranks on one machine."""
    with contextlib.ExitStack() as stack:
        arguments = undisturbed.arguments(tmp_path / "run")
        interface = {"GLOO_SOCKET_IFNAME": machines.interface}
        both = _on_both(machines, stack, tmp_path, *arguments, **interface)
        for each in both:
            assert each.end() == 0, each.said()
        assert both[0].out.count("2 ranks: ") == 1 and both[1].out == ""
    assert differences(everything(tmp_path / "run"), undisturbed.result) == []


def test_two_machines_by_the_wrong_interface(
    machines: Machines, undisturbed: Undisturbed, tmp_path: Path
):
    """Where a name leads to the machine itself, as it does in many a /etc/hosts."""
    with contextlib.ExitStack() as stack:
        arguments = undisturbed.arguments(tmp_path / "run")
        wrong = {"GLOO_SOCKET_IFNAME": "lo"}
        both = _on_both(machines, stack, tmp_path, *arguments, **wrong)
        assert [each.end() for each in both] == [1, 1]
        said = [line for each in both for line in each.err.splitlines() if "error: rank" in line]
    assert said and all("set GLOO_SOCKET_IFNAME" in line for line in said), said


def test_the_cable_between_two_machines(
    machines: Machines, undisturbed: Undisturbed, tmp_path: Path
):
    """Pulled: each side says that the other does not answer. What torchrun does then is its own."""
    with contextlib.ExitStack() as stack:
        # Longer than a busy machine keeps a rank waiting.
        arguments = undisturbed.arguments(tmp_path / "run", "train.timeout_minutes=0.4")
        interface = {"GLOO_SOCKET_IFNAME": machines.interface}
        both = _on_both(machines, stack, tmp_path, *arguments, **interface)
        assert both[1].until(lambda: (both[1].trace(0, 1, "update") or 0) > 5)
        machines.cable(False)
        for each in both:
            each.until(lambda each=each: "error: rank" in each.err)
            (said,) = [line for line in each.err.splitlines() if "error: rank" in line]
            assert "does not answer any more; " in said, said
        machines.cable(True)
    with torchrun(tmp_path / "again", *arguments) as again:
        assert again.end() == 0
    assert differences(everything(tmp_path / "run"), undisturbed.result) == []
