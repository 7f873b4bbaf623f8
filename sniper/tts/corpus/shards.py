# SPDX-License-Identifier: Apache-2.0
"""A preparation dealt out to several processes or machines, and put together.

OUT/shards/2-of-8/prepare.work   finished utterances of the second of eight shares
OUT/shards/2-of-8/shard.json     what they were made with
OUT/shards/2-of-8/alignment/     where the share was aligned on the way

What is put together has the bits of what is prepared at once.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sniper.tts.corpus.build import (
    Plan,
    Prepared,
    analyze_rest,
    finish,
    refuse_other_settings,
)
from sniper.tts.corpus.corpus import Corpus, Utterance, fingerprint
from sniper.tts.corpus.dataset import CORPUS
from sniper.tts.corpus.sources import content_of, state_of
from sniper.tts.corpus.workfile import Record, WorkFile
from sniper.tts.errors import SpeechError
from sniper.tts.files import write_json
from sniper.tts.locks import only_one

SHARDS, WORK, SETTINGS = "shards", "prepare.work", "shard.json"


@dataclass(frozen=True)
class Shard:
    """One share of several, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of "2/8".

        Raises:
            ValueError: something else, or a number above the count.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"expected I/N with 1 <= I <= N, such as 2/8, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def folder(self, out: Path) -> Path:
        """Where its work lies."""
        return out / SHARDS / f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def prepare_shard(
    out: Path,
    plan: Plan,
    shard: Shard,
    ids: list[str],
    read: Callable[[Shard], Corpus],
    workers: int,
    progress: bool = True,
) -> int:
    """Analyses one share; continues what an interrupted run has left there.

    Args:
        ids: of all utterances of the corpus, in its order.
        read: gives the whole corpus, with the alignments that this share was given.

    Returns:
        How many utterances are in it.

    Raises:
        SpeechError: more shares than utterances, other settings in its folder, a corpus that is
            prepared already, or another process at this share.
    """
    if shard.count > len(ids):
        raise SpeechError(f"--shard {shard}: expected at most {len(ids)} shares, one an utterance")
    if (out / CORPUS).exists():
        raise SpeechError(f"{out} is prepared already; choose another --out for --shard {shard}")
    folder = shard.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        settings = _settings(plan)
        if (folder / SETTINGS).is_file():
            refuse_other_settings(folder, _read_settings(folder), settings)
        else:
            write_json(folder / SETTINGS, settings)
        work = WorkFile(folder / WORK, plan.analysis_settings())
        try:
            mine = _share(read(shard), shard, ids)
            analyze_rest(mine, plan.features, work, workers, progress)
        finally:
            work.close()
    return len(mine.utterances)


def merge_shards(
    out: Path,
    plan: Plan,
    ids: list[str],
    read: Callable[[Shard], Corpus],
    make: Callable[[Callable[..., Prepared]], Prepared],
) -> Prepared:
    """Puts all shares of a folder together, and removes them.

    Args:
        ids, read: as in `prepare_shard`.
        make: calls what it is given with the whole corpus, the frontend, the lexicon and what
            `CorpusInfo.speech` says.

    Raises:
        SpeechError: no shares, some missing or unfinished, or of other settings or recordings.
    """
    shards = find_shards(out)
    for shard in shards:
        refuse_other_settings(shard.folder(out), _read_settings(shard.folder(out)), _settings(plan))
    with contextlib.ExitStack() as stack:
        records = _Records()
        for shard in shards:
            folder = shard.folder(out)
            if not (folder / WORK).is_file():
                raise _unfinished(shard, "it has not begun")
            work = WorkFile(folder / WORK, plan.analysis_settings())
            stack.callback(work.close)
            records.add(work, _share(read(shard), shard, ids).utterances, shard)

        def put_together(corpus: Corpus, frontend, lexicon: dict[str, str], speech: str):
            states = {u.id: state_of(u) for u in corpus.utterances}
            at = [records.of[u.id] for u in corpus.utterances]
            return finish(corpus, plan, out, records, at, states, frontend, lexicon, speech)

        prepared = make(put_together)
    return prepared


