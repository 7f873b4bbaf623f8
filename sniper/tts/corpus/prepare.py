# SPDX-License-Identifier: Apache-2.0
"""A prepared corpus from a folder of recordings, or from speech that is made on the spot."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.build import (
    Plan,
    Prepared,
    build,
    find_finished,
    require_analysis_packages,
)
from sniper.tts.corpus.corpus import (
    Corpus,
    find_textgrids,
    list_utterances,
    read_corpus,
    synthesis_voice,
)
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.corpus.shards import (
    SETTINGS,
    WORK,
    Shard,
    find_shards,
    merge_shards,
    prepare_shard,
    remove_shards,
)
from sniper.tts.corpus.splits import split_sizes
from sniper.tts.corpus.workfile import remove_work
from sniper.tts.errors import FolderInUse, SpeechError
from sniper.tts.locks import only_one
from sniper.tts.processes import default_workers
from sniper.tts.text.espeak import espeak, has_espeak
from sniper.tts.text.lexicon import read_dictionary
from sniper.tts.text.text import EspeakFrontend

DEMO_UTTERANCES = 600
# Each worker holds a whole Python with torch; more of them than this only fill the memory.
MAX_WORKERS = max(64, 4 * default_workers())


def prepare_demo(
    out: str | Path,
    *,
    utterances: int = DEMO_UTTERANCES,
    seed: int = 0,
    voice: str = "en-us",
    features: FeatureConfig | None = None,
    valid: int | None = None,
    test: int | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Make a synthetic corpus with espeak-ng in OUT/corpus and prepare it in OUT.

    Equal arguments give equal bytes. Returns at once where it was finished before.

    Args:
        utterances, seed: sentences of our own grammar.
        voice: an espeak-ng voice.
        features: settings of the analysis; None for FeatureConfig().
        valid, test: held-out utterances; by default 5 % (at most 250) and none.
        workers: processes; by default one per CPU. The result does not depend on it.
        force: make everything anew.

    Raises:
        sniper.tts.errors.SpeechError: one line for the user.
    """
    _refuse_nul(out=out)
    _refuse_workers(workers)
    out = Path(out)
    source = {"kind": "demo", "utterances": utterances, "seed": seed, "voice": voice}
    plan = Plan(source, features or FeatureConfig(), valid, test, seed)

    def make() -> Prepared:
        write_demo_corpus(out / "corpus", utterances, seed, voice, progress)
        corpus = read_corpus(out / "corpus")
        return _build(out / "corpus", corpus, plan, out, None, workers, progress)

    if force:  # what would be refused, before what is finished is removed
        split_sizes(utterances, valid, test)
        espeak().clauses("one", voice)
    return _once(out, plan, force, make)


