# SPDX-License-Identifier: Apache-2.0
"""All runs of a matrix: which there are, what is left to do, and doing it.

OUT/runs/ARM/seed-0/   a run's folder, as `sniper.train` leaves it, and
    run.yaml           what to train
    result.json        how it went
    log.txt            what the run said
    evaluation.json    what was measured
OUT/truth/             the held-out sentences themselves
"""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sniper.compare import files
from sniper.compare.arms import Arm, Matrix
from sniper.compare.evaluate import read_evaluation
from sniper.compare.worker import (
    came_to_its_end,
    forget_failure,
    progress_of,
    read_result,
    status,
)
from sniper.training import checkpoint
from sniper.training.config import Config, ConfigError, differences, dump, from_dict
from sniper.training.settings import parse, read_text
from sniper.tts.errors import FolderInUse
from sniper.tts.locks import only_one
from sniper.tts.processes import signals

# Where things lie, and what does not touch the training.
_MAY_DIFFER = ("name", "output", "sample_text", "vocoder")
_MAY_DIFFER += ("data.root", "data.prepared", "data.workers")
_POLL_SECONDS = 0.5  # between two looks at the running processes
_LOG_SECONDS = 60.0  # between two lines on how far it is, where no bar is shown


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args:
        folder: its output.
        config: as `sniper.train` takes it.
    """

    arm: Arm
    seed: int
    folder: Path
    config: Config

    def __str__(self) -> str:
        return f"{self.arm.name} seed {self.seed}"

    def epochs_done(self) -> int:
        """Epochs that its last checkpoint holds."""
        return progress_of(self.folder).epoch

    def trained(self) -> bool:
        """Whether it needs no more training: it came to its end, or diverged."""
        return status(self.folder) == "diverged" or came_to_its_end(self.folder, self.config)

    def measured(self, sentences: int | None = None) -> bool:
        """Whether nothing is left to measure."""
        diverged = status(self.folder) == "diverged"
        found = read_evaluation(self.folder, sentences, self.config.vocoder)
        return diverged or found is not None


def epochs_of(runs: Sequence[Run]) -> str:
    """How long the runs train, for people: "16", or "16 to 21"."""
    epochs = [run.config.train.epochs for run in runs]
    few, most = min(epochs), max(epochs)
    return str(few) if few == most else f"{few} to {most}"


def plan(matrix: Matrix, out: Path, threads: int) -> list[Run]:
    """All runs, seed by seed: what else the machine does then meets all arms alike, and after the
    first seed there is something to see.
    """
    return [
        Run(arm, seed, folder, matrix.config(arm, seed, folder, threads))
        for seed in matrix.seeds
        for arm in matrix.arms
        if seed in (arm.seeds or matrix.seeds)
        for folder in [out / "runs" / arm.name / f"seed-{seed}"]
    ]


def share_of(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """The runs of one of `count` shares, counted from 1: neighbours, so that arms of a seed stay on
    one machine as far as can be, which their times are compared on.

    Raises:
        ConfigError: more shares than runs.
    """
    if count > len(runs):
        raise ConfigError(
            f"--shard {index}/{count}: expected at most {len(runs)} shares, one a run"
        )
    return list(runs[(index - 1) * len(runs) // count : index * len(runs) // count])


def refuse_changes(runs: Sequence[Run]) -> None:
    """Refuses to go on in a folder whose runs were begun with other settings.

    Raises:
        ConfigError: with the differences.
    """
    lines: list[str] = []
    for run in runs:
        path = run.folder / "run.yaml"
        if not path.exists():
            continue
        changed = differences(_begun(path), run.config, _MAY_DIFFER)
        if changed:
            lines += [f"{run}:", *(f"  {line}" for line in changed)]
    if lines:
        # From OUT/runs/ARM/seed-0 back to OUT.
        out = runs[0].folder.parent.parent.parent
        raise ConfigError(
            "\n".join([f"{out} holds runs with other settings:", *lines])
            + "\nuse another --output FOLDER, or delete the folders of these runs"
        )


def _begun(path: Path) -> Config:
    """The settings of a run.yaml, of older versions too."""
    return from_dict(parse(read_text(path), str(path)))


@dataclass
class Outcome:
    """How a call of `execute` went.

    Args:
        failed: runs that ended with an error, and what it was; they are tried again next time.
        stopped: whether it was asked to stop.
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def execute(
    runs: Sequence[Run],
    truth: Path,
    *,
    jobs: int = 1,
    train: bool = True,
    sentences: int = 20,
    say: Callable[[str], None] | None = None,
    shared: bool = False,
) -> Outcome:
    """Trains and measures what is not done yet, `jobs` processes at a time.

    A run that diverges or fails does not keep the others from going on. Asked to stop, the running
    ones save and end; should this process be killed, they notice and do the same.

    Args:
        truth: folder for the held-out sentences.
        train: False: only measure runs that are trained.
        sentences: held-out sentences to measure, at most.
        say: takes lines for the user; None: they are printed.
        shared: other comparisons work in the same folder; what they are at is left to them.
    """
    outcome, say = Outcome(), say or functools.partial(print, flush=True)
    waiting = [run for run in runs if not _done(run, sentences, train)]
    clock = _Clock(runs, [run for run in runs if run not in waiting])
    running: dict[subprocess.Popen, Run] = {}
    with signals(lambda: _stop(outcome, running)), clock:
        while running or (waiting and not outcome.stopped):
            while waiting and len(running) < jobs and not outcome.stopped:
                run = waiting.pop(0)
                owner = _owner(run) if shared else ""
                if owner:
                    say(f"{run}: left to others, {owner}")
                    continue
                process = _start(run, truth, train, sentences)
                running[process] = run
                if outcome.stopped:  # while it was started, and could not be told
                    process.terminate()
                clock.begins(run)
                say(f"{run}: {'is measured' if run.trained() else 'begins'}")
            # Looking, not waiting for one process: several run, and progress is read from their
            # checkpoints.
            time.sleep(_POLL_SECONDS)
            for process in [p for p in running if p.poll() is not None]:
                run = running.pop(process)
                how = _describe_end(run, process.returncode, train)
                if process.returncode and not outcome.stopped:
                    outcome.failed[str(run)] = how
                clock.ends(run)
                say(f"{clock.count:3d}/{len(runs)}  {run}: {how}; {clock.left()}")
            clock.update(running.values())
            if clock.due():
                say(f"         {clock}")
    return outcome


