# SPDX-License-Identifier: Apache-2.0
"""The folder of an alignment: TextGrids, and a journal that says what each was made from.

OUT/TextGrid/ID.TextGrid   one an utterance
OUT/align.json             settings, written first
OUT/align.jsonl            the journal: a line an utterance, appended as they are finished
OUT/report.md, OUT/alignment.png
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sniper.tts.corpus.alignment import ALIGN_SETTINGS
from sniper.tts.corpus.build import refuse_other_settings
from sniper.tts.errors import OtherSettings, SpeechError
from sniper.tts.files import write_json

SETTINGS, JOURNAL, TEXTGRIDS = ALIGN_SETTINGS, "align.jsonl", "TextGrid"


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


def fingerprint(text: str, wav: Path) -> str:
    """What changes when the text or the wav does; files count by size and time of change."""
    try:
        found = wav.stat()
        # Contents would mean reading all recordings at every start.
        state = f"{found.st_size} {found.st_mtime_ns}"
    except OSError:
        state = "missing"
    return hashlib.sha256(f"{text}\0{state}".encode()).hexdigest()[:32]


class Folder:
    """An alignment on the disk, open for one process at a time; get it from `open_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        journal = path / JOURNAL
        for line in journal.read_bytes().splitlines() if journal.is_file() else []:
            # A line that a crash cut short, or the disk damaged, is an utterance to be done again.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                data = json.loads(line)
                data["remarks"] = tuple(data["remarks"])
                self.outcomes[data["id"]] = Outcome(**data)
        self._journal = journal.open("ab")

    def textgrid(self, name: str) -> Path:
        """Where an utterance's TextGrid is, or is to be."""
        return self.path / TEXTGRIDS / f"{name}.TextGrid"

    def is_done(self, name: str, mark: str) -> bool:
        """Whether an utterance was aligned from the same text and wav, and its file is there."""
        outcome = self.outcomes.get(name)
        if outcome is None or outcome.fingerprint != mark:
            return False
        # What had a problem has no TextGrid, and would have the same problem again.
        done_with = outcome.problem and not outcome.passing
        return bool(done_with) or self.textgrid(name).is_file()

    def add(self, outcome: Outcome) -> None:
        """Append an outcome to the journal; it is in the kernel's hands when this returns."""
        if outcome.problem:
            self.textgrid(outcome.id).unlink(missing_ok=True)  # of an earlier text
        line = json.dumps(asdict(outcome), ensure_ascii=False) + "\n"
        # A newline before it ends whatever line a crash cut short.
        self._journal.write(b"\n" + line.encode())
        self._journal.flush()
        self.outcomes[outcome.id] = outcome

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


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
def open_folder(path: Path, settings: dict, force: bool) -> Iterator[Folder]:
    """Open or begin an alignment's folder and keep every other process out of it.

    Args:
        settings: plain values that must be those it was begun with.
        force: align everything anew.

    Raises:
        OtherSettings: it was begun with others, or what says with which is damaged.
        SpeechError: another process works in it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / "align.lock").open("w") as lock:
        try:
            # A lock of the kernel: it ends with the process, however that ends.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SpeechError(f"another process is aligning in {path} right now") from error
        if force:
            _clear(path)
        there = begun_with(path)
        if there:
            refuse_other_settings(path, there, settings)
        else:
            write_json(path / SETTINGS, settings)
        folder = Folder(path)
        try:
            yield folder
        finally:
            folder.close()


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
    with open_folder(out, settings, force=False) as whole, contextlib.ExitStack() as stack:
        shares = [stack.enter_context(contextlib.closing(Folder(part))) for part in parts]
        where = {name: share for share in shares for name in share.outcomes}
        for name in order:
            if name not in where:
                continue
            outcome = where[name].outcomes[name]
            if whole.is_done(name, outcome.fingerprint):
                continue
            if not outcome.problem:
                target = whole.textgrid(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                # With its time, by which a prepared corpus knows its files.
                shutil.copy2(where[name].textgrid(name), target)
            whole.add(outcome)


def _clear(path: Path) -> None:
    """Remove what an alignment wrote, and nothing else."""
    for name in (SETTINGS, JOURNAL):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "learned", ignore_errors=True)
    for textgrid in (path / TEXTGRIDS).rglob("*.TextGrid"):
        textgrid.unlink()