def remove_shards(out: Path) -> None:
    """Removes the shares, which nobody needs any more."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)


def find_shards(out: Path) -> list[Shard]:
    """The shares in a folder, all there.

    Raises:
        SpeechError: none, some missing, or of different numbers.
    """
    found = []
    for path in sorted((out / SHARDS).glob("*-of-*")):
        with contextlib.suppress(ValueError):
            found.append(Shard.parse(path.name.replace("-of-", "/")))
    if not found:
        done = f"; {out} is prepared already" if (out / CORPUS).exists() else ""
        raise SpeechError(f"--merge: expected shares in {out / SHARDS}, found none{done}")
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise SpeechError(
            f"--merge: expected shares of one number in {out / SHARDS}, found some of "
            f"{' and of '.join(map(str, counts))}: remove the folders of those that do not belong"
        )
    there = {shard.index for shard in found}
    missing = [str(i) for i in range(1, counts[0] + 1) if i not in there]
    if missing:
        raise SpeechError(
            f"--merge: expected {counts[0]} shares in {out / SHARDS}, missing "
            f"{', '.join(missing)}: run the same command with --shard {missing[0]}/{counts[0]}"
        )
    return sorted(found, key=lambda shard: shard.index)


class _Records:
    """The utterances of several work files as those of one."""

    def __init__(self) -> None:
        self._places: list[tuple[WorkFile, int]] = []
        self.of: dict[str, int] = {}  # by id

    def add(self, work: WorkFile, utterances: list[Utterance], shard: Shard) -> None:
        """Takes these of a work file."""
        held: dict[str, list[tuple[int, Record]]] = {}
        for index, record in enumerate(work):
            held.setdefault(record.id, []).append((index, replace(record, features=None)))
        lost = []
        for utterance in utterances:
            index = _find(utterance, held.get(utterance.id, []))
            if index is None:
                lost.append(utterance.id)
            else:
                self.of[utterance.id] = len(self._places)
                self._places.append((work, index))
        if lost:
            raise _unfinished(
                shard,
                f"{len(lost)} of {len(utterances)} utterances are missing, or have changed since "
                f"({', '.join(lost[:5])})",
            )

    def read(self, index: int) -> Record:
        """One utterance by its position."""
        work, place = self._places[index]
        return work.read(place)


def _find(utterance: Utterance, records: list[tuple[int, Record]]) -> int | None:
    mark = fingerprint(utterance)
    for index, record in reversed(records):
        if record.fingerprint == mark:
            return index
    # Made on another machine, where the same files have other times.
    for index, record in reversed(records):
        if record.text == utterance.text and record.content == content_of(utterance):
            return index
    return None


def _unfinished(shard: Shard, why: str) -> SpeechError:
    return SpeechError(
        f"--merge: expected share {shard} to be finished, but {why}: run the same command with "
        f"--shard {shard}"
    )


def _share(corpus: Corpus, shard: Shard, ids: list[str]) -> Corpus:
    # By place in the whole list, so that what cannot be used moves no other utterance.
    mine = set(share_of(ids, shard))
    return replace(corpus, utterances=[u for u in corpus.utterances if u.id in mine])


def share_of(items: list, shard: Shard) -> list:
    """Every N-th, beginning with the I-th."""
    return items[shard.index - 1 :: shard.count]


def _settings(plan: Plan) -> dict:
    # Here the whole list counts: shares are taken from it by place.
    return {**plan.analysis_settings(), "metadata_sha256": plan.corpus.get("metadata_sha256")}


def _read_settings(folder: Path) -> dict:
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise SpeechError(f"{folder / SETTINGS} is damaged: delete {folder} and prepare it again")
