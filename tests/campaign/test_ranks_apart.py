# SPDX-License-Identifier: Apache-2.0
"""Two ranks of which one is not as the other: one clear error for all, and no hang."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigning import Outcome, Trained, call, nothing, refused, started
from ranks import environment, free_port
from speech import differences, everything

PATIENCE = 60.0


class Pair:
    """Two ranks of one training at work.

    Args:
        folder: for what they say.
        arguments: of each rank's command.
        before: what each does before that.
        more: of the environment of each.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[Sequence[str]],
        before: Sequence[Callable[[], object]] = (nothing, nothing),
        more: Sequence[dict[str, str]] = ({}, {}),
    ):
        self.logs = [folder / f"log-{rank}" for rank in range(2)]
        self._stack, port = contextlib.ExitStack(), free_port()
        self.processes = [
            self._stack.enter_context(
                started(
                    "train",
                    *arguments[rank],
                    log=self.logs[rank],
                    environment={**environment(rank, 2, port), **more[rank]},
                    before=before[rank],
                )
            )
            for rank in range(2)
        ]

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def end(self, seconds: float = PATIENCE) -> Outcome:
        """Waits for both; one outcome of all."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0.01))
        said = "".join(log.read_text(errors="replace") for log in self.logs if log.exists())
        statuses = [process.exitcode for process in self.processes]
        assert None not in statuses, f"a hang of {seconds} s: {statuses}\n{said}"
        assert len(set(statuses)) == 1, f"statuses {statuses}\n{said}"
        return Outcome(statuses[0], "", said)


def _other_code(copy: Path) -> None:
    from sniper.training import run

    run.__file__ = str(copy / "training/run.py")


def _other_torch() -> None:
    torch.__version__ = torch.torch_version.TorchVersion("2.9.0")


def _no_room(kilobytes: int) -> None:
    """Files of this process cannot grow beyond that, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes,) * 2)


def _moved(corpus: Path, folder: Path) -> Path:
    """A folder whose `corpus` is a copy of the corpus."""
    shutil.copytree(corpus, folder / "corpus")
    return folder


