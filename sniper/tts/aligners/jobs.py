# SPDX-License-Identifier: Apache-2.0
"""Utterances on their way through an aligner, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sniper.tts.aligners.audio import read_speech
from sniper.tts.aligners.folder import Folder, Outcome, content_of
from sniper.tts.aligners.textgrid import write_textgrid
from sniper.tts.errors import UtteranceError, progress_bar, reworded
from sniper.tts.files import checksum
from sniper.tts.processes import map_in_processes


@dataclass(frozen=True)
class Job:
    """One utterance for a worker: id, wav, fingerprint, TextGrid, words, those guessed, text."""

    id: str
    wav: Path
    mark: str
    textgrid: Path
    words: tuple
    guessed: dict[str, str]
    text: str = ""


class Jobs:
    """What every way of aligning does with its utterances."""

    def __init__(
        self,
        wavs: dict[str, Path],
        folder: Folder,
        marks: dict[str, str],
        workers: int,
        progress: bool,
    ):
        self.wavs, self.folder, self.marks = wavs, folder, marks
        self.workers, self.progress = workers, progress

    def make(self, todo: Sequence[tuple[str, str]], words_of, guessed=None) -> list[Job]:
        """Jobs for what can be read; the rest goes into the journal as problems."""
        how = guessed or {}
        jobs = []
        for name, text in todo:
            try:
                with reworded(partial(_of, name)):  # a sign that two texts have is told of both
                    words = tuple(words_of(text))
            # Kept in the journal, or the same text would be refused anew at every start.
            except UtteranceError as error:
                self.folder.add(Outcome(name, self.marks[name], problem=str(error)))
                continue
            found = {word: how[word] for word in words if word in how}
            textgrid = self.folder.textgrid(name)
            jobs.append(Job(name, self.wavs[name], self.marks[name], textgrid, words, found, text))
        return jobs

    def run(self, jobs: Sequence[Job], function, start, *args) -> None:
        """Align in processes and write the journal."""
        for job in jobs:
            self.folder.make_way(job.id)
        # No more processes than utterances: each loads a model first.
        done = map_in_processes(function, jobs, min(self.workers, len(jobs)), start, *args)
        for outcome in self.bar(done, "aligning", len(jobs)):
            self.folder.add(outcome)

    def bar(self, items: Iterable, label: str, total: int):
        """A progress bar with the time that is left."""
        return progress_bar(items, label, total, show=self.progress)


def _of(name: str, warning: str) -> str:
    """A warning that names the utterance whose text it is about."""
    return f"in the text of {name}: {warning}"


def outcome_of(job: Job, align, audio, frame_seconds: float) -> Outcome:
    """Read, align and write one utterance; what is wrong with it becomes `Outcome.problem`."""
    problem = ""
    # Before it is read: a recording that changes meanwhile is another at the next start.
    content = content_of(job.text, job.wav)
    try:
        samples, rate, remarks = read_speech(job.wav, audio)
        text, more = align(samples)
        write_textgrid(job.textgrid, text)
        written = checksum(job.textgrid)
    except UtteranceError as error:
        problem, passing = str(error), isinstance(error.__cause__, OSError)
    except OSError as error:
        problem, passing = str(error), True
    # Whatever else one file causes must name that file, and not end the work on all others.
    except Exception as error:
        problem, passing = f"unexpected error in {job.wav}: {type(error).__name__}: {error}", True
    if problem:
        reason = " ".join(problem.split())
        return Outcome(job.id, job.mark, problem=reason, passing=passing, content=content)
    phones: dict[str, tuple[int, float]] = {}
    for interval in text.phones:
        if interval.label:
            times, frames = phones.get(interval.label, (0, 0.0))
            frames += (interval.end - interval.start) / frame_seconds
            phones[interval.label] = times + 1, round(frames, 3)
    return Outcome(
        job.id,
        job.mark,
        remarks=(*remarks, *more),
        likelihood=round(text.likelihood, 4),
        seconds=len(samples) / audio.sample_rate,
        rate=rate,
        phones=phones,
        guessed=job.guessed,
        frame_seconds=frame_seconds,
        content=content,
        written=written,
    )
