# SPDX-License-Identifier: Apache-2.0
"""Corpora on disk in LJSpeech's layout.

ROOT/metadata.csv        id|text or id|text|normalized text, without quoting
ROOT/wavs/ID.wav
ROOT/TextGrid/ID.TextGrid (also in folders of speakers), or ROOT/alignments.jsonl
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sniper.tts.corpus.alignment import (
    ALIGN_SETTINGS,
    CORRECTED,
    TEXTGRIDS,
    Alignment,
    check_id,
    phonemes_of,
    read_alignments,
)
from sniper.tts.corpus.layouts import Line, Listing, list_others
from sniper.tts.errors import SpeechError, UtteranceError
from sniper.tts.files import composed, named, refuse_utf16

# How far below their folder TextGrids are looked for: a part of LibriTTS, speaker, chapter.
_DEEP = 3
_TEXTGRID_FOLDERS = ("TextGrid", "textgrids", "TextGrids", "alignments")
ALIGNMENTS = "alignments.jsonl"
SPEAKERS = ("none", "column", "folder")
DESCRIPTION = "synthesis.json"  # says who spoke a synthetic corpus


@dataclass(frozen=True)
class Utterance:
    """A line of metadata.csv and where its sound and alignment are.

    Args:
        id, text: the normalized text where there is one.
        wav: path of the audio.
        alignment: read already, or the path of a TextGrid.
        speaker: name; "" in a corpus of one.
    """

    id: str
    text: str
    wav: Path
    alignment: Alignment | Path
    speaker: str = ""


def fingerprint(utterance: Utterance) -> str:
    """What changes when the text, the wav or the alignment of an utterance does.

    Files count by size and time of change: reading a whole corpus would take as long as a good part
    of the work that it is to save.
    """
    alignment = utterance.alignment
    if isinstance(alignment, Alignment):
        where = [repr(alignment.phones).encode(), alignment.boundaries.tobytes()]
    else:
        where = [_file_state(alignment)]
    parts = [utterance.text.encode(), _file_state(utterance.wav), *where]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _file_state(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return b"missing"
    # The path too: another file of the same size and time is another file. Resolved, since the same
    # folder may be named in other ways.
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}".encode()


@dataclass(frozen=True)
class Corpus:
    """Utterances that can be tried, and the lines that cannot.

    Args:
        problems: (id or line number, reason) pairs.
        has_textgrids: False where alignments.jsonl was read.
        language, characters: whose phonemes they are, as `LexiconFrontend` takes it.
    """

    utterances: list[Utterance]
    problems: list[tuple[str, str]]
    has_textgrids: bool
    language: str | None = None
    characters: bool = False


def read_metadata(path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Read metadata.csv.

    Returns:
        (id, text) pairs in the file's order, and (where, reason) pairs for lines that cannot be
        used: not UTF-8, too few or too many fields, no text, an id that came before.

    Raises:
        SpeechError: there is no such file, or it is UTF-16.
    """
    entries, problems = _read_lines(path, column=False)
    return [(name, text) for name, text, _ in entries], problems