@pytest.fixture(scope="session")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks end in that nobody disturbs."""
    folder = tmp_path_factory.mktemp("two")
    with Pair(folder, [trained.arguments(folder / "run")] * 2) as pair:
        assert pair.end().status == 0
    return everything(folder / "run")


def test_other_code(trained: Trained, tmp_path: Path):
    import sniper

    copy, source = tmp_path / "sniper", Path(sniper.__file__).parent
    leave_out = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    shutil.copytree(source, copy, ignore=leave_out)
    (copy / "train.py").write_text((copy / "train.py").read_text() + "# another state\n")
    arguments = trained.arguments(tmp_path / "run")
    with Pair(tmp_path, [arguments] * 2, (nothing, partial(_other_code, copy))) as pair:
        said = refused(pair.end(), "expected the same sniper on every rank")
    assert "install the same on every machine" in said
    assert not (tmp_path / "run").exists()


def test_another_torch(trained: Trained, tmp_path: Path):
    arguments = trained.arguments(tmp_path / "run")
    with Pair(tmp_path, [arguments] * 2, (nothing, _other_torch)) as pair:
        said = refused(pair.end(), "expected the same torch on every rank")
    assert f"got {torch.__version__} on rank 0 and 2.9.0 on rank 1" in said


def test_another_processor(trained: Trained, tmp_path: Path):
    arguments, less = trained.arguments(tmp_path / "run"), {"SNIPER_CPU": "portable"}
    with Pair(tmp_path, [arguments] * 2, more=({}, less)) as pair:
        said = refused(pair.end(), "expected the same processor on every rank")
    assert "and cpu portable on rank 1; take machines of one kind" in said


def test_other_settings(trained: Trained, tmp_path: Path):
    arguments = trained.arguments(tmp_path / "run")
    with Pair(tmp_path, [arguments, [*arguments, "model.d_model=64"]]) as pair:
        refused(pair.end(), "the same model.d_model on every rank, got 32 on rank 0 and 64 on rank")


def _another(corpus: Path) -> None:
    shutil.rmtree(corpus)
    options = ["--utterances", 20, "--valid", 3, "--quiet", "--workers", 1]
    assert call("prepare", "demo", "--out", corpus, *options).status == 0


def _half(corpus: Path) -> None:
    path = corpus / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])  # as if it were being copied still


CORPORA = {
    "another": (_another, "expected the same corpus in corpus on every rank, got "),
    "none": (shutil.rmtree, " on rank 0 and nothing on rank 1; copy it to every machine, or share"),
    "half": (_half, "error: rank 1 of 2: corpus/train.safetensors is damaged"),
}


@pytest.mark.parametrize(("change", "expected"), CORPORA.values(), ids=CORPORA.keys())
def test_another_corpus(
    change: Callable[[Path], None], expected: str, trained: Trained, tmp_path: Path
):
    """Under the same path, as on two machines."""
    folders = [_moved(trained.corpus, tmp_path / str(rank)) for rank in range(2)]
    change(folders[1] / "corpus")
    arguments = [*trained.arguments(tmp_path / "run"), "data.root=corpus"]
    with Pair(tmp_path, [arguments] * 2, [partial(os.chdir, f) for f in folders]) as pair:
        assert expected in refused(pair.end())
    assert not (tmp_path / "run/checkpoints").exists()


def test_more_ranks_than_utterances(trained: Trained, tmp_path: Path):
    corpus = tmp_path / "corpus"
    options = ["--utterances", 2, "--valid", 1, "--quiet", "--workers", 1]
    assert call("prepare", "demo", "--out", corpus, *options).status == 0
    arguments = [*trained.arguments(tmp_path / "run", corpus), "data.utterances=2", "data.valid=1"]
    with Pair(tmp_path, [arguments] * 2) as pair:
        said = refused(pair.end(), "expected at most as many as there are utterances")
    assert "got 2 ranks and 1 utterances" in said and "start fewer" in said


def test_no_master(trained: Trained, tmp_path: Path):
    arguments, none = trained.arguments(tmp_path / "run"), {"MASTER_ADDR": ""}
    with Pair(tmp_path, [arguments] * 2, more=(none, none)) as pair:
        outcome = pair.end()
    # They do not know of each other.
    assert outcome.status == 2 and len(outcome.errors) == 2 and len(set(outcome.errors)) == 1
    assert "RANK and WORLD_SIZE in the environment without MASTER_ADDR" in outcome.err


@pytest.mark.parametrize("kilobytes", (100, 300))
def test_the_first_rank_has_no_room(kilobytes: int, trained: Trained, whole, tmp_path: Path):
    """It says so, and with room the same command ends as if nothing had been."""
    run = tmp_path / "run"
    arguments = trained.arguments(run)
    full = partial(_no_room, kilobytes), nothing
    with Pair(tmp_path, [arguments] * 2, full) as pair:
        said = refused(pair.end(), "File too large", statuses=(1,))
    assert said.startswith("error: rank 0 of 2: checkpoint ") and "free the disk" in said
    assert not list(run.rglob("*.tmp")) and not list(run.rglob(".writing-*"))
    with Pair(tmp_path, [arguments] * 2) as pair:
        assert pair.end().status == 0
    assert differences(everything(run), whole) == []


def test_another_rank_has_no_room(trained: Trained, whole, tmp_path: Path):
    """It needs next to none: the checkpoints are those of rank 0."""
    arguments, full = trained.arguments(tmp_path / "run"), (nothing, partial(_no_room, 8))
    with Pair(tmp_path, [arguments] * 2, full) as pair:
        assert pair.end().status == 0
    assert differences(everything(tmp_path / "run"), whole) == []


def test_choices_that_were_measured_elsewhere(trained: Trained, whole, tmp_path: Path):
    """A cache of its own, damaged at that, and other kernels are no reason to refuse."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    cache.mkdir()
    for name in ("timings.json", "selfcheck.json"):
        (cache / name).write_bytes(b"[")
    more = {}, {"SNIPER_CACHE_DIR": str(cache)}
    with Pair(tmp_path, [trained.arguments(run)] * 2, (nothing, _other_kernels), more) as pair:
        assert pair.end().status == 0
    rows, own = (found["history"] for found in (everything(run), whole))
    assert len(rows) == len(own) == 2
    # Not the weights: gradients that are 0 but for rounding, such as those of biases in front of a
    # BatchNorm, Adam makes steps of full length of, which no loss notices.
    for row, other in zip(rows, own, strict=True):
        for kind in ("train", "valid"):
            assert row[kind]["total"] == pytest.approx(other[kind]["total"], rel=1e-3)


