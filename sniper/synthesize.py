# SPDX-License-Identifier: Apache-2.0
"""Speak a text with a trained model.

    python -m sniper.synthesize --checkpoint runs/demo "Some text." -o out.wav

Exit status: 0 spoken, 1 a text or checkpoint that cannot be used, 2 wrong arguments.
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
        CheckpointError: none there, damaged, or of a version that does not fit.
        ConfigError: a device that is not there.
    """
    from sniper.training import checkpoint as store
    from sniper.training.config import from_dict
    from sniper.training.parts import pick_device
    from sniper.tts.corpus.dataset import CorpusInfo
    from sniper.tts.model.fastspeech2 import FastSpeech2
    from sniper.tts.speaker import Speaker

    where = pick_device(device)
    saved = store.load(Path(checkpoint), which, weights_only=True)
    try:
        info = CorpusInfo.from_json(saved.meta["speech"])
        config = from_dict(saved.meta["config"])
        model = FastSpeech2(config.model_config(len(info.vocabulary), info.features.n_mels))
        model.load_state_dict(saved.weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise store.CheckpointError(
            f"checkpoint {saved.path} does not fit this version of the program: {reason}"
        ) from error
    return Speaker(model.to(where), info)


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
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


def _speak(options: argparse.Namespace) -> int:
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.config import ConfigError
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

    from sniper.tts.audio.vocoder import save_wav

    for path in filter(None, (output, mel)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if output is not None:
        output.open("ab").close()  # says why it cannot be written; the sound library does not
        save_wav(output, speech.audio, features.sample_rate)
        print(f"{output}: {len(speech.audio) / features.sample_rate:.2f} s")
    if mel is not None:
        mel = mel if mel.suffix == ".npy" else Path(f"{mel}.npy")
        np.save(mel, speech.mel)
        mel.with_suffix(".json").write_text(json.dumps(features.to_json(), indent=1) + "\n")
        print(f"{mel}: {speech.mel.shape[0]} frames; its settings are in {mel.stem}.json")


if __name__ == "__main__":
    sys.exit(main())
