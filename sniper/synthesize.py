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
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sniper.command import exit_with, is_of_output, path_argument, typed_text, why_missing

if TYPE_CHECKING:
    from sniper.tts.audio.config import FeatureConfig
    from sniper.tts.audio.writing import Spool
    from sniper.tts.speaker import Script, Speaker

# Endings of other formats, under which a WAV would not be looked for.
OTHER_FORMATS = set(
    ".aac .aif .aifc .aiff .alac .amr .au .caf .flac .m4a .mka .mp2 .mp3 .mp4 .oga .ogg .opus .pcm "
    ".raw .snd .w64 .weba .webm .wma".split()
)


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
    parser.add_argument(
        "--lexicon",
        type=path_argument,
        help="dictionary in MFA format, whose words go before the voice's own",
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
    if options.mel is not None and options.mel.suffix != ".npy":
        options.mel = Path(f"{options.mel}.npy")
    if why := _why_not_written(options.output, options.mel):
        print(f"error: {why}", file=sys.stderr)
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


def _why_not_written(output: Path | None, mel: Path | None) -> str | None:
    """What is wrong with the names of the files; None where nothing is."""
    if output is None or str(output) == "-":
        return None
    if output.suffix.lower() in OTHER_FORMATS:
        return f"-o writes WAV: expected a name in .wav, got {output}"
    names = () if mel is None else (mel, mel.with_suffix(".json"))
    if os.path.realpath(output) in map(os.path.realpath, names):
        return f"-o {output}: --mel writes this file: give another name to one of them"
    return None


def _speak(options: argparse.Namespace) -> int:
    from sniper.training.checkpoint import CheckpointError
    from sniper.training.settings import ConfigError
    from sniper.tts.errors import SpeechError
    from sniper.tts.text.lexicon import read_dictionary

    try:
        given = options.text
        text = _standard_input() if given == "-" else typed_text(given)
        words = None if options.lexicon is None else read_dictionary(options.lexicon)
        vocoder = options.vocoder
        speaker = load_speaker(options.checkpoint, options.which, options.device, vocoder)
        if words is not None:
            print(f"note: {options.lexicon}: {speaker.add_words(words)}", file=sys.stderr)
        script = speaker.read(
            text,
            speed=options.speed,
            pitch=options.pitch,
            energy=options.energy,
            ssml=options.ssml,
            speaker=options.speaker,
        )
        if script.guessed:
            print(f"note: {speaker.how_guessed(script.guessed)}", file=sys.stderr)
        _say(speaker, script, options.output, options.mel)
        if options.speaker is None and len(speaker.info.speakers) > 1:
            names = len(speaker.info.speakers)
            print(f"note: spoken by {speaker.who()}, the first of {names}", file=sys.stderr)
    except (SpeechError, CheckpointError, ConfigError, OSError, UnicodeDecodeError) as error:
        if is_of_output(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _standard_input() -> str:
    """UTF-8 whatever the locale, like every other text of ours."""
    from sniper.tts.files import refuse_utf16

    content = sys.stdin.buffer.read()
    refuse_utf16(content, "standard input")
    return content.decode("utf-8")


def _say(speaker: Speaker, script: Script, output: Path | None, mel: Path | None) -> None:
    """Speak into the files that are asked for, with one sentence at a time in memory."""
    from sniper.tts.files import check_beside

    if mel is not None:
        check_beside(mel, speaker.info.features.to_json())
    piped = str(output) == "-"
    with contextlib.ExitStack() as stack:
        sound, frames = None, None
        with _bar() as watch:
            for piece in speaker.say(script, vocode=output is not None, watch=watch):
                # Only once there is something to write: a text that cannot be spoken leaves no
                # folder behind.
                if output is not None:
                    sound = sound or stack.enter_context(_spool(None if piped else output))
                    sound.add(piece.audio)
                if mel is not None:
                    frames = frames or stack.enter_context(_spool(mel))
                    frames.add(piece.mel)
                del piece  # or it is held while the next is made
        features = speaker.info.features
        if output is not None and sound is not None:
            _write_sound(output, sound, features.sample_rate)
        if mel is not None and frames is not None:
            _write_mel(mel, frames, features, sys.stderr if piped else sys.stdout)
        if sound is not None:
            _say_how(speaker, sound.peak)


def _to_stdout(options: argparse.Namespace) -> bool:
    return str(options.output) == "-"


def _say_how(speaker: Speaker, peak: float) -> None:
    """Who made the sound, and what was done to its loudness."""
    print(f"note: {speaker.vocoder.about}", file=sys.stderr)
    if peak > 1:
        lower = 20 * math.log10(peak)
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


def _spool(beside: Path | None) -> Spool:
    from sniper.tts.audio.writing import Spool
    from sniper.tts.files import make_folder_of

    if beside is not None:
        make_folder_of(beside)
    return Spool(beside)


def _write_sound(output: Path, sound: Spool, sample_rate: int) -> None:
    import numpy as np

    from sniper.tts.audio.writing import save_wav_of

    piped = str(output) == "-"
    # One gain for all of it, or sentences would differ in loudness; so nothing is written before
    # the last one is spoken.
    limit = np.float32(max(1.0, sound.peak))
    blocks = (block / limit for block in sound.blocks())
    save_wav_of(sys.stdout.buffer if piped else output, blocks, sound.rows, sample_rate)
    if piped:
        sys.stdout.buffer.flush()
    name = "standard output" if piped else output
    # Standard output then holds sound and nothing else.
    said = sys.stderr if piped else sys.stdout
    print(f"{name}: {sound.rows / sample_rate:.2f} s", file=said)


def _write_mel(path: Path, frames: Spool, features: FeatureConfig, said: TextIO) -> None:
    import numpy as np

    from sniper.tts.files import atomic_write, write_json

    header = {"descr": "<f4", "fortran_order": False, "shape": frames.shape}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in frames.blocks():
            file.write(block.data)
    # Another vocoder has to know rate, hop and logarithm, and .npy cannot hold them.
    write_json(path.with_suffix(".json"), features.to_json())
    print(f"{path}: {frames.rows} frames; its settings are in {path.stem}.json", file=said)


if __name__ == "__main__":
    exit_with(main)
