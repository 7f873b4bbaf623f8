# SPDX-License-Identifier: Apache-2.0
"""Train dense, constantly sparse and with SNIPER side by side, measure, and write a report.

    python -m sniper.compare --config demo
    python -m sniper.compare --config ljspeech data.prepared=data/ljspeech train.epochs=100
    python -m sniper.compare --config my-arms.yaml --seeds 0,1 --output runs/mine
    python -m sniper.compare --config demo --shard 2/8
    python -m sniper.compare --config demo --report-only

The same command again does what is left: finished runs stay, stopped and killed ones go on where
they were. Exit status: 0 complete (arms that diverged are part of the result), 1 a run failed or
the report lacks one, 2 wrong arguments, settings or data or a missing package, 130 stopped by
Ctrl-C, SIGTERM or SIGHUP (saved).
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sniper.command import exit_with, is_of_output, path_argument, why_missing

if TYPE_CHECKING:
    from sniper.compare.arms import Matrix
    from sniper.compare.matrix import Outcome, Run
    from sniper.tts.corpus.shards import Shard

_WRITING_SECONDS = 30.0  # another share is given to write a line
# Looked for at the start, since some are needed only when all has been trained.
_PACKAGES = ("yaml", "tqdm", "safetensors", "soundfile", "matplotlib", "jinja2")
# One line for whatever is missing, so that nobody installs package after package.
_INSTALL = "pip install 'sniper-tts[demo]'"


def _parser() -> argparse.ArgumentParser:
    built_in = (Path(__file__).parent / "matrices").glob("*.yaml")
    matrices = ", ".join(sorted(path.stem for path in built_in))
    parser = argparse.ArgumentParser(
        prog="python -m sniper.compare",
        description="Train several arms with several seeds, measure them, and write a report; the "
        "same command again does what is left.",
        epilog="Exit status: 0 complete (arms that diverged are part of the result), 1 a run "
        "failed or the report lacks one, 2 wrong arguments, settings or data or a missing package, "
        "130 stopped by Ctrl-C, SIGTERM or SIGHUP (saved).",
    )
    parser.add_argument(
        "--config", default="demo", metavar="NAME_OR_PATH", help=f"a YAML file or one of {matrices}"
    )
    parser.add_argument("--output", type=path_argument, help="folder; default: runs/compare-NAME")
    parser.add_argument("--seeds", type=_numbers, metavar="0,1,2", help="in place of the matrix's")
    parser.add_argument("--arms", type=_words, metavar="NAME,NAME", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, help="of each run; default: the cores over --jobs")
    parser.add_argument(
        "--sentences", type=int, default=32, help="held-out sentences to measure, at most (32)"
    )
    parser.add_argument(
        "--vocoder", metavar="PATH", help="a HiFi-GAN that speaks the samples; default: Griffin-Lim"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only the I-th of N shares of the runs, beside other processes or machines in the "
        "same --output; --report-only writes the report when all are done",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--evaluate-only", action="store_true", help="train nothing; measure what is trained"
    )
    what.add_argument(
        "--report-only", action="store_true", help="neither train nor measure; write the report"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for every arm, such as train.epochs=3"
    )
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


_numbers.__name__ = "list of whole numbers such as 0,1,2"  # argparse says: invalid ... value


def _shard(text: str) -> Shard:
    from sniper.tts.corpus.shards import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    for name in ("jobs", "sentences", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    if options.shard is not None and options.report_only:
        parser.error("--report-only is of all shares: give it without --shard")
    # find_spec looks without importing: the check costs nothing, and a matrix may take hours before
    # the report needs the last of them.
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: not installed: {', '.join(missing)}: {_INSTALL}", file=sys.stderr)
        return 2
    words = _of_the_whole(sys.argv[1:] if argv is None else argv)
    try:
        return _main(options, words)
    except ImportError as error:
        print(f"error: {why_missing(error, 'demo')}", file=sys.stderr)
        return 2


def _of_the_whole(words: Sequence[str]) -> list[str]:
    """The arguments without those that say which part of the work this call is for."""
    # By argparse, which also knows them by the beginnings of their names.
    part = argparse.ArgumentParser(add_help=False)
    part.add_argument("--shard")
    for name in ("--evaluate-only", "--report-only"):
        part.add_argument(name, action="store_true")
    return part.parse_known_args(words)[1]


def _command(*words: str) -> str:
    return shlex.join(["python", "-m", "sniper.compare", *words])


def _main(options: argparse.Namespace, words: Sequence[str]) -> int:
    from sniper.compare.arms import load_matrix
    from sniper.compare.matrix import plan, refuse_changes, share_of
    from sniper.compare.worker import of_a_comparison
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.settings import ConfigError, as_override
    from sniper.tts.errors import FolderInUse, SpeechError
    from sniper.tts.files import in_the_way
    from sniper.tts.locks import only_one
    from sniper.tts.processes import default_workers

    overrides = list(options.overrides)
    if options.vocoder is not None:
        overrides.append(as_override("vocoder", options.vocoder))
    try:
        matrix = load_matrix(
            options.config, seeds=options.seeds, arms=options.arms, overrides=overrides
        )
        out = options.output or Path("runs") / f"compare-{matrix.name}"
        threads = options.threads or max(1, default_workers() // options.jobs)
        runs = plan(matrix, out, threads)
        place = out
        if options.shard is not None:
            index, count = options.shard.index, options.shard.count
            runs = share_of(runs, index, count)
            place = out / "shards" / f"{index}-of-{count}"
        if (options.report_only or options.evaluate_only) and not out.is_dir():
            raise ConfigError(f"--output: expected the folder of a comparison, got {out}")
        try:
            place.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"--output: expected a folder, got {in_the_way(error)}") from None
        # Two comparisons in one folder would start the same runs twice. Shares look run by run.
        with only_one(place):
            # Measuring and reporting change no run, so they also serve folders of older settings.
            if not options.report_only and not options.evaluate_only:
                refuse_changes(runs)
            return _run(options, words, matrix, runs, out)
    except FolderInUse as error:
        print(f"error: {error}; wait for it, or use another --output", file=sys.stderr)
    except (ConfigError, SpeechError, CheckpointError, OSError) as error:
        if is_of_output(error):
            raise
        print(f"error: {of_a_comparison(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _run(
    options: argparse.Namespace,
    words: Sequence[str],
    matrix: Matrix,
    runs: Sequence[Run],
    out: Path,
) -> int:
    from sniper.compare import files
    from sniper.compare.matrix import Outcome, execute
    from sniper.tts.locks import only_one

    _announce(matrix, runs, out)
    outcome, command = Outcome(), _command(*words)
    if not options.report_only:
        if not options.evaluate_only:
            with only_one(out, wait=_WRITING_SECONDS):  # shares begin at the same time
                files.write_text(out / "command.txt", command + "\n")
        _prepare(runs, wait=options.shard is not None)
        outcome = execute(
            runs,
            out / "truth",
            jobs=options.jobs,
            train=not options.evaluate_only,
            sentences=options.sentences,
            shared=options.shard is not None,
        )
    if outcome.stopped:
        print("stopped, saved; the same command continues", file=sys.stderr)
        return 130
    if options.shard is not None:
        report = _command("--report-only", *words)
        print(f"share {options.shard} is done; {report} writes the report of all")
        return _print_failures(outcome)
    if (out / "command.txt").exists():  # the one that trained
        command = (out / "command.txt").read_text(encoding="utf-8").strip()
    _report(matrix, runs, command, out)
    return _print_failures(outcome) or _print_missing(runs)


def _announce(matrix: Matrix, runs: Sequence[Run], out: Path) -> None:
    from sniper.compare.matrix import epochs_of

    done = sum(run.trained() for run in runs)
    settings = runs[0].config.train
    print(
        f"{matrix.title}: {len(matrix.arms)} arms x {len(matrix.seeds)} seeds, "
        f"{epochs_of(runs)} epochs each, {settings.threads} threads, in {out}/"
    )
    if done:
        print(f"{done} of {len(runs)} runs are trained already")


def _prepare(runs: Sequence[Run], wait: bool) -> None:
    """Makes the prepared features once, before several processes want to.

    Args:
        wait: for whoever else prepares them.
    """
    from sniper.training import checkpoint
    from sniper.training.prepared import refuse_other_data
    from sniper.training.run import prepare_data
    from sniper.tts.audio.vocoder import load_vocoder
    from sniper.tts.corpus.dataset import load_corpus_info
    from sniper.tts.errors import FolderInUse

    # Settings are no dictionary keys, and a matrix has few corpora.
    seen = []
    for run in runs:
        speech = (run.config.data, run.config.features)
        if speech not in seen:
            while True:
                try:
                    data = prepare_data(run.config)
                    break
                except FolderInUse:
                    if not wait:
                        raise
                    time.sleep(1.0)
            if not checkpoint.exists(run.folder):  # as the run itself asks
                refuse_other_data(run.config, data)
            # A vocoder that cannot speak is refused before the hours of training.
            load_vocoder(run.config.vocoder, load_corpus_info(data).features)
            seen.append(speech)


def _report(matrix: Matrix, runs: Sequence[Run], command: str, out: Path) -> None:
    from sniper.compare.figures import write_loss
    from sniper.compare.page import find_voices, write_page
    from sniper.compare.results import collect
    from sniper.compare.tables import write_tables
    from sniper.training.run import prepare_data
    from sniper.tts.corpus.dataset import FeatureDataset

    valid = FeatureDataset(prepare_data(runs[0].config) / "valid.safetensors")
    folder = out / "report"
    data = collect(matrix, runs, command, valid, out / "truth")
    write_tables(data, runs, folder)
    write_loss(data, folder)
    voices = find_voices(data, runs, out / "truth")
    path = write_page(data, voices, folder, valid.info.features.n_mels)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; beside it tables and loss.png")


def _print_failures(outcome: Outcome) -> int:
    for name, message in outcome.failed.items():
        print(f"{name}: {message}", file=sys.stderr)
    if outcome.failed:
        print("the same command tries these runs again", file=sys.stderr)
    return 1 if outcome.failed else 0


def _print_missing(runs: Sequence[Run]) -> int:
    """The status of a report without training, in which runs may be missing."""
    from sniper.compare.results import read_run

    missing = [run for run in runs if not (run.trained() and run.measured())]
    if not missing:
        return 0
    print(f"the report lacks {len(missing)} of {len(runs)} runs:", file=sys.stderr)
    for run in missing:
        found = read_run(run)
        how = "not measured" if run.trained() else found["status"]
        why = f": {found['message']}" if found["message"] else ""
        print(f"  {run}: {how}{why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    exit_with(main)
