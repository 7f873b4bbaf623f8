# SPDX-License-Identifier: Apache-2.0
"""A trained model as one file that needs nothing of this package.

    python -m sniper.export --checkpoint runs/demo -o model.onnx

A name in .onnx gives ONNX, one in .pt2 a `torch.export` program. Both map token ids to the log-mel;
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
import tempfile
from importlib import import_module
from pathlib import Path

from sniper.command import exit_with

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
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's folder")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument("-o", "--output", required=True, type=Path, help="FILE.onnx or FILE.pt2")
    options = parser.parse_args(argv)
    if options.output.suffix not in (".onnx", ".pt2"):
        print(f"error: expected a name in .onnx or .pt2, got {options.output}", file=sys.stderr)
        return 2
    try:
        return _export(options)
    except ImportError as error:
        if (error.name or "sniper").startswith("sniper"):
            raise
        print(f"error: {error}: pip install 'sniper-tts[tts,export]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _export(options: argparse.Namespace) -> int:
    import torch

    from sniper.training.checkpoint import CheckpointError
    from sniper.training.files import expect_writable, write_output
    from sniper.training.speaker import load_speaker
    from sniper.tts.model.graph import export_onnx, export_program

    path = options.output
    try:
        speaker = load_speaker(options.checkpoint, options.which)
        for file in (path, path.with_suffix(".json")):
            expect_writable(file)
        packed = io.BytesIO()
        if path.suffix == ".onnx":
            import_module("onnxscript")  # what the exporter needs and torch does not bring
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # advice on other packages
            with tempfile.TemporaryDirectory() as folder:  # the exporter writes to a path only
                export_onnx(speaker.model, speaker.info.statistics, Path(folder) / "model.onnx")
                packed.write((Path(folder) / "model.onnx").read_bytes())
        else:
            torch.export.save(export_program(speaker.model, speaker.info.statistics), packed)
        about = {**ABOUT, **speaker.info.to_json()}
        write_output(path, packed.getvalue())
        write_output(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; tokens and settings in {path.stem}.json")
    return 0


if __name__ == "__main__":
    exit_with(main)
