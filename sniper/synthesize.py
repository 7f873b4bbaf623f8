# SPDX-License-Identifier: Apache-2.0
"""Speak a text with a trained model.

    python -m sniper.synthesize --checkpoint runs/demo "Some text." -o out.wav

Exit status: 0 spoken, 1 a text or checkpoint that cannot be used, 2 wrong arguments, 130 stopped by
Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sniper.command import exit_with

if TYPE_CHECKING:
    from sniper.tts.speaker import Speaker


def load_speaker(checkpoint: str | Path, which: str = "best", device: str = "cpu") -> Speaker:
    """A `Speaker` from a run's or a checkpoint's folder; see `sniper.training.speaker`."""
    from sniper.training.speaker import load_speaker

    return load_speaker(checkpoint, which, device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sniper.synthesize", description="Speak a text with a trained model."
    )
    parser.add_argument("text", help='what to say; "-" reads standard input; {HH AH0} is phonemes')
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's folder")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument("-o", "--output", type=Path, help="WAV file to write")
    parser.add_argument(
        "--mel",
        type=Path,
        help="write the log-mel [T, n_mels] as .npy for another vocoder, its settings as .json",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="2 takes half as long")
    parser.add_argument("--pitch", type=float, default=0.0, help="semitones up or down")
    parser.add_argument("--energy", type=float, default=1.0, help="factor on the loudness")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N; default: cpu")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.output is None and options.mel is None:
        print("error: nothing to write: give -o FILE.wav or --mel FILE.npy", file=sys.stderr)
        return 2
    try:
        return _speak(options)
    except ImportError as error:
        if (error.name or "sniper").startswith("sniper"):
            raise
        print(f"error: {error}: pip install 'sniper-tts[tts]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _speak(options: argparse.Namespace) -> int:
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.settings import ConfigError
    from sniper.tts.errors import SpeechError

    try:
        text = sys.stdin.read() if options.text == "-" else options.text
        speaker = load_speaker(options.checkpoint, options.which, options.device)
        speech = speaker.speak(
            text,
            speed=options.speed,
            pitch=options.pitch,
            energy=options.energy,
            vocode=options.output is not None,
        )
        _write(speech, speaker.info.features, options.output, options.mel)
    except (SpeechError, CheckpointError, ConfigError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write(speech, features, output: Path | None, mel: Path | None) -> None:
    import json

    import numpy as np

    from sniper.training.files import write_output
    from sniper.tts.audio.vocoder import save_wav

    # Made in memory, so that a full disk or a kill leaves what was there, and no half file.
    if output is not None:
        sound = io.BytesIO()
        save_wav(sound, speech.audio, features.sample_rate)
        write_output(output, sound.getvalue())
        print(f"{output}: {len(speech.audio) / features.sample_rate:.2f} s")
    if mel is not None:
        mel = mel if mel.suffix == ".npy" else Path(f"{mel}.npy")
        frames = io.BytesIO()
        np.save(frames, speech.mel)
        about = json.dumps(features.to_json(), indent=1) + "\n"
        write_output(mel, frames.getvalue())  # the larger first, so that a full disk leaves neither
        write_output(mel.with_suffix(".json"), about.encode())
        print(f"{mel}: {speech.mel.shape[0]} frames; its settings are in {mel.stem}.json")


if __name__ == "__main__":
    exit_with(main)
