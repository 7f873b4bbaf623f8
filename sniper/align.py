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

from sniper.command import exit_with, path_argument, positive, prepared
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
    parser.add_argument("--workers", type=positive, help="processes (default: one per CPU)")
    parser.add_argument("--force", action="store_true", help="align everything in --out anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return prepared(lambda: _main(argv), argv)


def _main(argv: list[str] | None) -> int:
    options = vars(_parser().parse_args(argv))
    how, progress = take_options(options), not options.pop("quiet")
    # The imports come after the arguments: --help and a mistake are answered before torch has
    # loaded.
    from sniper.tts.aligners.run import align_corpus

    print_report(align_corpus(**options, **how, progress=progress))
    return 0


if __name__ == "__main__":
    exit_with(main)
