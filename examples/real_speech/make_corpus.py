# SPDX-License-Identifier: Apache-2.0
"""A corpus of a real voice that every Debian mirror has: a third of an hour of telephone prompts by
one speaker, with transcripts, in LJSpeech's layout.

    pip install -e '.[tts,align,real-speech]'
    python examples/real_speech/make_corpus.py --out data/prompts
    python -m sniper.prepare ljspeech --root data/prompts --out data/prompts-prepared
    python -m sniper.train --config small-corpus data.prepared=data/prompts-prepared

The packages are fetched with apt-get, which needs no root for that (`apt-get update` does, on a
machine that has no lists of packages yet); on another system give a folder that holds them
(--packages). Recordings and transcripts are by Allison Smith and Digium, under
CC-BY-SA-3.0: a voice trained on them, and what it says, is shared under the same terms.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Sound at 16 kHz, and the transcripts.
PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
RATE = 16000
# Seconds. Longer ones are lists of menus, whose pauses no transcript shows.
SHORTEST, LONGEST = 0.3, 20.0


def fetch(folder: Path) -> None:
    """Downloads the packages into `folder`.

    Raises:
        SystemExit: apt-get is not there, or cannot get them.
    """
    try:
        command = ["apt-get", "download", *PACKAGES]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"apt-get is not here: download {', '.join(PACKAGES)} and name their --packages")
    if done.returncode:
        said = done.stderr.strip()
        sys.exit(f"apt-get download: {said}; apt-get update, as root, renews the lists of packages")


def unpack(packages: Path, into: Path) -> None:
    """Unpacks the packages in a folder, whatever their versions.

    Raises:
        SystemExit: one is missing, or dpkg-deb cannot read it.
    """
    for name in PACKAGES:
        found = sorted(packages.glob(f"{name}_*.deb"))
        if not found:
            sys.exit(f"{packages}: expected {name}_*.deb, found none")
        done = subprocess.run(["dpkg-deb", "-x", found[-1], into], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{found[-1]}: {done.stderr.strip()}")


def transcripts(root: Path) -> dict[str, str]:
    """What is said, by the name of the prompt; without tones and silences, which say nothing."""
    spoken = {}
    with gzip.open(root / TRANSCRIPTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, colon, text = line.partition(":")
            # Dots stand where a number or a name is put in between: no pause was spoken there.
            text = re.sub(r"\s+", " ", text.replace("...", " ")).strip()
            notes = re.search(r"[\[\]<>()]", text)
            if colon and not name.startswith(";") and re.search(r"\w", text) and not notes:
                spoken[name.strip()] = text
    return spoken


def samples(path: Path) -> np.ndarray:
    """A G.722 recording as int16 at 16 kHz."""
    import av  # here, so that --help needs nothing

    # Raw G.722 has no header that would say what it is.
    with av.open(str(path), format="g722") as file:
        frames = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    return np.concatenate(frames).astype(np.int16) if frames else np.zeros(0, np.int16)


def make(root: Path, out: Path) -> list[str]:
    """Writes `out/wavs` and `out/metadata.csv` from unpacked packages.

    Returns:
        What was left out, and why.
    """
    import soundfile

    (out / "wavs").mkdir(parents=True, exist_ok=True)
    # By folder and name below the voice's own folder: silence/7 is not digits/7.
    voices = [p for p in (root / "usr/share/asterisk/sounds").iterdir() if p.is_dir()]
    sounds = {
        str(path.relative_to(voice).with_suffix("")): path
        for voice in voices
        for path in voice.rglob("*.g722")
    }
    rows, left_out = [], []
    for name, text in sorted(transcripts(root).items()):
        path = sounds.get(name)
        if path is None:
            left_out.append(f"{name}: no recording")
            continue
        wave = samples(path)
        seconds = len(wave) / RATE
        if not SHORTEST <= seconds <= LONGEST:
            left_out.append(f"{name}: {seconds:.1f} s")
            continue
        utterance = name.replace("/", "_")
        soundfile.write(out / "wavs" / f"{utterance}.wav", wave, RATE)
        rows.append((utterance, text, text))
    with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="|", quoting=csv.QUOTE_NONE, quotechar=None).writerows(rows)
    print(f"{len(rows)} utterances in {out}, {len(left_out)} prompts left out")
    return left_out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--packages", type=Path, help="folder of the .deb files; else apt-get's")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        packages = args.packages or Path(folder)
        if args.packages is None:
            fetch(packages)
        unpack(packages, Path(folder) / "unpacked")
        for line in make(Path(folder) / "unpacked", args.out):
            print(f"  {line}")


if __name__ == "__main__":
    main()
