# SPDX-License-Identifier: Apache-2.0
"""Train FastSpeech2 with SNIPER.

    python -m sniper.train                                     # the demo
    python -m sniper.train --config ljspeech-sniper data.root=/data/LJSpeech-1.1
    python -m sniper.train --config my.yaml train.epochs=3
    torchrun --nproc_per_node=8 -m sniper.train --config ljspeech-sniper    # on 8 GPUs

The same command again resumes where the run stood. Exit status: 0 finished, 1 stopped by an error,
2 wrong arguments, settings or data, 130 stopped by Ctrl-C, SIGTERM or SIGHUP (saved).
"""

from __future__ import annotations

import argparse
import sys

from sniper.command import about_output, exit_with, interrupt, is_of_output, why_missing


def _parser() -> argparse.ArgumentParser:
    from sniper.training.settings import PRESETS

    presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m sniper.train",
        description="Train FastSpeech2 with SNIPER; the same command again resumes.",
        epilog="Exit status: 0 finished, 1 stopped by an error, 2 wrong arguments, settings or "
        "data, 130 stopped by Ctrl-C, SIGTERM or SIGHUP (saved).",
    )
    parser.add_argument(
        "--config", default="demo", metavar="NAME_OR_PATH", help=f"a YAML file or one of: {presets}"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the run's checkpoints and start anew"
    )
    parser.add_argument(
        "--init", metavar="RUN", help="start from another run's weights (the setting `init`)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.epochs=3 output=runs/x"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return _main(argv)
    except ImportError as error:
        print(f"error: {why_missing(error, 'demo')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before anything was begun, or while saying that it has stopped
        return 130


def _main(argv: list[str] | None) -> int:
    # The imports come after the arguments: --help and a mistake are answered before torch has
    # loaded.
    options = _parser().parse_intermixed_args(argv)

    from sniper.training.config import load
    from sniper.training.ranks import ALONE, Ended, joined, restarts
    from sniper.training.run import open_run
    from sniper.training.settings import as_override
    from sniper.tts.processes import signals

    def ending(error: BaseException) -> tuple[str, int]:
        return _ending(error, ranks.name, options.fresh)

    ranks = ALONE
    try:
        # From here on, so that SIGTERM and SIGHUP during a long preparation end as Ctrl-C does.
        with signals(interrupt), joined(ending) as ranks:
            init = [as_override("init", options.init)] if options.init is not None else []
            # --init comes last, so that it wins over an `init=` among the overrides.
            config = load(options.config, [*options.overrides, *init])
            # What a start again finds is what the same command has saved.
            fresh = options.fresh and not restarts()
            with open_run(config, fresh, ranks) as trainer:
                trainer.fit()
    except Ended as error:
        return error.status  # why has been said
    except BaseException as error:
        line, status = ending(error)
        if not status:
            raise
        print(line, file=sys.stderr)
        return status
    return 0


def _ending(error: BaseException, who: str, fresh: bool) -> tuple[str, int]:
    """What to tell of an error of one of several processes, and the exit status; 0: nothing that a
    user could mend.
    """
    from sniper.sparsity.distributed import RankLost, RanksDiffer
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.progress import Interrupted, LoadingFailed, NotFinite, OutOfMemory
    from sniper.training.settings import ConfigError
    from sniper.tts.errors import SpeechError

    if is_of_output(error):
        # Of one process alone `exit_with` tells it.
        return (f"error: {who}{about_output(error)}", 1) if who else ("", 0)
    # --fresh once more would delete what has just been saved.
    again = "the same command" + (" without --fresh" if fresh else "")
    if isinstance(error, RankLost):
        return f"error: {who}{error}; {again} continues from the last checkpoint", 1
    if isinstance(error, NotFinite | OutOfMemory | LoadingFailed | CheckpointError | RanksDiffer):
        return f"error: {who}{error}", 1
    if isinstance(error, SpeechError | ConfigError | OSError):
        return f"error: {who}{error}", 2
    if isinstance(error, Interrupted):
        return f"stopped, saved; {again} continues", 130
    if isinstance(error, KeyboardInterrupt):
        return f"stopped; {again} continues from what was saved", 130
    return f"error: {who}{type(error).__name__}: {error}", 0


if __name__ == "__main__":
    exit_with(main)
