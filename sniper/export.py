# SPDX-License-Identifier: Apache-2.0
"""A trained model as one file that needs nothing of this package.

    python -m sniper.export --checkpoint runs/demo -o model.onnx

A name in .onnx gives ONNX, one in .pt2 a `torch.export` program. Both map token ids to the log-mel,
and with `--vocoder PATH` to samples too;
FILE.json beside it has the tokens, the settings of the mel and what the inputs mean.

Exit status: 0 written, 1 a checkpoint that cannot be used, 2 wrong arguments, 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from sniper.command import exit_with, is_of_output, path_argument, why_missing

ABOUT = {
    "inputs": {
        "tokens": "int64 [1, L], ids: places in `vocabulary`, the end of sentence last",
        "speed": "float32 scalar, 1 as trained, 2 takes half as long",
        "pitch": "float32 scalar, semitones up",
        "energy": "float32 scalar, factor on the loudness",
    },
    "outputs": {
        "mel": "float32 [T, n_mels], log-mel as `features` has it",
        "durations": "int64 [L], frames of each token",
    },
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sniper.export", description="Write a trained model as ONNX or torch.export."
    )
    parser.add_argument("--checkpoint", required=True, type=path_argument, help="a run's folder")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument(
        "--vocoder", type=path_argument, help="a HiFi-GAN (file or folder) that goes into the file"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=path_argument, help="FILE.onnx or FILE.pt2"
    )
    options = parser.parse_args(argv)
    # Before the imports, which take seconds.
    if options.output.suffix not in (".onnx", ".pt2"):
        print(f"error: expected a name in .onnx or .pt2, got {options.output}", file=sys.stderr)
        return 2
    try:
        return _export(options)
    except ImportError as error:
        print(f"error: {why_missing(error, 'tts,export')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _export(options: argparse.Namespace) -> int:
    import torch

    from sniper.training.checkpoint import CheckpointError
    from sniper.training.speaker import load_speaker
    from sniper.tts.audio.vocoder import HifiGanVocoder
    from sniper.tts.errors import SpeechError
    from sniper.tts.files import atomic_write, check_beside, make_folder_of, write_json
    from sniper.tts.model.graph import AUDIO, SPEAKER, export_onnx, export_program

    path = options.output
    try:
        speaker = load_speaker(options.checkpoint, options.which, vocoder=options.vocoder)
        vocoder, info = speaker.vocoder, speaker.info
        sound = vocoder.module() if isinstance(vocoder, HifiGanVocoder) else None
        make_folder_of(path)
        check_beside(path, ABOUT)
        inputs = {SPEAKER: "int64 [1], place in `speakers`"} if info.speakers else {}
        outputs = {AUDIO: "float32 [T * hop_length] within [-1, 1]"} if sound is not None else {}
        # Copies: a second call in this process must not find the first one's entries.
        about = {"inputs": ABOUT["inputs"] | inputs, "outputs": ABOUT["outputs"] | outputs}
        about |= info.to_json()
        if (other := _described_otherwise(path, about)) is not None:
            raise SpeechError(
                f"{path.with_suffix('.json')} would no longer describe {other}: choose another "
                f"name, or remove {other.name}"
            )
        # It says why it cannot be written, before the work.
        with atomic_write(path) as file, warnings.catch_warnings():
            # Of torch's own code to its authors, and nothing a user could mend.
            warnings.simplefilter("ignore", FutureWarning)
            if path.suffix == ".onnx":
                import_module("onnxscript")  # what the exporter needs and torch does not bring
                logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # advice on other packages
                export_onnx(speaker.model, info, file, sound)
            else:
                program = export_program(speaker.model, info, sound)
                torch.export.save(program, made := io.BytesIO())
                file.write(made.getbuffer())
        write_json(path.with_suffix(".json"), about)
    except (CheckpointError, SpeechError, OSError) as error:
        if is_of_output(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; tokens and settings in {path.stem}.json")
    return 0


def _described_otherwise(path: Path, about: dict[str, Any]) -> Path | None:
    """The export of the same name in the other format, whose description is not `about`."""
    other = path.with_suffix(".pt2" if path.suffix == ".onnx" else ".onnx")
    try:
        there = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # none, or of no use to anybody
    # Through JSON, which knows no tuples.
    same = there == json.loads(json.dumps(about))
    return other if other.exists() and not same else None


if __name__ == "__main__":
    exit_with(main)
