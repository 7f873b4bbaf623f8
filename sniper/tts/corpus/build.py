# SPDX-License-Identifier: Apache-2.0
"""From a corpus to feature files: resumable, and independent of how many processes work on it.

An output folder holds `train.safetensors`, `valid.safetensors`, `test.safetensors` and, written
last, `corpus.json`; while work goes on, `prepare.work`.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.analyze import analyze_all, pause_share
from sniper.tts.corpus.corpus import Corpus, find_textgrids, fingerprint
from sniper.tts.corpus.dataset import CORPUS, SPLITS, CorpusInfo, read_corpus_json
from sniper.tts.corpus.features import Prosody, compute_prosody, compute_statistics
from sniper.tts.corpus.health import Census
from sniper.tts.corpus.sources import content_of, entry_of, refuse_other_sources, state_of
from sniper.tts.corpus.splits import Entry, read_entries, split, split_sizes, write_split
from sniper.tts.corpus.verify import damaged
from sniper.tts.corpus.workfile import Records, WorkFile, features_of, remove_work
from sniper.tts.errors import (
    NothingUsable,
    OtherSettings,
    SpeechError,
    progress_bar,
    require,
)
from sniper.tts.files import sealed, write_json
from sniper.tts.text.lexicon import harvest
from sniper.tts.text.new_words import left_out, speakable
from sniper.tts.text.text import PAUSE, Frontend, LexiconFrontend, Vocabulary

FORMAT_VERSION = 1
_WORK = "prepare.work"
_TEXTGRIDS = "corpus.textgrids"
_PLACES = ("root", "textgrids")


@dataclass(frozen=True)
class Prepared:
    """A finished preparation.

    Args:
        folder: of the feature files.
        counts: utterances per split.
        seconds: of audio in all splits.
        problems: (id or line, reason) of what was left out.
        fresh: False where everything was there already.
        health: what is unusual in the utterances that were taken, a line each.
        summary: lengths, resampling and range of F0, in a line; "" from earlier versions.
    """

    folder: Path
    counts: dict[str, int]
    seconds: float
    problems: list[tuple[str, str]]
    fresh: bool
    health: tuple[str, ...] = ()
    summary: str = ""


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
        return {
            **self.analysis_settings(),
            "corpus": self.corpus,
            "lexicon_sha256": self.lexicon_sha256,
            "split": split,
        }

    def analysis_settings(self) -> dict:
        """Those of `settings` that must agree before unfinished work is continued. Its utterances
        count by their texts and files, so the list of them may change.
        """
        # Without the checksum of metadata.csv, so that after a correction in it one utterance is
        # analysed again and not all of them.
        corpus = {k: v for k, v in self.corpus.items() if k != "metadata_sha256"}
        return {
            "format_version": FORMAT_VERSION,
            "corpus": corpus,
            "features": self.features.to_json(),
        }


def find_finished(
    out: Path, plan: Plan, force: bool = False, read: Callable[[], Corpus] | None = None
) -> Prepared | None:
    """Look for an earlier preparation in `out`.

    Args:
        force: remove whatever is there instead.
        read: gives the corpus as it is now; None: it need not be what the preparation was made
            from.

    Returns:
        The finished one; None where there is none or it is not finished.

    Raises:
        SpeechError: it was made with other settings or from other files (the differences are
            listed).
    """
    path = out / CORPUS
    if force:
        # corpus.json first: without it nothing counts as finished.
        for name in (CORPUS, *(f"{split}.safetensors" for split in SPLITS)):
            (out / name).unlink(missing_ok=True)
        remove_work(out / _WORK)
        return None
    if path.is_dir() or (path.is_symlink() and not path.exists()):
        # Refused now, since corpus.json could not be written after hours of analysis.
        raise damaged(path, "it is a folder, or a link to nowhere")
    if not path.is_file():
        return None
    try:
        found = read_corpus_json(path)
        there, now = found["settings"], plan.settings()
        # A corpus that was moved or copied: what is in its files counts, where that is known.
        moved = read is not None and found.get("sources") and _differ_in_place(there, now)
        refuse_other_settings(out, now if moved else there, now)
        if read is not None:
            corpus = read()
            places = "; ".join(_differences(there, now).values()) if moved else ""
            refuse_other_sources(out, found.get("sources"), corpus, places)
            _refuse_other_language(out, found["frontend"], corpus)
        prepared = _prepared(out, found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, " ".join(str(error).split())[:200]) from error
    if any(not (out / f"{split}.safetensors").is_file() for split in prepared.counts):
        raise SpeechError(f"{out} lacks a file that {path} names; --force makes everything anew")
    # Of a process that was killed when all was written.
    with contextlib.suppress(OSError):
        remove_work(out / _WORK)
    return prepared


def _prepared(out: Path, found: dict) -> Prepared:
    """What corpus.json says; any of the errors of wrong contents where it says something else."""
    counts, seconds = found["counts"], found["seconds"]
    if not all(name in SPLITS and type(count) is int for name, count in counts.items()):
        raise ValueError(f"counts cannot be {counts!r:.60}")
    if type(seconds) not in (int, float) or not math.isfinite(seconds):
        raise ValueError(f"seconds cannot be {seconds!r:.60}")
    problems = [(str(where), str(reason)) for where, reason in found["problems"]]
    health = tuple(map(str, found.get("health", ())))
    return Prepared(out, counts, seconds, problems, False, health, str(found.get("summary", "")))


def refuse_other_settings(out: Path, there: dict, now: dict) -> None:
    """Raise OtherSettings with the differences, one after the other, where there are any."""
    if differences := _differences(there, now):
        only_words = [*differences] == ["lexicon_sha256"] and now["lexicon_sha256"] is not None
        cheaper = ", or add its words with python -m sniper.prepare lexicon" if only_words else ""
        raise OtherSettings(
            f"{out} was prepared with other settings: {'; '.join(differences.values())}. Choose "
            f"another --out, or make it anew with --force{cheaper}"
        )


def _differences(there: dict, now: dict) -> dict[str, str]:
    """What two settings say otherwise, by the name that they say it of."""
    flat_there, flat_now = _flatten(there), _flatten(now)
    if _same_textgrids(flat_there, flat_now):
        flat_there[_TEXTGRIDS] = flat_now[_TEXTGRIDS]
    return {
        name: f"{name} is {flat_there.get(name)!r} there, {flat_now.get(name)!r} now"
        for name in sorted(flat_there.keys() | flat_now.keys())
        if flat_there.get(name) != flat_now.get(name)
    }


def _differ_in_place(there: dict, now: dict) -> bool:
    """Whether settings differ in where the corpus and its TextGrids lie, and in nothing else."""
    places = {name: now["corpus"][name] for name in _PLACES if name in now["corpus"]}
    return there != now and {**there, "corpus": {**there["corpus"], **places}} == now


def _same_textgrids(there: dict, now: dict) -> bool:
    """Whether two preparations have one folder of TextGrids: earlier versions kept its name as it
    was given.
    """
    names = [each.get(_TEXTGRIDS) for each in (there, now)]
    if None in names:
        return False
    root = Path(str(now.get("corpus.root")))
    one, other = (find_textgrids(root, Path(str(name))).resolve() for name in names)
    return one == other


def _refuse_other_language(out: Path, there: dict, corpus: Corpus) -> None:
    """Whose phonemes they are is said by what lies beside the TextGrids, or by the user."""
    if there["kind"] == LexiconFrontend.kind:
        known = {"language": there.get("language"), "characters": there.get("characters", False)}
        now = {"language": corpus.language, "characters": corpus.characters}
        refuse_other_settings(out, known, now)


def _flatten(data: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def require_analysis_packages() -> None:
    """Raise MissingDependency before any work where a package for it is absent."""
    for module in ("soundfile", "soxr", "pyworld", "tqdm"):
        require(module)


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
    require_analysis_packages()
    if corpus.has_textgrids:
        require("praatio.textgrid")
    out.mkdir(parents=True, exist_ok=True)
    work = WorkFile(out / _WORK, plan.analysis_settings())
    try:
        begun = work.settings.get("corpus")
        if isinstance(begun, dict):
            begun.pop("metadata_sha256", None)  # in work of earlier versions
        there, now = work.settings, plan.analysis_settings()
        # A corpus that was moved or copied since: most of what was done is of its files.
        moved = "corpus" in there and _differ_in_place(there, now) and _is_of(work, corpus)
        refuse_other_settings(out, now if moved else there, now)
        if corpus.utterances:
            # A split that is too large is refused before the long analysis, although more
            # utterances may drop out in it.
            split_sizes(len(corpus.utterances), plan.valid, plan.test)
        # Taken before the analysis: a file that changes meanwhile is another at the next look.
        states = {u.id: state_of(u) for u in corpus.utterances}
        positions = analyze_rest(corpus, plan.features, work, workers, progress, moved)
        prepared = finish(corpus, plan, out, work, positions, states, frontend, lexicon, speech)
    except NothingUsable:
        # What was wrong will be mended before the next run, which must look again.
        work.remove()
        raise
    finally:
        work.close()
    work.remove()
    return prepared


def analyze_rest(
    corpus: Corpus,
    config: FeatureConfig,
    work: WorkFile,
    workers: int,
    progress: bool,
    moved: bool = False,
) -> list[int]:
    """Analyses what `work` does not hold yet; gives the positions in it of the corpus' utterances,
    in its order.

    Work counts by id and fingerprint, never by its number: files may come, go or change in between.

    Args:
        moved: the corpus lies elsewhere now: work counts by what is in the files, too.
    """
    # Taken before the analysis: a file that changes meanwhile is looked at again.
    keys = {u.id: fingerprint(u) for u in corpus.utterances}
    held, contents = {}, {}
    for index, record in enumerate(work):
        held[record.id, record.fingerprint] = index
        contents.setdefault(record.id, {})[record.text, record.content] = index
    rest = []
    for utterance in corpus.utterances:
        key = utterance.id, keys[utterance.id]
        if key in held:
            continue
        there = contents.get(utterance.id) if moved else None
        same = there and there.get((utterance.text, content_of(utterance)))
        if same is None:
            rest.append(utterance)
        else:
            held[key] = same
    # A generator: each record is on disk before the next one comes, and a kill loses one at most.
    records = analyze_all(rest, config, workers)
    total = len(corpus.utterances)
    for record in progress_bar(records, "analysing", total, total - len(rest), show=progress):
        held[record.id, keys[record.id]] = len(work)
        work.append(replace(record, fingerprint=keys[record.id]))
    return [held[u.id, keys[u.id]] for u in corpus.utterances]


def _is_of(work: WorkFile, corpus: Corpus) -> bool:
    """Whether most of what was analysed is there unchanged, wherever it lies."""
    known = {u.id: u for u in corpus.utterances}
    records = [record for record in work if record.content]
    same = sum(r.id in known and r.content == content_of(known[r.id]) for r in records)
    return 2 * same > len(records)


def _speakers(entries: list[Entry], work: Records) -> dict[str, Prosody]:
    """Pitch and energy of each speaker of the training set; empty where nobody has a name."""
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.speaker, []).append(entry)
    if set(by_name) == {""}:
        return {}
    return {
        name: compute_prosody(features_of(r) for r in read_entries(work, by_name[name]))
        # Sorted, so that a speaker's number does not depend on the order of the utterances.
        for name in sorted(by_name)
    }


def finish(
    corpus: Corpus,
    plan: Plan,
    out: Path,
    work: Records,
    positions: list[int],
    states: dict[str, str],
    frontend: Frontend | None,
    lexicon: dict[str, str],
    speech: str,
) -> Prepared:
    """Writes the files of a corpus whose utterances are all in `work`, at `positions`."""
    problems = list(corpus.problems)
    usable: list[Entry] = []
    census = Census(plan.features)
    speaker_of = {u.id: u.speaker for u in corpus.utterances}
    pronunciations: list[tuple[str, str]] = []
    sources = {}
    for position in positions:
        record = work.read(position)
        sources[record.id] = entry_of(states[record.id], record.content)
        if record.problem:
            problems.append((record.id, record.problem))
            continue
        who = speaker_of[record.id]
        census.add(record, who)
        pronunciations += record.pronunciations
        entry = Entry(position, record.id, record.text, record.phones, record.n_frames, who)
        usable.append(entry)
    if not usable:
        shown = "".join(f"\n  {where}: {reason}" for where, reason in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        where = f"{root}: " if (root := plan.corpus.get("root")) else ""
        raise NothingUsable(f"{where}no usable utterance{':' if problems else ''}{shown}{more}")
    vocabulary = Vocabulary.from_phones(phone for entry in usable for phone in entry.phones)
    missing: dict[str, list[str]] = {}
    if frontend is None:
        # A word with a phone that nobody spoke cannot be spoken by the model either.
        known, missing = speakable(lexicon, vocabulary)
        pauses = pause_share([entry.phones for entry in usable], PAUSE)
        heard = {**harvest(pronunciations), **known}
        frontend = LexiconFrontend(heard, *pauses, corpus.language, corpus.characters)
    sizes = split_sizes(len(usable), plan.valid, plan.test)
    who = [entry.speaker for entry in usable]
    members_of = split(
        [entry.id for entry in usable],
        sizes,
        plan.seed,
        [entry.n_frames for entry in usable],
        who if any(who) else None,
    )
    parts = {name: [usable[i] for i in members] for name, members in members_of.items()}
    # Of the training set alone: what is held out must not have been seen.
    statistics = compute_statistics(
        features_of(record) for record in read_entries(work, parts["train"])
    )
    speakers = _speakers(parts["train"], work)
    info = CorpusInfo(vocabulary, plan.features, statistics, frontend, speech, speakers)
    for name, entries in parts.items():
        path, names = out / f"{name}.safetensors", list(speakers)
        write_split(path, entries, work, vocabulary, plan.features.n_mels, names)
    frames = sum(entry.n_frames for entry in usable)
    counts = {name: len(entries) for name, entries in parts.items()}
    seconds = frames * plan.features.hop_length / plan.features.sample_rate
    health, summary = census.lines(), census.summary()
    if missing:
        summary += f"; of the lexicon's words {left_out(missing)}"
    content = {
        "counts": counts,
        "seconds": seconds,
        "problems": problems,
        "health": health,
        "summary": summary,
        **info.to_json(),
    }
    # The demo's recordings are ours, and equal arguments give equal bytes, without times.
    if plan.corpus.get("kind") != "demo":
        content["sources"] = sources
    files = [f"{name}.safetensors" for name in parts]
    whole = sealed({"settings": plan.settings(), **content}, CORPUS, out, files)
    # Last of all. Whoever finds it knows that the rest is complete.
    write_json(out / CORPUS, whole)
    return Prepared(out, counts, seconds, problems, True, tuple(health), summary)
