# SPDX-License-Identifier: Apache-2.0
"""How other corpora than LJSpeech name their utterances, texts and speakers.

VCTK      ROOT/txt/SPEAKER/ID.txt, ROOT/wav48_silence_trimmed/SPEAKER/ID_mic1.flac
          or ROOT/wav48/SPEAKER/ID.wav
LibriTTS  ROOT/SPEAKER/CHAPTER/ID.normalized.txt and ID.wav, also one folder deeper

Where several files have one name, the id is the path: SPEAKER/ID or SPEAKER/CHAPTER/ID.
"""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sniper.tts.errors import SpeechError
from sniper.tts.files import named, refuse_utf16


@dataclass(frozen=True)
class Line:
    """An utterance as the corpus lists it.

    Args:
        id: a path without its ending, or a name that no other utterance has.
        speaker: name; "" in a corpus of one.
    """

    id: str
    text: str
    wav: Path
    speaker: str = ""


@dataclass(frozen=True)
class Listing:
    """All utterances of a corpus, and (where, reason) of the lines that cannot be used."""

    lines: list[Line]
    problems: list[tuple[str, str]]

    def sha256(self) -> str:
        """What changes when a text or a speaker does."""
        content = "\n".join(f"{line.id}|{line.text}|{line.speaker}" for line in self.lines)
        return hashlib.sha256(content.encode()).hexdigest()


def list_others(root: Path) -> Listing | None:
    """The utterances of a corpus in VCTK's or LibriTTS' layout; None where `root` holds neither."""
    for read in (_vctk, _libritts):
        lines, problems = _usable(root, list(read(root)))
        if lines:
            return Listing(lines, problems)
    return None


def find_recording(root: Path, name: str) -> Path | None:
    """The sound of the utterance `name` (an id of `Line`) in any of the layouts; None: not there.

    Without the listing, which reads the texts of all utterances.
    """
    there = named(root / "wavs", f"{name}.wav")
    if there.is_file():
        return there
    safe = glob.escape(name)
    folders = (f"wav48_silence_trimmed/*/{safe}_mic1.flac", f"wav48/*/{safe}.wav")
    if "/" in name:
        folders = (f"wav48_silence_trimmed/{safe}_mic1.flac", f"wav48/{safe}.wav", f"{safe}.wav")
    for pattern in (*folders, f"*/*/{safe}.wav", f"*/*/*/{safe}.wav"):
        for path in sorted(root.glob(pattern)):
            return path
    return None


def _vctk(root: Path) -> Iterator[tuple[Path, Line]]:
    # glob's order is that of the disk.
    for path in sorted((root / "txt").glob("*/*.txt")):
        name, speaker = path.stem, path.parent.name
        # This folder is VCTK 0.92's, earlier versions have wav48. The first of its two microphones,
        # since some speakers have no recording by the second.
        new = root / "wav48_silence_trimmed" / speaker / f"{name}_mic1.flac"
        old = root / "wav48" / speaker / f"{name}.wav"
        yield path, Line(name, "", old if old.is_file() and not new.is_file() else new, speaker)


def _is_vctk(path: Path, root: Path) -> bool:
    return path.is_relative_to(root / "txt")


def _libritts(root: Path) -> Iterator[tuple[Path, Line]]:
    ending = ".normalized.txt"
    for path in sorted([*root.glob(f"*/*/*{ending}"), *root.glob(f"*/*/*/*{ending}")]):
        name = path.name.removesuffix(ending)
        yield path, Line(name, "", path.with_name(f"{name}.wav"), path.parent.parent.name)


def _usable(
    root: Path, found: Sequence[tuple[Path, Line]]
) -> tuple[list[Line], list[tuple[str, str]]]:
    """The lines with their texts, which lie in a file each; ids that are no other's."""
    lines, problems = [], []
    times = Counter(line.id for _, line in found)
    for path, line in found:
        if times[line.id] > 1:
            where = path.parent.relative_to(root / "txt" if _is_vctk(path, root) else root)
            line = replace(line, id=f"{where.as_posix()}/{line.id}")
        try:
            content = path.read_bytes()
            refuse_utf16(content, f"its text {path}")
            text = " ".join(content.decode("utf-8-sig").split())
        except SpeechError as error:
            problems.append((line.id, str(error)))
            continue
        except (OSError, UnicodeDecodeError):
            problems.append((line.id, f"its text {path} cannot be read as UTF-8"))
            continue
        if text:
            lines.append(replace(line, text=text))
        else:
            problems.append((line.id, f"its text {path} is empty"))
    return lines, problems
