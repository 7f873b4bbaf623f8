# SPDX-License-Identifier: Apache-2.0
"""Speak a text with a trained model.

    python -m sniper.synthesize --checkpoint runs/demo "Some text." -o out.wav
    python -m sniper.synthesize --checkpoint runs/demo - -o - < book.txt | aplay

Exit status: 0 spoken, 1 a text or checkpoint that cannot be used, 2 wrong arguments, 130 stopped by
Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sniper.command import exit_with, path_argument, typed_text, why_missing

if TYPE_CHECKING:
    from sniper.tts.speaker import Speaker, Speech


def load_speaker(
    checkpoint: str | Path,
    which: str = "best",
    device: str = "cpu",
    vocoder: str | Path | None = None,
) -> Speaker:
    """A `Speaker` from a run's or a checkpoint's folder; see `sniper.training.speaker`."""
    from sniper.training.speaker import load_speaker

    return load_speaker(checkpoint, which, device, vocoder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sniper.synthesize", description="Speak a text with a trained model."
    )
    parser.add_argument("text", help='what to say; "-" reads standard input; {HH AH0} is phonemes')
    parser.add_argument("--checkpoint", required=True, type=path_argument, help="a run's folder")
    parser.add_argument(
        "--ssml", action="store_true", help="the text is SSML: <speak>…</speak>; see docs/text.md"
    )
    parser.add_argument("--which", choices=("best", "last"), default="best", help="default: best")
    parser.add_argument(
        "-o", "--output", type=path_argument, help='WAV file to write; "-": standard output'
    )
    parser.add_argument(
        "--mel",
        type=path_argument,
        help="write the log-mel [T, n_mels] as .npy for another vocoder, its settings as .json",
    )
    parser.add_argument("--speaker", help="name; default: the first of several")
    parser.add_argument(
        "--vocoder", type=path_argument, help="a HiFi-GAN (file or folder); default: Griffin-Lim"
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
    # A terminal would take some of the bytes for commands.
    if _to_stdout(options) and sys.stdout.isatty():
        print("error: -o - writes sound: let standard output go to a file or pipe", file=sys.stderr)
        return 2
    try:
        return _speak(options)
    except ImportError as error:
        print(f"error: {why_missing(error, 'tts')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _speak(options: argparse.Namespace) -> int:
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.settings import ConfigError
    from sniper.tts.errors import SpeechError

    try:
        given = options.text
        # UTF-8 whatever the locale, like every other text of ours.
        text = sys.stdin.buffer.read().decode("utf-8") if given == "-" else typed_text(given)
        vocoder = options.vocoder
        speaker = load_speaker(options.checkpoint, options.which, options.device, vocoder)
        with _bar() as watch:
            speech = speaker.speak(
                text,
                speed=options.speed,
                pitch=options.pitch,
                energy=options.energy,
                vocode=options.output is not None,
                ssml=options.ssml,
                speaker=options.speaker,
                watch=watch,
            )
        _write(speech, speaker.info.features, options.output, options.mel)
        if options.output is not None:
            _say_how(speaker, speech)
        if options.speaker is None and len(speaker.info.speakers) > 1:
            names = len(speaker.info.speakers)
            print(f"note: spoken by {speaker.who()}, the first of {names}", file=sys.stderr)
    # An OSError as well, but no error to tell: `exit_with` ends without a word.
    except BrokenPipeError:
        raise
    except (SpeechError, CheckpointError, ConfigError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _to_stdout(options: argparse.Namespace) -> bool:
    return str(options.output) == "-"


def _say_how(speaker: Speaker, speech: Speech) -> None:
    """Who made the sound, and what was done to its loudness."""
    print(f"note: {speaker.vocoder.about}", file=sys.stderr)
    if speech.gain < 1:
        lower = -20 * math.log10(speech.gain)
        print(f"note: all of it lowered by {lower:.1f} dB, or it would clip", file=sys.stderr)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """How far a long text is: a bar for who looks, a line every ten seconds in a log."""
    from sniper.tts.errors import require

    interval = 0.1 if sys.stderr.isatty() else 10.0
    # A few sentences are there before a bar could be read.
    bar = require("tqdm").tqdm(
        desc="speaking", unit="step", delay=2.0, mininterval=interval, leave=False
    )

    def watch(done: int, steps: int) -> None:
        bar.total = steps
        bar.update(done - bar.n)

    try:
        yield watch
    finally:
        bar.close()


def _write(speech, features, output: Path | None, mel: Path | None) -> None:
    import numpy as np

    from sniper.tts.audio.writing import save_wav
    from sniper.tts.files import atomic_write, make_folder_of, write_json

    piped = str(output) == "-"
    said = sys.stderr if piped else sys.stdout  # which then holds sound and nothing else
    for path in filter(None, (None if piped else output, mel)):
        make_folder_of(path)
    if output is not None:
        target = sys.stdout.buffer if piped else output
        save_wav(target, speech.audio, features.sample_rate)
        if piped:
            sys.stdout.buffer.flush()
        name = "standard output" if piped else output
        print(f"{name}: {len(speech.audio) / features.sample_rate:.2f} s", file=said)
    if mel is not None:
        # np.save adds the ending to a name, but not to an open file.
        mel = mel if mel.suffix == ".npy" else Path(f"{mel}.npy")
        with atomic_write(mel) as file:
            np.save(frames := io.BytesIO(), speech.mel)  # numpy would not say that the disk is full
            file.write(frames.getbuffer())
        # Another vocoder has to know rate, hop and logarithm, and .npy cannot hold them.
        write_json(mel.with_suffix(".json"), features.to_json())
        print(
            f"{mel}: {speech.mel.shape[0]} frames; its settings are in {mel.stem}.json", file=said
        )


if __name__ == "__main__":
    exit_with(main)
