# SPDX-License-Identifier: Apache-2.0
"""Align recordings with their transcripts: where each word and each phone begins.

    python -m sniper.align --root LJSpeech-1.1 --out data/alignment
    python -m sniper.align --root corpus-de --out data/alignment-de --language de

Writes OUT/TextGrid/ID.TextGrid (as the Montreal Forced Aligner does; Praat opens them),
OUT/report.md (what is suspicious first) and OUT/alignment.png (ten utterances with their borders).
A run that was stopped is continued by the same command. Exit status: 0 when utterances are aligned,
even if some had to be left out (they are listed); 1 when none could be; 2 for wrong arguments,
other settings in the output folder or a missing package; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys

from sniper.command import exit_with, path_argument
from sniper.tts.aligners.options import add_options, add_speakers, print_report, take_options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sniper.align",
        description="Align ROOT/metadata.csv (id|text or id|text|normalized) with ROOT/wavs/ID.wav "
        "and write OUT/TextGrid, OUT/report.md and OUT/alignment.png.",
        epilog="Exit status: 0 aligned (utterances left out are listed), 1 no utterance could be, "
        "2 wrong arguments or settings or a missing package, 130 stopped by Ctrl-C. A stopped run "
        "is continued by the same command.",
    )
    parser.add_argument("--root", required=True, type=path_argument, help="corpus folder")
    parser.add_argument("--out", required=True, type=path_argument, help="folder for the TextGrids")
    add_speakers(parser)
    add_options(parser)
    parser.add_argument(
        "--lexicon",
        type=path_argument,
        help="dictionary in MFA's format that goes before any other pronunciation",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --align learned (default: 0)")
    parser.add_argument("--workers", type=_positive, help="processes (default: one per CPU)")
    parser.add_argument("--force", action="store_true", help="align everything in --out anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _positive(text: str) -> int:
    # argparse makes a message of the ValueError that text without a number raises.
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        # On a line of its own, since the cursor stands behind the progress bar.
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return 130


def _main(argv: list[str] | None) -> int:
    options = vars(_parser().parse_args(argv))
    # The imports come after the arguments: --help and a mistake are answered before torch has
    # loaded.
    how, progress = take_options(options), not options.pop("quiet")
    from sniper.tts.aligners.run import align_corpus
    from sniper.tts.errors import NothingUsable, SpeechError

    try:
        print_report(align_corpus(**options, **how, progress=progress))
        return 0
    # It is a SpeechError too, so it has to come first.
    except NothingUsable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SpeechError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    exit_with(main)
