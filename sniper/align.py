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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sniper.command import exit_with

if TYPE_CHECKING:
    from sniper.tts.aligners import Aligned


def add_options(parser: Any) -> None:
    """The options that say how to align, for a parser or a group of one."""
    parser.add_argument(
        "--align",
        choices=("english", "learned"),
        help="english: pocketsphinx and its own acoustic model; learned: train an aligner on the "
        "corpus itself, for any language (default: english where --language is, else learned)",
    )
    parser.add_argument(
        "--language",
        default="en-us",
        help="of the transcripts, as espeak-ng's voices are named: en-us, de, fr-fr, ... "
        "(default: en-us)",
    )
    parser.add_argument(
        "--phones",
        choices=("espeak", "characters"),
        default="espeak",
        help="what --align learned aligns: phones by espeak-ng, or letters (default: espeak)",
    )
    parser.add_argument(
        "--align-steps",
        type=_positive,
        metavar="N",
        help="training steps of --align learned (default: 3000)",
    )
    parser.add_argument(
        "--align-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="for the training of --align learned (default: auto)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sniper.align",
        description="Align ROOT/metadata.csv (id|text or id|text|normalized) with ROOT/wavs/ID.wav "
        "and write OUT/TextGrid, OUT/report.md and OUT/alignment.png.",
        epilog="Exit status: 0 aligned (utterances left out are listed), 1 no utterance could be, "
        "2 wrong arguments or settings or a missing package, 130 stopped by Ctrl-C. A stopped run "
        "is continued by the same command.",
    )
    parser.add_argument("--root", required=True, type=Path, help="corpus folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the TextGrids")
    add_options(parser)
    parser.add_argument(
        "--lexicon",
        type=Path,
        help="dictionary in MFA's format that goes before any other pronunciation",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --align learned (default: 0)")
    parser.add_argument("--workers", type=_positive, help="processes (default: one per CPU)")
    parser.add_argument("--force", action="store_true", help="align everything in --out anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def print_report(aligned: Aligned) -> None:
    """Print what an alignment says of its corpus, a line each."""
    for line in aligned.report.lines():
        print(line)
    folder = aligned.textgrids.parent
    print(f"{aligned.textgrids}: look at {folder / 'report.md'} and {folder / 'alignment.png'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return 130


def _main(argv: list[str] | None) -> int:
    options = vars(_parser().parse_args(argv))
    from sniper.tts.aligners import align_corpus
    from sniper.tts.errors import NothingUsable, SpeechError

    options["way"] = options.pop("align")
    options["steps"] = options.pop("align_steps")
    options["device"] = options.pop("align_device")
    options["progress"] = not options.pop("quiet")
    try:
        print_report(align_corpus(**options))
        return 0
    except NothingUsable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SpeechError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    exit_with(main)
