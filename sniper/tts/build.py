# SPDX-License-Identifier: Apache-2.0
"""From a corpus to feature files: resumable, and independent of how many processes work on it.

An output folder holds `train.safetensors`, `valid.safetensors`, `test.safetensors` and, written
last, `corpus.json`; while work goes on, `prepare.work`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.alignment import PAUSE
from sniper.tts.analyze import analyze_all, pause_share
from sniper.tts.audio import FeatureConfig
from sniper.tts.corpus import Corpus
from sniper.tts.dataset import SPLITS, CorpusInfo
from sniper.tts.errors import NothingUsable, SpeechError, progress_bar, require
from sniper.tts.features import compute_statistics
from sniper.tts.lexicon import harvest
from sniper.tts.store import TensorStream, write_json, write_tensors
from sniper.tts.text import Frontend, LexiconFrontend, Vocabulary
from sniper.tts.workfile import Record, WorkFile

FORMAT_VERSION = 1
_CORPUS, _WORK = "corpus.json", "prepare.work"


@dataclass(frozen=True)
class Prepared:
    """A finished preparation.

    Args:
        folder: of the feature files.
        counts: utterances per split.
        seconds: of audio in all splits.
        problems: (id or line, reason) of what was left out.
        fresh: False where everything was there already.
    """

    folder: Path
    counts: dict[str, int]
    seconds: float
    problems: list[tuple[str, str]]
    fresh: bool


@dataclass(frozen=True)
class Plan:
    """What makes one preparation differ from another.

    Args:
        corpus: where the speech comes from, as plain values.
        features: settings of the analysis.
        valid, test: held-out utterances; None leaves the number to `split_sizes`.
        seed: of the split.
        lexicon_sha256: of the user's dictionary file.
    """

    corpus: dict
    features: FeatureConfig
    valid: int | None = None
    test: int | None = None
    seed: int = 0
    lexicon_sha256: str | None = None

    def settings(self) -> dict:
        """Plain values that must agree before a finished preparation is taken for this one."""
        split = {"valid": self.valid, "test": self.test, "seed": self.seed}
        return {**self.analysis_settings(), "lexicon_sha256": self.lexicon_sha256, "split": split}

    def analysis_settings(self) -> dict:
        """Those of `settings` that must agree before unfinished work is continued."""
        return {
            "format_version": FORMAT_VERSION,
            "corpus": self.corpus,
            "features": self.features.to_json(),
        }


def find_finished(out: Path, plan: Plan, force: bool = False) -> Prepared | None:
    """Look for an earlier preparation in `out`.

    Args:
        force: remove whatever is there instead.

    Returns:
        The finished one; None where there is none or it is not finished.

    Raises:
        SpeechError: it was made with other settings (the differences are listed).
    """
    path = out / _CORPUS
    if force:
        # corpus.json first: without it nothing counts as finished.
        for name in (_CORPUS, *(f"{split}.safetensors" for split in SPLITS), _WORK):
            (out / name).unlink(missing_ok=True)
        return None
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        refuse_other_settings(out, found["settings"], plan.settings())
        problems = [(where, reason) for where, reason in found["problems"]]
        prepared = Prepared(out, found["counts"], found["seconds"], problems, fresh=False)
    except (ValueError, KeyError, TypeError) as error:
        raise SpeechError(f"{path} is damaged; --force makes everything anew") from error
    if any(not (out / f"{split}.safetensors").is_file() for split in prepared.counts):
        raise SpeechError(f"{out} lacks a file that {path} names; --force makes everything anew")
    return prepared


def refuse_other_settings(out: Path, there: dict, now: dict) -> None:
    """Raise SpeechError with the differences, one after the other, where there are any."""
    flat_there, flat_now = _flatten(there), _flatten(now)
    names = sorted(
        name
        for name in flat_there.keys() | flat_now.keys()
        if flat_there.get(name) != flat_now.get(name)
    )
    if names:
        differences = "; ".join(
            f"{name} is {flat_there.get(name)!r} there, {flat_now.get(name)!r} now"
            for name in names
        )
        raise SpeechError(
            f"{out} was prepared with other settings: {differences}. Choose another --out, or make "
            "it anew with --force"
        )


def _flatten(data: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def build(
    corpus: Corpus,
    plan: Plan,
    out: Path,
    *,
    frontend: Frontend | None,
    lexicon: dict[str, str],
    speech: str,
    workers: int,
    progress: bool = True,
) -> Prepared:
    """Analyse a corpus into `out`; continues what an interrupted run has left there.

    Args:
        frontend: how text is read at inference; None makes one from the pronunciations heard.
        lexicon: pronunciations that go before those heard.
        speech: what `CorpusInfo.speech` says.
        workers: processes; the files do not depend on their number.

    Raises:
        NothingUsable: there is no usable utterance.
        SpeechError: other settings in `out`, or a split that is too large.
    """
    for module in ("soundfile", "soxr", "pyworld", "tqdm"):
        require(module)
    if corpus.has_textgrids:
        require("praatio.textgrid")
    out.mkdir(parents=True, exist_ok=True)
    work = WorkFile(out / _WORK, plan.analysis_settings())
    try:
        refuse_other_settings(out, work.settings, plan.analysis_settings())
        if corpus.utterances:
            # Before the long part, although utterances may yet drop out.
            split_sizes(len(corpus.utterances), plan.valid, plan.test)
        _analyze_rest(corpus, plan.features, work, workers, progress)
        prepared = _finish(corpus, plan, out, work, frontend, lexicon, speech)
    except NothingUsable:
        # What was wrong will be mended before the next run, which must look again.
        work.path.unlink()
        raise
    finally:
        work.close()
    work.path.unlink()
    return prepared


def _analyze_rest(
    corpus: Corpus, config: FeatureConfig, work: WorkFile, workers: int, progress: bool
) -> None:
    rest = corpus.utterances[len(work) :]
    records = analyze_all(rest, config, workers)
    total = len(corpus.utterances)
    bar = progress_bar(records, "analysing", total, len(work), show=progress)
    for record in bar:
        work.append(record)


def split_sizes(usable: int, valid: int | None, test: int | None) -> dict[str, int]:
    """Utterances per held-out split: what was asked for, else 5 % but at most ESPnet's 250 each.

    Raises:
        SpeechError: nothing would remain for training.
    """
    default = min(250, max(1, usable // 20)) if usable > 1 else 0
    sizes = {"valid": default if valid is None else valid, "test": 0 if test is None else test}
    if sum(sizes.values()) >= usable:
        raise SpeechError(
            f"{sum(sizes.values())} held-out utterances of {usable} usable ones leave nothing to "
            "train on: lower --valid or --test"
        )
    return sizes


def _split(ids: Sequence[str], sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Positions per split. Ranked by a hash, so that one utterance more or less moves no other."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{ids[index]}".encode()).digest()

    ranked = sorted(range(len(ids)), key=rank)
    valid, test = sizes["valid"], sizes["test"]
    parts = {"valid": ranked[:valid], "test": ranked[valid : valid + test]}
    parts["train"] = ranked[valid + test :]
    return {name: sorted(parts[name]) for name in SPLITS if parts[name] or name != "test"}


def _finish(
    corpus: Corpus,
    plan: Plan,
    out: Path,
    work: WorkFile,
    frontend: Frontend | None,
    lexicon: dict[str, str],
    speech: str,
) -> Prepared:
    problems = list(corpus.problems)
    usable: list[_Entry] = []
    pronunciations: list[tuple[str, str]] = []
    for position, record in enumerate(work):
        if record.problem:
            problems.append((record.id, record.problem))
            continue
        pronunciations += record.pronunciations
        usable.append(_Entry(position, record.id, record.text, record.phones, record.n_frames))
    if not usable:
        shown = "".join(f"\n  {where}: {reason}" for where, reason in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise NothingUsable(f"no usable utterance{':' if problems else ''}{shown}{more}")
    vocabulary = Vocabulary.from_phones(phone for entry in usable for phone in entry.phones)
    if frontend is None:
        known = {
            word: phones
            for word, phones in lexicon.items()
            if all(phone in vocabulary for phone in phones.split())
        }
        pauses = pause_share([entry.phones for entry in usable], PAUSE)
        frontend = LexiconFrontend({**harvest(pronunciations), **known}, *pauses)
    sizes = split_sizes(len(usable), plan.valid, plan.test)
    positions = _split([entry.id for entry in usable], sizes, plan.seed)
    parts = {name: [usable[i] for i in members] for name, members in positions.items()}
    statistics = compute_statistics(record.features for record in _read(work, parts["train"]))
    info = CorpusInfo(vocabulary, plan.features, statistics, frontend, speech)
    for name, entries in parts.items():
        _write_split(out / f"{name}.safetensors", entries, work, vocabulary, plan.features.n_mels)
    frames = sum(entry.n_frames for entry in usable)
    counts = {name: len(entries) for name, entries in parts.items()}
    seconds = frames * plan.features.hop_length / plan.features.sample_rate
    content = {"counts": counts, "seconds": seconds, "problems": problems, **info.to_json()}
    write_json(out / _CORPUS, {"settings": plan.settings(), **content})
    return Prepared(out, counts, seconds, problems, fresh=True)


@dataclass(frozen=True)
class _Entry:
    position: int
    id: str
    text: str
    phones: tuple[str, ...]
    n_frames: int


def _read(work: WorkFile, entries: Sequence[_Entry]) -> Iterator[Record]:
    for entry in entries:
        yield work.read(entry.position)


def _write_split(
    path: Path, entries: Sequence[_Entry], work: WorkFile, vocabulary: Vocabulary, n_mels: int
) -> None:
    frames = np.cumsum([0, *(entry.n_frames for entry in entries)])
    tokens = np.cumsum([0, *(len(entry.phones) for entry in entries)])
    # One pass for the small arrays, one for the mel: only the mel is large.
    small = [
        (r.features.durations, r.features.pitch, r.features.energy) for r in _read(work, entries)
    ]
    durations, pitch, energy = zip(*small, strict=True) if small else ((), (), ())
    ids = (vocabulary.ids(entry.phones) for entry in entries)
    mel = (record.features.mel for record in _read(work, entries))
    per_token, offsets = (int(tokens[-1]),), (len(entries) + 1,)
    tensors = {
        "mel_offsets": TensorStream(np.int64, offsets, [frames]),
        "token_offsets": TensorStream(np.int64, offsets, [tokens]),
        "mel": TensorStream(np.float32, (int(frames[-1]), n_mels), mel),
        "pitch": TensorStream(np.float32, per_token, pitch),
        "energy": TensorStream(np.float32, per_token, energy),
        "tokens": TensorStream(np.int32, per_token, ids),
        "durations": TensorStream(np.int32, per_token, durations),
    }
    metadata = {
        "ids": json.dumps([entry.id for entry in entries], ensure_ascii=False),
        "texts": json.dumps([entry.text for entry in entries], ensure_ascii=False),
    }
    write_tensors(path, tensors, metadata)
