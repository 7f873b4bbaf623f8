# SPDX-License-Identifier: Apache-2.0
"""A prepared corpus from a folder of recordings, or from speech that is made on the spot."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.build import (
    Plan,
    Prepared,
    build,
    find_finished,
    require_analysis_packages,
)
from sniper.tts.corpus.corpus import list_utterances, read_corpus, synthesis_voice
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.errors import SpeechError
from sniper.tts.processes import default_workers
from sniper.tts.text.lexicon import read_dictionary
from sniper.tts.text.text import EspeakFrontend

DEMO_UTTERANCES = 600


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
    out = Path(out)
    source = {"kind": "demo", "utterances": utterances, "seed": seed, "voice": voice}
    plan = Plan(source, features or FeatureConfig(), valid, test, seed)
    finished = find_finished(out, plan, force)
    if finished is not None:
        return finished
    require_analysis_packages()
    write_demo_corpus(out / "corpus", utterances, seed, voice, progress)
    return _build(out / "corpus", None, plan, out, None, workers, progress, "none")


def prepare_ljspeech(
    root: str | Path,
    out: str | Path,
    *,
    textgrids: str | Path | None = None,
    lexicon: str | Path | None = None,
    speakers: str = "none",
    features: FeatureConfig | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Prepare recordings with alignments (MFA TextGrids or alignments.jsonl).

    Args:
        root: folder with metadata.csv and wavs/, or of VCTK or LibriTTS.
        textgrids: folder of the TextGrids; by default a usual name in `root`.
        lexicon: a dictionary in MFA's format, for words that the corpus does not hold.
        speakers: who speaks, in LJSpeech's layout: "none" (says it), "column" (the last one) or
            "folder" (of the id).
        seed: of the split.
        features, valid, test, workers, force: as in `prepare_demo`.

    Raises:
        sniper.tts.errors.SpeechError: one line for the user; more where no utterance is usable.
    """
    root, out = Path(root), Path(out)
    listing, metadata = list_utterances(root, speakers), root / "metadata.csv"
    source = {
        "kind": "ljspeech",
        "root": str(root.resolve()),
        "textgrids": None if textgrids is None else str(textgrids),
        "metadata_sha256": _sha256(metadata) if metadata.is_file() else listing.sha256(),
    }
    if speakers != "none":  # absent otherwise, as in corpora from before there was a choice
        source["speakers"] = speakers
    lexicon_sha256 = None if lexicon is None else _sha256(Path(lexicon))
    plan = Plan(source, features or FeatureConfig(), valid, test, seed, lexicon_sha256)
    finished = find_finished(out, plan, force)
    if finished is not None:
        return finished
    return _build(root, textgrids, plan, out, lexicon, workers, progress, speakers)


def _build(root, textgrids, plan, out, lexicon, workers, progress, speakers) -> Prepared:
    words = {} if lexicon is None else read_dictionary(Path(lexicon))
    corpus = read_corpus(root, None if textgrids is None else Path(textgrids), speakers)
    voice = None if corpus.has_textgrids else synthesis_voice(root)
    return build(
        corpus,
        plan,
        out,
        frontend=None if voice is None else EspeakFrontend(voice),
        lexicon=words,
        speech=f"recordings in {root.name}" if voice is None else "synthetic speech by espeak-ng",
        workers=workers or default_workers(),
        progress=progress,
    )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from error
