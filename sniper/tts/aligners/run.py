# SPDX-License-Identifier: Apache-2.0
"""A corpus aligned: resumable, in several processes, with a report at the end."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from sniper.tts.aligners import english, learned
from sniper.tts.aligners.audio import read_speech
from sniper.tts.aligners.folder import (
    Outcome,
    Sources,
    begun_with,
    content_of,
    fingerprint,
    open_folder,
)
from sniper.tts.aligners.jobs import Job, Jobs, outcome_of
from sniper.tts.aligners.picture import PICTURE, draw
from sniper.tts.aligners.pronounce import (
    EnglishWords,
    acoustic_model,
    read_variants,
)
from sniper.tts.aligners.report import Report, nothing_aligned, summarize, write_report
from sniper.tts.aligners.textgrid import TimedText
from sniper.tts.aligners.tokens import TokenReader
from sniper.tts.corpus.alignment import PHONES, TEXTGRIDS
from sniper.tts.corpus.corpus import list_utterances
from sniper.tts.corpus.shards import Shard, share_of
from sniper.tts.errors import NothingUsable, SpeechError, UtteranceError, require
from sniper.tts.processes import default_workers, map_in_processes
from sniper.tts.text.espeak import has_espeak
from sniper.tts.text.words import is_english

WAYS = ("english", "learned")
_FORMAT = 1


@dataclass(frozen=True)
class Aligned:
    """A finished alignment.

    Args:
        textgrids: folder of the TextGrids.
        report: what it says of the corpus.
        fresh: how many utterances were aligned in this call.
    """

    textgrids: Path
    report: Report
    fresh: int


def align_corpus(
    root: str | Path,
    out: str | Path,
    *,
    way: str | None = None,
    language: str = "en-us",
    phones: str = "espeak",
    lexicon: str | Path | None = None,
    speakers: str = "none",
    steps: int | None = None,
    device: str = "auto",
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
    share: Shard | None = None,
) -> Aligned:
    """Align a corpus and write OUT/TextGrid/ID.TextGrid and a report.

    Utterances that cannot be aligned are left out and listed. The same call continues what was
    stopped, and takes up what is new or changed.

    Args:
        root: folder with metadata.csv and wavs/, or of VCTK or LibriTTS.
        way: "english" or "learned"; by default english where the language is.
        language: name of an espeak-ng voice, such as en-us or de.
        phones: what "learned" aligns: "espeak" or "characters".
        lexicon: a dictionary in MFA's format, which goes before any other pronunciation.
        speakers: who speaks, as `sniper.tts.corpus.corpus.list_utterances` takes it.
        steps: of the training of "learned"; by default 1000.
        device: for that training: auto, cpu or cuda.
        seed: of that training.
        workers: processes; by default one per CPU.
        force: align everything anew.
        share: of the utterances; None: all. `gather` puts the folders of all shares together.

    Raises:
        SpeechError: one line for the user.
        NothingUsable: no utterance could be aligned.
        ValueError: an argument that is not one of those named here.
    """
    root, out = Path(root), Path(out)
    chosen = way or ("english" if is_english(language) else "learned")
    _refuse_wrong(chosen, language, phones)
    if share is not None and chosen == "learned":
        raise ValueError(
            "--align learned trains on the whole corpus, which no share is: run python -m "
            "sniper.align first, and pass its TextGrids with --textgrids"
        )
    listing = list_utterances(root, speakers)
    lines = listing.lines if share is None else share_of(listing.lines, share)
    entries, problems = [(line.id, line.text) for line in lines], listing.problems
    wavs = {line.id: line.wav for line in lines}
    for module in ("soundfile", "soxr", "tqdm", "praatio", "matplotlib"):
        # All of them are asked for before the work, in which the last one may be needed after
        # hours.
        require(module)
    settings = _settings(root, out, force, chosen, language, phones, lexicon, seed, steps)
    said = dict(entries)
    marks = {name: fingerprint(text, wavs[name]) for name, text in entries}
    sources = Sources(marks, cache(lambda name: content_of(said[name], wavs[name])))
    with open_folder(out, settings, force, sources) as folder:
        # What is done is found by id and content and never by its place, which each new line of the
        # metadata changes.
        todo = [(n, text) for n, text in entries if not folder.is_done(n, sources)]
        jobs = Jobs(wavs, folder, marks, workers or default_workers(), progress)
        known = {} if lexicon is None else read_variants(Path(lexicon))
        if todo and chosen == "english":
            _align_english(todo, jobs, settings["stress"], known)
        elif todo:
            reader = TokenReader(language, phones, known)
            _align_learned(entries, todo, jobs, reader, steps, seed, device)
        outcomes = [folder.outcomes[name] for name, _ in entries]
        report = summarize(outcomes, problems, settings)
        if share is not None:
            # The report is of the whole, and a share may well have nothing.
            (out / TEXTGRIDS).mkdir(exist_ok=True)
            return Aligned(out / TEXTGRIDS, report, len(todo))
        if report.aligned == 0:
            raise NothingUsable(nothing_aligned(report))
        # A run that had nothing to do leaves the report as it was, with its time of change.
        if todo or not (out / PICTURE).is_file():
            write_report(out, report)
            draw(out / PICTURE, wavs, folder, [o for o in outcomes if not o.problem])
        return Aligned(out / TEXTGRIDS, report, len(todo))


def _refuse_wrong(way: str, language: str, phones: str) -> None:
    if way not in WAYS:
        raise ValueError(f"align must be one of {', '.join(WAYS)}, got {way!r}")
    if phones not in PHONES:
        raise ValueError(f"phones must be one of {', '.join(PHONES)}, got {phones!r}")
    if way == "english" and not is_english(language):
        raise ValueError(
            f"--align english knows English alone, got the language {language!r}: use --align "
            "learned"
        )


def _settings(root, out, force, way, language, phones, lexicon, seed, steps) -> dict:
    """Plain values that make one alignment differ from another."""
    data = None if lexicon is None else _read(Path(lexicon))
    common = {
        "format": _FORMAT,
        "align": way,
        "root": str(root.resolve()),
        "language": language,
        "lexicon_sha256": None if data is None else hashlib.sha256(data).hexdigest(),
    }
    if way == "learned":
        return {**common, "phones": phones, "seed": seed, "steps": steps}
    words = EnglishWords({}, {} if lexicon is None else read_variants(Path(lexicon)))
    stress = "espeak-ng" if has_espeak() else "lexicon" if words.stress else "none"
    # What the folder was begun with goes first: a finished alignment stays valid where espeak-ng is
    # not installed.
    return {**common, "stress": ({} if force else begun_with(out)).get("stress", stress)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpeechError(f"the lexicon {path} cannot be read: {error.strerror}") from error


def _align_english(todo, jobs: Jobs, stress: str, known: dict[str, list[str]]) -> None:
    if stress == "espeak-ng" and not has_espeak():
        raise SpeechError(
            f"{jobs.folder.path} was begun with espeak-ng, which is not there now: install "
            "sniper-tts[espeak], or align everything anew with --force"
        )
    dictionary = read_variants(acoustic_model()[1])
    words = EnglishWords(dictionary, known, espeak=stress == "espeak-ng")
    made = jobs.make(todo, words.words, words.guessed)
    variants = {word: words.variants(word) for job in made for word in job.words}
    # pocketsphinx reads its dictionary from a file.
    with tempfile.TemporaryDirectory(prefix="sniper-align-") as scratch:
        jobs.run(made, _align_one_english, _start_english, variants, Path(scratch))


_aligner: english.EnglishAligner | None = None


def _start_english(variants: dict, scratch: Path) -> None:
    global _aligner  # one decoder a process, and its jobs come as calls of a function
    # One for each process, or they would write their dictionaries over each other's.
    own = Path(tempfile.mkdtemp(dir=scratch))
    _aligner = english.EnglishAligner(variants, own)


def _align_one_english(job: Job) -> Outcome:
    def align(samples: np.ndarray) -> tuple[TimedText, list[str]]:
        assert _aligner is not None
        return _aligner.align(samples, job.words)

    return outcome_of(job, align, english.AUDIO, english.FRAME_SECONDS)


def _align_learned(
    entries, todo, jobs: Jobs, reader: TokenReader, steps: int | None, seed: int, device: str
) -> None:
    """Train on the whole corpus where that is still to be done, and align what is to be aligned."""
    torch_device = learned.pick_device(device)
    total = learned.STEPS if steps is None else steps
    work = jobs.folder.path / "learned"
    work.mkdir(exist_ok=True)
    checkpoint = work / "aligner.pt"
    if learned.load_trained(checkpoint, total) is None:
        _train(entries, jobs, reader, checkpoint, total, seed, torch_device)
    made = jobs.make(todo, reader.spoken)
    jobs.run(made, _align_one_learned, _start_learned, checkpoint, total)


def _train(entries, jobs: Jobs, reader, checkpoint: Path, steps, seed, device) -> None:
    made = jobs.make(entries, reader.spoken)
    mels = checkpoint.parent / "mels"
    mels.mkdir(exist_ok=True)
    done = map_in_processes(
        partial(_write_mel, mels), made, min(jobs.workers, len(made)), _start_one_thread
    )
    examples, names = [], []
    for job, frames in zip(made, jobs.bar(done, "mels", len(made)), strict=True):
        if isinstance(frames, str):
            jobs.folder.add(Outcome(job.id, job.mark, problem=frames))
            continue
        tokens = tuple(token for _, part in job.words for token in part)
        examples.append(learned.Example(tokens, _mel_path(mels, job), frames))
        names.append(f"{job.id} {job.mark} {' '.join(tokens)}")
    if not examples:
        return
    key = hashlib.sha256(repr((names, seed, steps)).encode()).hexdigest()
    training = learned.Training(examples, checkpoint, key, seed=seed, steps=steps, device=device)
    left = steps - training.step
    for _ in jobs.bar(training.run(), "training the aligner", left):
        pass
    shutil.rmtree(mels)  # as large as the recordings, and of no use any more


def _mel_path(mels: Path, job: Job) -> Path:
    # A hash, since an id may hold slashes.
    return mels / f"{hashlib.sha256(f'{job.id} {job.mark}'.encode()).hexdigest()[:32]}.npy"


def _write_mel(mels: Path, job: Job) -> int | str:
    """Frames of an utterance's mel, or what is wrong with it."""
    path = _mel_path(mels, job)
    try:
        # Of a run that was stopped; the name stands for the recording as it is now. What a power
        # cut has left of one is made anew.
        with contextlib.suppress(OSError, ValueError, EOFError):
            return len(np.load(path, mmap_mode="r"))
        samples, _, _ = read_speech(job.wav, learned.AUDIO)
        return learned.write_mel(path, samples)
    except (UtteranceError, OSError) as error:
        return " ".join(str(error).split())
    # Whatever else one file causes must name that file, and not end the work on all others.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"unexpected error in {job.wav}: {reason}"


_trained: learned.LearnedAligner | None = None


def _start_one_thread() -> None:
    # As many processes as cores work already.
    torch.set_num_threads(1)


def _start_learned(checkpoint: Path, steps: int) -> None:
    global _trained
    _start_one_thread()
    _trained = learned.load_trained(checkpoint, steps)


def _align_one_learned(job: Job) -> Outcome:
    def align(samples: np.ndarray) -> tuple[TimedText, list[str]]:
        assert _trained is not None
        return _trained.align(samples, job.words)

    return outcome_of(job, align, learned.AUDIO, learned.FRAME_SECONDS)