def _other_kernels() -> None:
    from sniper.ops import dispatch

    dispatch._forced = dispatch.BACKENDS["reference"]


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_that_hangs(rank: int, trained: Trained, tmp_path: Path):
    """The other one waits for `train.timeout_minutes` and says who does not answer."""
    run = tmp_path / "run"
    arguments = [*trained.arguments(run, epochs=500), "train.timeout_minutes=0.05"]
    with Pair(tmp_path, [arguments] * 2) as pair:
        while not (run / "checkpoints/index.json").exists():
            assert all(process.is_alive() for process in pair.processes)
            time.sleep(0.01)
        os.kill(pair.processes[rank].pid, signal.SIGSTOP)
        other = pair.processes[1 - rank]
        other.join(PATIENCE)
        os.kill(pair.processes[rank].pid, signal.SIGKILL)
        said = "".join(log.read_text() for log in pair.logs)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert other.exitcode == 1, said
    assert line.startswith(f"error: rank {1 - rank} of 2: the exchange with other ranks failed: ")
    # Here the first rank keeps what all share; under torchrun a process of torchrun's does.
    who = "rank 1 of 2" if rank else r"127\.0\.0\.1:\d+ \(MASTER_ADDR and MASTER_PORT\)"
    assert re.search(f": {who} does not answer any more; .* was .*stopped", line)
    assert line.endswith("; the same command continues from the last checkpoint")


def test_a_rank_that_dies_behind_the_last_update(trained: Trained, whole, tmp_path: Path):
    """What all were to do is done: the first rank says so and ends well."""
    arguments = trained.arguments(tmp_path / "run")
    with Pair(tmp_path, [arguments] * 2, (_short_of_patience, _dies_when_done)) as pair:
        for process in pair.processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in pair.processes] == [0, -signal.SIGKILL]
        said = pair.logs[0].read_text()
    assert "warning: all is done and saved, but ranks that have not ended: 1 of 2, " in said
    assert differences(everything(tmp_path / "run"), whole) == []


def _short_of_patience() -> None:
    from sniper.training import ranks

    ranks._SILENCE = 3.0


def _dies_when_done() -> None:
    from sniper.training.trainer import Trainer

    fit = Trainer.fit

    def and_die(self: Trainer) -> None:
        fit(self)
        os.kill(os.getpid(), signal.SIGKILL)

    Trainer.fit = and_die


def test_a_first_rank_that_hangs_while_it_prepares(trained: Trained, tmp_path: Path):
    """Others wait as long as it takes, but not for one that does nothing."""
    arguments = [*trained.arguments(tmp_path / "run"), "train.timeout_minutes=0.05"]
    mark = tmp_path / "stopped"
    with Pair(tmp_path, [arguments] * 2, (partial(_stops_at_the_data, mark), nothing)) as pair:
        pair.processes[1].join(PATIENCE)
        assert mark.exists() and pair.processes[1].exitcode == 1
        said = pair.logs[1].read_text()
    assert "does not answer any more" in said and said.count("error: ") == 1


def _stops_at_the_data(mark: Path) -> None:
    from sniper.training import run

    def stop(config: Any) -> None:
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGSTOP)

    run.prepare_data = stop
