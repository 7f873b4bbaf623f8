# SPDX-License-Identifier: Apache-2.0
"""The options of aligning, which two commands share, and what both print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sniper.command import positive

if TYPE_CHECKING:
    from sniper.tts.aligners.run import Aligned


def add_speakers(parser: Any) -> None:
    """The option that says who speaks in a corpus."""
    parser.add_argument(
        "--speakers",
        choices=("none", "column", "folder"),
        default="none",
        help="who speaks: the last column of metadata.csv, or the folder in the ids (anna/0001); "
        "VCTK's and LibriTTS' folders are known without (default: none, one speaker)",
    )


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
        help="of the transcripts, as espeak-ng's voices are named: en-us, de, fr-fr, ... "
        "(default: en-us)",
    )
    parser.add_argument(
        "--phones",
        choices=("espeak", "characters"),
        help="what --align learned aligns: phones by espeak-ng, or letters (default: espeak)",
    )
    parser.add_argument(
        # No default here: only `learned` takes steps, and has its own.
        "--align-steps",
        type=positive,
        metavar="N",
        help="training steps of --align learned (default: 1000)",
    )
    parser.add_argument(
        "--align-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="for the training of --align learned (default: auto)",
    )


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the values of `add_options` out of parsed ones, as arguments of `align_corpus`."""
    names = {
        "align": "way",
        "language": "language",
        "phones": "phones",
        "align_steps": "steps",
        "align_device": "device",
    }
    # Taken out, since what is left goes to `align_corpus` under its own names. What nobody said is
    # not there, and has the default of `align_corpus`.
    given = {to: options.pop(name) for name, to in names.items()}
    return {name: value for name, value in given.items() if value is not None}


def print_report(aligned: Aligned, problems: bool = True) -> None:
    """Print what an alignment says of its corpus, a line each; `problems`: what is left out too."""
    for line in aligned.report.lines(problems):
        print(line)
    folder = aligned.textgrids.parent
    print(f"{aligned.textgrids}: look at {folder / 'report.md'} and {folder / 'alignment.png'}")