def prepare_ljspeech(
    root: str | Path,
    out: str | Path,
    *,
    textgrids: str | Path | None = None,
    lexicon: str | Path | None = None,
    speakers: str = "none",
    language: str | None = None,
    phones: str | None = None,
    features: FeatureConfig | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Prepare recordings with alignments (MFA TextGrids or alignments.jsonl).

    Returns at once where it was finished before, from the same files: by size and time of change,
    or, where these differ, by content.

    Args:
        root: folder with metadata.csv and wavs/, or of VCTK or LibriTTS.
        textgrids: folder of the TextGrids, or of an alignment of ours; by default a usual name in
            `root`.
        lexicon: a dictionary in MFA's format, for words that the corpus does not hold.
        speakers: who speaks, in LJSpeech's layout: "none" (says it), "column" (the last one) or
            "folder" (of the id).
        language: of the texts, as espeak-ng's voices are named, for words that no alignment holds;
            by default what our aligner was told, else English.
        phones: of the alignments: "espeak" for espeak-ng's, "characters" for the letters of the
            words; by default what our aligner was told, else those that they hold.
        seed: of the split.
        features, valid, test, workers, force: as in `prepare_demo`.

    Raises:
        sniper.tts.errors.SpeechError: one line for the user; more where no utterance is usable.
    """
    _refuse_nul(root=root, out=out, textgrids=textgrids, lexicon=lexicon)
    _refuse_workers(workers)
    _refuse_language(language, phones)
    root, out = Path(root), Path(out)
    lexicon_sha256 = None if lexicon is None else _sha256(Path(lexicon))
    plan = _plan(root, textgrids, speakers, features)
    plan = replace(plan, valid=valid, test=test, seed=seed, lexicon_sha256=lexicon_sha256)

    def read() -> Corpus:
        there = None if textgrids is None else Path(textgrids)
        return read_corpus(root, there, speakers, language, phones)

    def make() -> Prepared:
        return _build(root, read(), plan, out, lexicon, workers, progress)

    if force:  # what would be refused, before what is finished is removed
        require_analysis_packages()
        count = len(read().utterances)
        if count:
            split_sizes(count, valid, test)
        if lexicon is not None:
            read_dictionary(Path(lexicon))
    return _once(out, plan, force, make, read)


def prepare_ljspeech_shard(
    root: str | Path,
    out: str | Path,
    shard: Shard,
    *,
    aligned: bool = False,
    textgrids: str | Path | None = None,
    speakers: str = "none",
    features: FeatureConfig | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> int:
    """Prepare one of several shares, in OUT/shards; `merge_ljspeech_shards` puts them together.

    Args:
        shard: which one. Every share needs the same corpus and arguments.
        aligned: the share's own TextGrids lie beside it, and will lie in OUT/alignment.
        force: make this share anew.
        root, textgrids, speakers, features, workers: as in `prepare_ljspeech`.

    Returns:
        How many utterances are in it.

    Raises:
        sniper.tts.errors.SpeechError: one line for the user.
    """
    _refuse_nul(root=root, out=out, textgrids=textgrids)
    _refuse_workers(workers)
    require_analysis_packages()
    root, out = Path(root), Path(out)
    plan, ids, read = _sharded(root, out, aligned, textgrids, speakers, features)
    if force:
        read(shard)  # what would be refused, before what is there is removed
        remove_work(shard.folder(out) / WORK)
        (shard.folder(out) / SETTINGS).unlink(missing_ok=True)
    count = workers or default_workers()
    return prepare_shard(out, plan, shard, ids, read, count, progress)


def merge_ljspeech_shards(
    root: str | Path,
    out: str | Path,
    *,
    aligned: bool = False,
    textgrids: str | Path | None = None,
    lexicon: str | Path | None = None,
    speakers: str = "none",
    language: str | None = None,
    phones: str | None = None,
    features: FeatureConfig | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Prepared:
    """Put the shares in OUT/shards together: what `prepare_ljspeech` makes of the whole, in the
    same bits. The shares are removed.

    Args:
        aligned: the shares were aligned on the way; OUT/alignment has their TextGrids by now.
        root, textgrids, lexicon, speakers, language, phones, features, valid, test, seed: as in
            `prepare_ljspeech`.

    Raises:
        sniper.tts.errors.SpeechError: shares that are missing, unfinished, or of other settings or
            recordings; as `prepare_ljspeech` does.
    """
    _refuse_nul(root=root, out=out, textgrids=textgrids, lexicon=lexicon)
    _refuse_language(language, phones)
    root, out = Path(root), Path(out)
    find_shards(out)  # whatever else there is to say, this comes first
    if aligned:
        textgrids = final_textgrids(out)
    plan, ids, read = _sharded(root, out, aligned, textgrids, speakers, features)
    digest = None if lexicon is None else _sha256(Path(lexicon))
    plan = replace(plan, valid=valid, test=test, seed=seed, lexicon_sha256=digest)

    def whole() -> Corpus:
        there = None if textgrids is None else Path(textgrids)
        return read_corpus(root, there, speakers, language, phones)

    def make(put_together: Callable[..., Prepared]) -> Prepared:
        corpus = whole()
        words = {} if lexicon is None else read_dictionary(Path(lexicon))
        frontend, speech = _spoken_by(root, corpus)
        return put_together(corpus, frontend, words, speech)

    merged = _once(out, plan, False, lambda: merge_shards(out, plan, ids, read, make), whole)
    remove_shards(out)
    return merged


def final_textgrids(out: Path) -> Path:
    """Where the TextGrids of shares that are aligned on the way lie in the end."""
    return (out / "alignment").resolve() / "TextGrid"


def _sharded(
    root: Path,
    out: Path,
    aligned: bool,
    textgrids: str | Path | None,
    speakers: str,
    features: FeatureConfig | None,
) -> tuple[Plan, list[str], Callable[[Shard], Corpus]]:
    """What makes the shares, the ids of all utterances, and the corpus as a share has it."""
    if aligned:
        textgrids = final_textgrids(out)
    plan = _plan(root, textgrids, speakers, features)
    ids = [line.id for line in list_utterances(root, speakers).lines]

    def read(shard: Shard) -> Corpus:
        own = shard.folder(out) / "alignment" / "TextGrid"
        there = own if aligned else textgrids
        return read_corpus(root, None if there is None else Path(there), speakers)

    return plan, ids, read


def _plan(
    root: Path, textgrids: str | Path | None, speakers: str, features: FeatureConfig | None
) -> Plan:
    """What the analysis of recordings depends on."""
    listing, metadata = list_utterances(root, speakers), root / "metadata.csv"
    grids = None if textgrids is None else str(find_textgrids(root, Path(textgrids)).resolve())
    source = {
        "kind": "ljspeech",
        "root": str(root.resolve()),
        "textgrids": grids,
        "metadata_sha256": _sha256(metadata) if metadata.is_file() else listing.sha256(),
    }
    if speakers != "none":  # absent otherwise, as in corpora from before there was a choice
        source["speakers"] = speakers
    return Plan(source, features or FeatureConfig())


def _refuse_nul(**paths: str | Path | None) -> None:
    """Refuse a NUL in a path, for which Python's own message would not say in which one."""
    for name, path in paths.items():
        if path is not None and "\0" in str(path):
            raise SpeechError(f"{name}: a path holds no NUL, got {str(path)!r}")


def _refuse_workers(workers: int | None) -> None:
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise SpeechError(f"workers: expected 1 to {MAX_WORKERS}, got {workers}")


def _refuse_language(language: str | None, phones: str | None) -> None:
    """Refuse a language that could not be spoken, as far as this machine knows."""
    if language is not None and phones != "characters" and has_espeak():
        espeak().clauses("one", language)


def _once(
    out: Path,
    plan: Plan,
    force: bool,
    make: Callable[[], Prepared],
    read: Callable[[], Corpus] | None = None,
) -> Prepared:
    """What is finished in `out`, or what `make` makes there, one process at a time.

    Args:
        read: gives the corpus that a finished preparation must have been made from; None: any.
    """
    finished = None if force else find_finished(out, plan, read=read)
    if finished is not None:
        return finished  # also where nothing can be written
    require_analysis_packages()
    # Remembered, so that a preparation which fails leaves no empty folder behind.
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(out):
            # The process that held the lock may have finished this corpus.
            return find_finished(out, plan, force, read) or make()
    except FolderInUse as error:
        raise FolderInUse(f"{error}; wait for it, or choose another --out") from None
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


def _build(root, corpus, plan, out, lexicon, workers, progress) -> Prepared:
    words = {} if lexicon is None else read_dictionary(Path(lexicon))
    frontend, speech = _spoken_by(root, corpus)
    return build(
        corpus,
        plan,
        out,
        frontend=frontend,
        lexicon=words,
        speech=speech,
        workers=workers or default_workers(),
        progress=progress,
    )


def _spoken_by(root: Path, corpus: Corpus) -> tuple[EspeakFrontend | None, str]:
    """How its text is read at inference, and what `CorpusInfo.speech` says."""
    voice = None if corpus.has_textgrids else synthesis_voice(root)
    if voice is None:
        return None, f"recordings in {root.name}"
    return EspeakFrontend(voice), "synthetic speech by espeak-ng"


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from error
