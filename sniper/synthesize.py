# SPDX-License-Identifier: Apache-2.0
"""Speak a text with a trained model.

python -m sniper.synthesize --checkpoint runs/demo "Some text." -o out.wav
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def load_speaker(checkpoint: str | Path, which: str = "best", device: str = "cpu"):
    """A `Speaker` from a run's or a checkpoint's folder; it needs nothing but that folder.

    Args:
        checkpoint: folder of a run or of one checkpoint.
        which: `best` or `last`, for a run.
        device: where to run.

    Raises:
        CheckpointError: none there, or damaged.
    """
    from sniper import checkpoint as store
    from sniper.config import from_dict
    from sniper.tts.dataset import CorpusInfo
    from sniper.tts.fastspeech2 import FastSpeech2
    from sniper.tts.speaker import Speaker

    saved = store.load(Path(checkpoint), which, weights_only=True)
    info = CorpusInfo.from_json(saved.meta["speech"])
    config = from_dict(saved.meta["config"])
    model = FastSpeech2(config.model_config(len(info.vocabulary), info.features.n_mels))
    model.load_state_dict(saved.weights)
    return Speaker(model.to(device), info)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sniper.synthesize", description="Speak a text with a trained model."
    )
    parser.add_argument("text", help='what to say; "-" reads standard input; {HH AH0} is phonemes')
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's folder")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument("-o", "--output", type=Path, help="audio file to write (.wav, .flac)")
    parser.add_argument(
        "--mel",
        type=Path,
        help="write the log-mel [T, n_mels] as .npy for another vocoder, its settings as .json",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="2 takes half as long")
    parser.add_argument("--pitch", type=float, default=0.0, help="semitones up or down")
    parser.add_argument("--energy", type=float, default=1.0, help="factor on the loudness")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(argv)
    if options.output is None and options.mel is None:
        print("error: nothing to write: give -o FILE.wav or --mel FILE.npy", file=sys.stderr)
        return 2
    from sniper.checkpoint import CheckpointError
    from sniper.tts.errors import SpeechError

    text = sys.stdin.read() if options.text == "-" else options.text
    try:
        speaker = load_speaker(options.checkpoint, options.which, options.device)
        speech = speaker.speak(
            text,
            speed=options.speed,
            pitch=options.pitch,
            energy=options.energy,
            vocode=options.output is not None,
        )
        _write(speech, speaker.info.features, options.output, options.mel)
    except (SpeechError, CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write(speech, features, output: Path | None, mel: Path | None) -> None:
    import json

    import numpy as np

    from sniper.tts.vocoder import save_wav

    if output is not None:
        save_wav(output, speech.audio, features.sample_rate)
        print(f"{output}: {len(speech.audio) / features.sample_rate:.2f} s")
    if mel is not None:
        mel = mel.with_suffix(".npy")
        np.save(mel, speech.mel)
        mel.with_suffix(".json").write_text(json.dumps(features.to_json(), indent=1) + "\n")
        print(f"{mel}: {speech.mel.shape[0]} frames; its settings are in {mel.stem}.json")


if __name__ == "__main__":
    sys.exit(main())
