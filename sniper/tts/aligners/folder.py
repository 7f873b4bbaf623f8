# SPDX-License-Identifier: Apache-2.0
"""The folder of an alignment: TextGrids, and a journal that says what each was made from.

OUT/TextGrid/ID.TextGrid   one an utterance
OUT/align.json             settings, written first
OUT/align.jsonl            the journal: a line an utterance, appended as they are finished
OUT/align.begun            ids that are about to have their first TextGrid, while that is so
OUT/TextGrid.corrected/    TextGrids of somebody's hand, before others took their place
OUT/report.md, OUT/alignment.png
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sniper.tts.corpus.alignment import ALIGN_SETTINGS, CORRECTED, TEXTGRIDS
from sniper.tts.corpus.build import refuse_other_settings
from sniper.tts.errors import FolderInUse, OtherSettings, SpeechError
from sniper.tts.files import checksum, write_json
from sniper.tts.locks import only_one

SETTINGS, JOURNAL, BEGUN = ALIGN_SETTINGS, "align.jsonl", "align.begun"


@dataclass(frozen=True)
class Outcome:
    """What became of one utterance.

    Args:
        id: its name in metadata.csv.
        fingerprint: of its text and its wav.
        problem: why there is no TextGrid for it, or "".
        remarks: what is unusual about it, a phrase each.
        likelihood: log-likelihood per frame of speech, in nats.
        seconds, rate: length, and sample rate in Hz of the file.
        phones: phone -> (how often, frames in all), the frames being `frame_seconds` long.
        guessed: word -> how it was read, for its words that no dictionary holds.
        frame_seconds: of the aligner.
        passing: whether the problem may be the machine's and not the utterance's, as a full disk:
            then the next run tries again.
        content: of its text and its wav, as `content_of` gives it; "" from earlier versions.
        written: checksum of its TextGrid as the aligner wrote it; "" from earlier versions.
    """

    id: str
    fingerprint: str
    problem: str = ""
    remarks: tuple[str, ...] = ()
    likelihood: float = 0.0
    seconds: float = 0.0
    rate: int = 0
    phones: dict[str, tuple[int, float]] = field(default_factory=dict)
    guessed: dict[str, str] = field(default_factory=dict)
    frame_seconds: float = 0.01
    passing: bool = False
    content: str = ""
    written: str = ""

    def is_of(self, sources: Sources) -> bool:
        """Whether the text and the wav are still the same."""
        if self.id not in sources.marks:
            return False
        if self.fingerprint == sources.marks[self.id]:
            return True
        return self.content != "" and self.content == sources.content(self.id)


@dataclass(frozen=True)
class Sources:
    """What a corpus has to align, as it is now.

    Args:
        marks: id -> `fingerprint`.
        content: gives `content_of` an utterance by its id. Asked for only where the fingerprint is
            another, since it reads the recording.
    """

    marks: Mapping[str, str]
    content: Callable[[str], str]


def fingerprint(text: str, wav: Path) -> str:
    """What changes when the text or the wav does; files count by size and time of change."""
    try:
        found = wav.stat()
        # Contents would mean reading all recordings at every start.
        state = f"{found.st_size} {found.st_mtime_ns}"
    except OSError:
        state = "missing"
    return _digest(text, state)


def content_of(text: str, wav: Path) -> str:
    """What changes when the text or the bytes of the wav do, for where times say nothing: of a
    corpus that was copied. "" where the wav cannot be read.
    """
    try:
        # No device or pipe, which might never end.
        return _digest(text, checksum(wav)) if wav.is_file() else ""
    except OSError:
        return ""


def _digest(text: str, state: str) -> str:
    return hashlib.sha256(f"{text}\0{state}".encode()).hexdigest()[:32]


class Folder:
    """An alignment on the disk, open for one process at a time; get it from `open_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = 0  # TextGrids that are not as we wrote them, and gave way to others
        self.outcomes: dict[str, Outcome] = {}
        journal = path / JOURNAL
        for line in journal.read_bytes().splitlines() if journal.is_file() else []:
            # A line that a crash cut short, or the disk damaged, is an utterance to be done again.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                data = json.loads(line)
                data["remarks"] = tuple(data["remarks"])
                self.outcomes[data["id"]] = Outcome(**data)
        self._journal = journal.open("ab")
        begun = path / BEGUN
        self._begun = set(begun.read_bytes().split(b"\n") if begun.is_file() else ())

    def textgrid(self, name: str) -> Path:
        """Where an utterance's TextGrid is, or is to be."""
        return self.path / TEXTGRIDS / f"{name}.TextGrid"

    def is_done(self, name: str, sources: Sources) -> bool:
        """Whether an utterance was aligned from the same text and wav, and its file is there."""
        outcome = self.outcomes.get(name)
        if outcome is None or not outcome.is_of(sources):
            return False
        # What had a problem has no TextGrid, and would have the same problem again.
        done_with = outcome.problem and not outcome.passing
        if not done_with and not self.textgrid(name).is_file():
            return False
        if outcome.fingerprint != sources.marks[name]:
            # So that the next start need not read the recording.
            self._append(replace(outcome, fingerprint=sources.marks[name]))
        return True

    def is_of(self, sources: Sources) -> bool:
        """Whether most of what was aligned here is there unchanged: it is the same corpus then,
        wherever it lies.
        """
        aligned = [o for o in self.outcomes.values() if o.fingerprint and not o.problem]
        same = sum(outcome.is_of(sources) for outcome in aligned)
        return 2 * same > len(aligned) or not aligned

    def make_way(self, name: str) -> None:
        """What to do before an utterance is aligned: a TextGrid that somebody made or corrected is
        kept, and what the journal says of it no longer counts.
        """
        self._keep_somebodys(name)
        # Else a run that is killed between a TextGrid and its line would leave one that looks like
        # somebody's.
        if name in self.outcomes:
            empty = {"fingerprint": "", "content": "", "written": ""}
            self._append(replace(self.outcomes[name], **empty))
        else:
            self._begun.add(os.fsencode(name))
            with (self.path / BEGUN).open("ab") as file:
                file.write(os.fsencode(name) + b"\n")

    def add(self, outcome: Outcome) -> None:
        """Append an outcome to the journal; it is in the kernel's hands when this returns."""
        if outcome.problem:
            self._keep_somebodys(outcome.id)
            self.textgrid(outcome.id).unlink(missing_ok=True)  # of an earlier text
        self._append(outcome)

    def keep(self, path: Path, name: str) -> None:
        """Move somebody's TextGrid to where nothing replaces it."""
        target, number = self.path / CORRECTED / f"{name}.TextGrid", 1
        while target.exists():  # an earlier correction
            number += 1
            target = self.path / CORRECTED / f"{name}.{number}.TextGrid"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        self.kept += 1

    def clear(self) -> None:
        """Remove what an alignment wrote, and nothing else."""
        folder = self.path / TEXTGRIDS
        there = sorted(folder.rglob("*.TextGrid"))
        for path in there:
            self._keep_somebodys(path.relative_to(folder).as_posix().removesuffix(".TextGrid"))
        (self.path / SETTINGS).unlink(missing_ok=True)
        self._journal.truncate(0)
        self.outcomes.clear()
        self._begun.clear()
        (self.path / BEGUN).unlink(missing_ok=True)
        shutil.rmtree(self.path / "learned", ignore_errors=True)
        for path in there:
            path.unlink(missing_ok=True)

    def _keep_somebodys(self, name: str) -> None:
        """Keep a TextGrid that we did not write, or that is no longer as we wrote it."""
        outcome, path = self.outcomes.get(name), self.textgrid(name)
        if not path.is_file() or (outcome is None and os.fsencode(name) in self._begun):
            return
        # What had a problem got none from us. Without a fingerprint it was about to be aligned.
        if outcome is None or (outcome.problem and outcome.fingerprint):
            self.keep(path, name)
        elif outcome.written and checksum(path) != outcome.written:
            self.keep(path, name)

    def _append(self, outcome: Outcome) -> None:
        line = json.dumps(asdict(outcome), ensure_ascii=False) + "\n"
        # A newline before it ends whatever line a crash cut short.
        self._journal.write(b"\n" + line.encode())
        self._journal.flush()
        self.outcomes[outcome.id] = outcome

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()
        if self._begun <= {b"", *(os.fsencode(name) for name in self.outcomes)}:
            (self.path / BEGUN).unlink(missing_ok=True)


def begun_with(path: Path) -> dict:
    """The settings of the alignment in a folder; {} where there is none.

    Raises:
        OtherSettings: they cannot be read.
    """
    where = path / SETTINGS
    if not where.is_file():
        return {}
    try:
        there = json.loads(where.read_text(encoding="utf-8"))
        if not isinstance(there, dict) or not there:
            raise ValueError
    except ValueError as error:
        raise OtherSettings(f"{where} is damaged; --force aligns everything anew") from error
    return there


@contextlib.contextmanager
def open_folder(
    path: Path, settings: dict, force: bool, sources: Sources | None = None
) -> Iterator[Folder]:
    """Open or begin an alignment's folder and keep every other process out of it.

    Args:
        settings: plain values that must be those it was begun with.
        force: align everything anew.
        sources: what is to be aligned. Where it is the same, `root` may be another: a corpus that
            was moved or copied.

    Raises:
        OtherSettings: it was begun with others, or what says with which is damaged.
        FolderInUse: another process works in it, with whose it is.
    """
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(path))
        except FolderInUse as error:
            raise FolderInUse(f"{error}; wait for it, or choose another --out") from None
        folder = Folder(path)
        try:
            if force:
                folder.clear()
            there = begun_with(path)
            moved = there != settings and {**there, "root": settings.get("root")} == settings
            if not there or (moved and sources is not None and folder.is_of(sources)):
                write_json(path / SETTINGS, settings)
            else:
                refuse_other_settings(path, there, settings)
            yield folder
        finally:
            folder.close()
            if folder.kept:
                warnings.warn(
                    "TextGrids that were made or corrected by hand gave way to others: "
                    f"{folder.kept}, kept in {path / CORRECTED}",
                    stacklevel=1,
                )


def gather(parts: Sequence[Path], out: Path, order: Sequence[str]) -> None:
    """Put the alignments of several shares of a corpus into one folder, as if made there.

    Args:
        order: ids of the corpus's utterances, in which the journal is written.

    Raises:
        SpeechError: a share that was not aligned, or in another way than the first.
    """
    settings = begun_with(parts[0])
    for part in parts:
        there = begun_with(part)
        if not there:
            raise SpeechError(f"{part} holds no alignment: prepare that share again")
        refuse_other_settings(part, there, settings)
    with contextlib.ExitStack() as stack:
        shares = [stack.enter_context(contextlib.closing(Folder(part))) for part in parts]
        where = {name: share for share in shares for name in share.outcomes}
        outcomes = {name: where[name].outcomes[name] for name in order if name in where}
        marks = {name: outcome.fingerprint for name, outcome in outcomes.items()}
        sources = Sources(marks, lambda name: outcomes[name].content)
        whole = stack.enter_context(open_folder(out, settings, force=False, sources=sources))
        for name, outcome in outcomes.items():
            source, target = where[name].textgrid(name), whole.textgrid(name)
            # What a share has begun anew and not finished is aligned with the whole.
            if whole.is_done(name, sources) or not (outcome.problem or source.is_file()):
                continue
            if not outcome.problem:
                whole.make_way(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                # With its time, by which a prepared corpus knows its files.
                shutil.copy2(source, target)
            whole.add(outcome)
        for part in parts:
            # The shares are removed when they have been put together.
            for path in sorted((part / CORRECTED).rglob("*.TextGrid")):
                name = path.relative_to(part / CORRECTED).as_posix()
                whole.keep(path, name.removesuffix(".TextGrid"))
