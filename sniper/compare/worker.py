# SPDX-License-Identifier: Apache-2.0
"""One run of the matrix in a process of its own: train, measure, say how it went.

    python -m sniper.compare.worker RUN --truth FOLDER [--no-training] [--sentences N]

RUN/run.yaml says what to train; RUN/result.json says how it went. Exit status: 0 trained, measured,
or diverged; 1 an error; 130 stopped (saved). Its standard input is the matrix's life line: when
that closes, the run saves and stops.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sniper.compare import files
from sniper.tts.locks import only_one

if TYPE_CHECKING:
    from sniper.training.config import Config
    from sniper.training.progress import Progress

RESULT = "result.json"
_SAVING_SECONDS = 300.0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sniper.compare.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--sentences", type=int, default=20)
    options = parser.parse_args(argv)
    # Before the slow imports: the matrix may be killed while they run.
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    from sniper.training.checkpoint import CheckpointError
    from sniper.training.config import ConfigError
    from sniper.training.progress import Interrupted, LoadingFailed, OutOfMemory
    from sniper.tts.errors import FolderInUse, SpeechError

    try:
        # A worker that an earlier comparison left behind may still be saving.
        with only_one(options.run, wait=_SAVING_SECONDS):
            return _work(options)
    except FolderInUse as error:  # the result is its owner's
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (
        SpeechError,
        ConfigError,
        CheckpointError,
        OutOfMemory,
        LoadingFailed,
        OSError,
    ) as error:
        said = of_a_comparison(error)
        print(f"error: {said}", file=sys.stderr)
        with contextlib.suppress(OSError):  # it may be this very file that cannot be written
            _record(options.run, "failed", said)
        return 1
    except (Interrupted, KeyboardInterrupt):
        return 130
    except Exception as error:  # a fault of ours: told as it is, instead of an older message
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}; see {options.run}/log.txt"
        _record(options.run, "failed", what)
        return 1


def _work(options: argparse.Namespace) -> int:
    from sniper.compare.evaluate import evaluate, load_truth, read_evaluation
    from sniper.training.config import load
    from sniper.training.device import set_up_torch
    from sniper.training.progress import NotFinite
    from sniper.training.run import open_run, prepare_data
    from sniper.tts.corpus.dataset import FeatureDataset

    # The whole path, since no part of it is a person's ~ any more.
    folder, config = options.run, load(str(options.run.absolute() / "run.yaml"))
    if not options.no_training and not came_to_its_end(folder, config):
        _forget_lost_training(folder)
        started = time.time()
        try:
            # The matrix, the life line and a scheduler may each say that it is to stop.
            with open_run(config, relayed=True) as trainer:
                trainer.fit()
        except NotFinite as error:
            print(f"diverged: {error}", file=sys.stderr)
            _record(folder, "diverged", str(error), started)
            return 0
        # Being stopped too: the seconds up to here count as the run's own.
        except BaseException:
            _record(folder, "stopped", "", started)
            raise
        _record(folder, "trained", "", started)
    # A run that was trained before comes here without the training's set-up.
    set_up_torch(config.train)
    valid = FeatureDataset(prepare_data(config) / "valid.safetensors")
    options.truth.mkdir(parents=True, exist_ok=True)
    with only_one(options.truth, wait=float("inf")):  # the first one measures it for all
        truth = load_truth(options.truth, valid, options.sentences, config.vocoder)
    if read_evaluation(folder, len(truth.f0), config.vocoder) is None:
        evaluate(folder, truth, config.train.device)
    return 0


def read_result(folder: Path) -> dict[str, Any]:
    """What result.json says; what it lacks, or the whole if it is damaged, is as not begun.

    Returns:
        `status` (`trained`, `diverged`, `stopped`, `failed`; None: not begun), `message`,
        `wall_seconds`, `machine` (None: not known), and `spans`: beginning and end of each session,
        in seconds of the clock; empty in results from before they were kept.
    """
    result: dict[str, Any] = {"status": None, "message": "", "wall_seconds": 0.0, "spans": []}
    result["machine"] = None
    found = files.read_json(folder / RESULT)
    return result | found if isinstance(found, dict) else result


def status(folder: Path) -> str | None:
    """How a run ended, as `read_result` has it."""
    return read_result(folder)["status"]


def progress_of(folder: Path) -> Progress:
    """Where a run stands by its last checkpoint; at the beginning where none can be read."""
    from sniper.training import checkpoint
    from sniper.training.progress import Progress

    with contextlib.suppress(checkpoint.CheckpointError, KeyError, TypeError):
        if checkpoint.exists(folder):
            return Progress(**checkpoint.load_meta(folder)["progress"])
    return Progress()


def came_to_its_end(folder: Path, config: Config) -> bool:
    """Whether a run is trained, and what it has learned is there."""
    from sniper.training.progress import is_done

    return status(folder) == "trained" and is_done(progress_of(folder), config)


def _forget_lost_training(folder: Path) -> None:
    """Before a run begins anew because its checkpoints are gone: how long the lost training took,
    and what was measured of its weights, is not that of the next.
    """
    from sniper.compare.evaluate import EVALUATION
    from sniper.training import checkpoint

    # Of one that has failed, too: its message may have been to remove them.
    if read_result(folder)["wall_seconds"] and not checkpoint.exists(folder):
        print(f"{folder} was begun before and has no checkpoint any more: it is trained anew")
        for name in (RESULT, EVALUATION):
            (folder / name).unlink(missing_ok=True)


def forget_failure(folder: Path) -> None:
    """Before a run is tried again: if it ends without a word, no older message is its reason."""
    result = read_result(folder)
    if result["status"] == "failed":
        files.write_json(folder / RESULT, result | {"status": "stopped", "message": ""})


def _record(folder: Path, how: str, message: str, started: float | None = None) -> None:
    """Writes result.json; `started` is when this session's training began, if it trained."""
    result = read_result(folder)
    if how == "failed" and result["status"] == "trained":
        how = "trained"  # only the measuring failed, and will be tried again
    result |= {"status": how, "message": message}
    if started is not None:
        # A clock that was set back must not take from earlier sessions, nor make this one end
        # before it began.
        ended = max(started, time.time())
        result["wall_seconds"] += ended - started
        result["spans"] = [*result["spans"], [started, ended]]
        result["machine"] = machine()
    files.write_json(folder / RESULT, result)


def machine() -> dict[str, Any]:
    """What the times depend on: device, threads, versions."""
    import torch

    from sniper.ops.timings import device_name
    from sniper.tts.processes import default_workers

    cpu = device_name(torch.device("cpu"))
    cuda = torch.cuda.is_available()
    return {
        "device": device_name(torch.device("cuda")) if cuda else cpu,
        "cpu": cpu,
        "cores": default_workers(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "sniper": metadata.version("sniper-tts"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """Of the checkout that the package runs from, if it is one."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return None


# What helps in a training by itself, and `compare` has no option for.
_FRESH = re.compile("use another output=FOLDER, or --fresh to start anew|start anew with --fresh")


def of_a_comparison(error: Exception) -> str:
    """The message of a run's error, with what helps in a comparison."""
    return _FRESH.sub("delete the run's folder to train it anew", str(error))


def _stop_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: a thread in its lock would abort the interpreter's exit
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
