# SPDX-License-Identifier: Apache-2.0
"""The console command: `sniper-tts COMMAND ...`, the same as `python -m sniper.COMMAND ...`.

A command's module is imported when it is asked for, so that `sniper-tts --help` needs no extra, and
one that is missing is reported by the command that wants it.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import NoReturn

from sniper.command import exit_with

# What each does, in one line; the module's own --help says the rest.
COMMANDS = {
    "train": "train FastSpeech2 with SNIPER; without arguments, the demo",
    "align": "say where each word and phone of recordings begins",
    "prepare": "turn recordings and their alignments into features for training",
    "synthesize": "speak a text with a trained model",
    "export": "write a trained model as ONNX or a torch.export program",
    "compare": "train dense, sparse and with SNIPER side by side, and report",
    "doctor": "say what this machine runs, and why",
}


def usage() -> str:
    """The answer to --help."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: sniper-tts COMMAND [ARGUMENTS]\n\n"
        "SNIPER training for speech synthesis in which the early sparsity is wall-clock speed.\n\n"
        f"commands:\n{listed}\n\n"
        "sniper-tts COMMAND --help says what a command takes; --version, which release this is.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names on the others; returns its exit status: 2 for
    a command that is not there.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words:
        print(usage(), end="", file=sys.stderr)
        return 2
    name, *rest = words
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        from sniper import __version__

        print(f"sniper-tts {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        print(f"error: {name!r} is not a command of sniper-tts: {meant}", file=sys.stderr)
        return 2
    return import_module(_module(name)).main(rest)


def run() -> NoReturn:
    """What the console script calls."""
    exit_with(main)


def _module(name: str) -> str:
    """The module that holds a command's `main`."""
    # compare is a package, whose command is where `python -m` looks for it.
    return "sniper.compare.__main__" if name == "compare" else f"sniper.{name}"


if __name__ == "__main__":
    run()