def _read_lines(
    path: Path, column: bool
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """`read_metadata` with the speaker, whom the last column names.

    An id may be the name of its file, `0001.wav` or `wavs/0001.wav`, as other trainers have it.
    """
    try:
        # Spreadsheets put this mark at the front, and it would become a part of the first id.
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise SpeechError(
            f"{path} cannot be read ({error.strerror}): the corpus folder needs a metadata.csv "
            "with lines like id|text"
        ) from error
    refuse_utf16(content, path)
    if b"\n" not in content:  # as spreadsheets once ended lines on a Mac
        content = content.replace(b"\r", b"\n")
    entries: dict[str, tuple[str, str, str]] = {}
    problems = []
    seconds, thirds = set(), set()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            name, *texts, speaker = _metadata_line(line, column)
            name = _id_of(name, path.parent)
            check_id(name)
            # The normalised text says numbers as they are spoken; where that field is empty the raw
            # one must do.
            text = texts[-1] or texts[0]
            if not text:
                raise UtteranceError(f"{name} has no text")
            if len(texts) == 2 and all(texts):
                seconds.add(texts[0])
                thirds.add(texts[1])
            if composed(name) in entries:
                raise UtteranceError(f"the id {name} came before; only its first line is used")
            entries[composed(name)] = (name, text, speaker)
        except UtteranceError as error:
            problems.append((f"{path.name}:{number}", str(error)))
    if 1 < len(seconds) <= len(thirds) / 4:
        # Whoever wrote id|speaker|text would get one voice of all of them.
        some = ", ".join(sorted(seconds)[:3])
        raise SpeechError(
            f"{path}: expected id|text|normalized, got second fields of {len(seconds)} kinds "
            f"({some}) before {len(thirds)} different texts; speakers belong in the last column, "
            "id|text|speaker, with --speakers column"
        )
    return list(entries.values()), problems


def _id_of(name: str, root: Path) -> str:
    """The id that a first field names, which may be a file's name."""
    if os.path.isfile(root / "wavs" / f"{name}.wav"):
        return name
    return name.removesuffix(".wav").removeprefix("./").removeprefix("wavs/")


def _metadata_line(line: bytes, column: bool) -> tuple[str, ...]:
    """Id, one or two texts, and the speaker, if the last column names one."""
    try:
        # Line by line: one that is not UTF-8 must not take the others with it. No quoting: LJSpeech
        # has quotation marks in its texts.
        fields = [field.strip() for field in line.decode("utf-8").split("|")]
    except UnicodeDecodeError as error:
        raise UtteranceError("the line is not UTF-8") from error
    if len(fields) - column not in (2, 3):
        more = "|speaker" if column else ""
        raise UtteranceError(
            f"expected id|text{more} or id|text|normalized{more}, got {len(fields)} fields"
        )
    # Composed, or one person whose name is encoded in two ways would be two speakers.
    speaker = composed(fields.pop()) if column else ""
    check_id(fields[0])
    if column and not speaker:
        raise UtteranceError(f"{fields[0]} has no speaker in its last column")
    return *fields, speaker


def list_utterances(root: Path, speakers: str = "none") -> Listing:
    """List a corpus in LJSpeech's layout, or, found by what lies in `root`, VCTK's or LibriTTS'.

    Args:
        speakers: for LJSpeech's layout: "none", "column" (the last one of metadata.csv: `id|text|
            speaker` or `id|text|normalized|speaker`) or "folder" (ids such as `anna/0001`).

    Raises:
        SpeechError: none of the layouts, or a choice that is none.
    """
    if speakers not in SPEAKERS:
        raise SpeechError(f"speakers: expected one of {', '.join(SPEAKERS)}, got {speakers!r}")
    if not root.is_dir():
        raise SpeechError(f"no such folder: {root}")
    # metadata.csv comes first: whoever wrote one has decided how the folder is to be read.
    if not (root / "metadata.csv").is_file() and (found := list_others(root)) is not None:
        return found
    entries, problems = _read_lines(root / "metadata.csv", column=speakers == "column")
    wavs = root / "wavs"
    if not wavs.is_dir():
        raise SpeechError(f"no folder {wavs}: the corpus needs its audio there as ID.wav")
    lines = []
    for name, text, speaker in entries:
        folder = name.partition("/")[0] if "/" in name else ""
        if speakers == "folder" and not folder:
            problems.append((name, "its id has no folder that could name its speaker"))
            continue
        who = composed(folder) if speakers == "folder" else speaker
        lines.append(Line(name, text, named(wavs, f"{name}.wav"), who))
    return Listing(lines, problems)


def read_corpus(
    root: Path,
    textgrids: Path | None = None,
    speakers: str = "none",
    language: str | None = None,
    phones: str | None = None,
) -> Corpus:
    """List the utterances of a corpus in one of the layouts of `list_utterances`.

    Args:
        root: folder with metadata.csv and wavs/, or of VCTK or LibriTTS.
        textgrids: folder of the TextGrids, or of an alignment of ours; by default TextGrid/,
            textgrids/, TextGrids/ or alignments/ in `root`, else `root`/alignments.jsonl.
        speakers: who speaks, see `list_utterances`.
        language, phones: of the alignments, see `phonemes_of`.

    Raises:
        SpeechError: no metadata.csv, no wavs/, no alignments at all, or alignments of another
            language or of other phones than is said.
    """
    listing = list_utterances(root, speakers)
    problems = list(listing.problems)
    folder, ids = _textgrid_folder(root, textgrids), [line.id for line in listing.lines]
    aligned: dict[str, Alignment] | dict[str, Path]
    ambiguous: dict[str, list[Path]] = {}
    if folder is None:
        by_id, unusable = read_alignments(root / ALIGNMENTS)
        spelled = {composed(name): there for name, there in by_id.items()}
        aligned = {n: spelled[composed(n)] for n in ids if composed(n) in spelled}
        problems += unusable
        missing = f"it has no usable line in {ALIGNMENTS}"
    else:
        aligned, ambiguous = _textgrids_of(folder, ids)
        missing = f"no TextGrid for it in {folder}"
    utterances = []
    for line in listing.lines:
        name = line.id
        if name in ambiguous:
            found = " and ".join(map(str, ambiguous[name]))
            problems.append((name, f"ambiguous, several TextGrids have its name: {found}"))
        elif name in aligned:
            where = aligned[name]
            utterances.append(Utterance(name, line.text, line.wav, where, line.speaker))
        else:
            problems.append((name, missing))
    spoken, characters = phonemes_of(folder, language, phones)
    voice = synthesis_voice(root) if folder is None else None
    if voice is not None and (characters or spoken not in (None, voice.partition("+")[0])):
        raise SpeechError(
            f"{root} was spoken by espeak-ng's voice {voice}, which says whose phonemes they are: "
            "leave --language and --phones out"
        )
    return Corpus(utterances, problems, folder is not None, spoken, characters)


def _textgrids_of(
    folder: Path, ids: Iterable[str]
) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """The TextGrid of each id that has one, and those between which nothing decides."""
    exact = {name: named(folder, f"{name}.TextGrid") for name in ids}
    found = {name: path for name, path in exact.items() if os.path.isfile(path)}
    if len(found) == len(exact):
        return found, {}
    # MFA puts the files into folders of speakers and chapters: what is none's by its path belongs
    # to whoever has its name. `rglob` would follow no link to a folder.
    taken, paths_of = set(found.values()), {}
    everywhere = (folder.glob("*/" * deep + "*.TextGrid") for deep in range(_DEEP + 1))
    for path in sorted(itertools.chain.from_iterable(everywhere)):
        if path not in taken and CORRECTED not in path.relative_to(folder).parts:
            paths_of.setdefault(composed(path.name.removesuffix(".TextGrid")), []).append(path)
    of = {name: paths_of.get(composed(name), []) for name in exact if name not in found}
    found |= {name: paths[0] for name, paths in of.items() if paths}
    return found, {name: paths for name, paths in of.items() if len(paths) > 1}


def has_alignments(root: Path) -> bool:
    """Whether there are TextGrids or alignments.jsonl at a usual place in a corpus' folder."""
    folders = any((root / name).is_dir() for name in _TEXTGRID_FOLDERS)
    return folders or (root / ALIGNMENTS).is_file()


def find_textgrids(root: Path, textgrids: Path) -> Path:
    """Where the TextGrids of a corpus lie that are said to be in `textgrids`, if that is a folder:
    as it is named from the working directory or from `root`, and in an alignment of ours.
    """
    folder = next((f for f in (textgrids, root / textgrids) if f.is_dir()), textgrids)
    inside = folder / TEXTGRIDS
    return inside if (folder / ALIGN_SETTINGS).is_file() and inside.is_dir() else folder


def _textgrid_folder(root: Path, textgrids: Path | None) -> Path | None:
    if textgrids is not None:
        folder = find_textgrids(root, textgrids)
        if folder.is_dir():
            return folder
        raise SpeechError(f"no such folder of TextGrids: {textgrids}")
    for name in _TEXTGRID_FOLDERS:
        if (root / name).is_dir():
            return find_textgrids(root, root / name)
    if (root / ALIGNMENTS).is_file():
        return None
    raise SpeechError(
        f"no alignments in {root}: none of {', '.join(_TEXTGRID_FOLDERS)} and no {ALIGNMENTS}; "
        "`python -m sniper.align` makes TextGrids; pass them with --textgrids FOLDER"
    )


def synthesis_voice(root: Path) -> str | None:
    """The espeak-ng voice that spoke the corpus in `root`; None for any other corpus."""
    try:
        return str(json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))["voice"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