def _owner(run: Run) -> str:
    """Who else works in a run's folder, in words; "" for nobody."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        # Let go at once: the worker takes it. Where another one is faster, the worker says so.
        with only_one(run.folder):
            return ""
    except FolderInUse as error:
        return str(error)


def _done(run: Run, sentences: int, train: bool) -> bool:
    if not run.trained():
        return not train
    # A small corpus has fewer sentences than were asked for.
    found = read_evaluation(run.folder)
    short = found is not None and len(found["ids"]) < sentences
    return run.measured(None if short else sentences)


def _start(run: Run, truth: Path, train: bool, sentences: int) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    forget_failure(run.folder)
    files.write_text(run.folder / "run.yaml", dump(run.config))
    command = [sys.executable, "-m", "sniper.compare.worker", str(run.folder)]
    command += ["--truth", str(truth), "--sentences", str(sentences)]
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command if train else [*command, "--no-training"],
            stdin=subprocess.PIPE,  # closes with this process
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C comes here first
        )


def _describe_end(run: Run, code: int, train: bool) -> str:
    """What became of a run, in words."""
    if code == 130:
        return "stopped, saved"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; the same command goes on with it"
    result = read_result(run.folder)
    if code:
        return f"failed: {result['message'] or _last_words(run.folder / 'log.txt')}"
    if result["status"] == "diverged":
        return f"diverged: {result['message']}"
    if not train:
        return "measured"
    saved = checkpoint.load_meta(run.folder)["progress"]
    minutes = result["wall_seconds"] / 60
    return f"validation loss {saved['best_loss']:.3f} in {minutes:.1f} min"


def _last_words(log: Path) -> str:
    """The last line that a run wrote, for one that could not record what went wrong."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f"{said[-1][:300] if said else 'without a word'}; see {log}"
    return f"see {log}"


class _Clock:
    """Progress over the whole matrix, counted in epochs."""

    def __init__(self, runs: Sequence[Run], done: Sequence[Run]):
        from tqdm import tqdm

        self.count = len(done)
        self._left = {str(r): r.config.train.epochs for r in runs if r not in done}
        for run in runs:
            if run not in done:
                # A run may have more epochs than are asked for now.
                self._left[str(run)] -= min(self._left[str(run)], run.epochs_done())
        self._todo = sum(self._left.values())
        self._began = self._told = time.monotonic()
        total = sum(r.config.train.epochs for r in runs)
        self._bar = tqdm(
            total=total,
            initial=total - self._todo,
            unit="epoch",
            smoothing=0,
            disable=None if sys.stderr else True,
        )

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begins(self, run: Run) -> None:
        self._bar.set_postfix_str(str(run))

    def ends(self, run: Run) -> None:
        self.count += 1
        self._left[str(run)] = 0
        self._show()

    def update(self, running: Iterable[Run]) -> None:
        """Takes note of the epochs that are done."""
        for run in running:
            self._left[str(run)] = max(0, run.config.train.epochs - run.epochs_done())
        self._show()

    def left(self) -> str:
        """Time to the end of the matrix, going by the epochs so far."""
        left = sum(self._left.values())
        done = self._todo - left
        if not left:
            return "no epoch left"
        if not done:
            return "time left unknown"
        # Estimated from the epochs since this start alone: those before may have run on another
        # machine.
        seconds = (time.monotonic() - self._began) / done * left
        return f"about {seconds / 60:.0f} min left"

    def due(self) -> bool:
        """Whether it is time to say how far it is: now and then, where no bar is shown."""
        now = time.monotonic()
        if not self._bar.disable or now - self._told < _LOG_SECONDS:
            return False
        self._told = now
        return True

    def __str__(self) -> str:
        done = self._bar.total - sum(self._left.values())
        return f"{done} of {self._bar.total} epochs done; {self.left()}"

    def _show(self) -> None:
        at = self._bar.total - sum(self._left.values())
        self._bar.update(at - self._bar.n)


def _stop(outcome: Outcome, running: Iterable[subprocess.Popen]) -> None:
    """The first time lets the runs save, the second kills them."""
    for process in running:
        process.kill() if outcome.stopped else process.terminate()
    outcome.stopped = True
