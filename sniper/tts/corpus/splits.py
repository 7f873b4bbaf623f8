# SPDX-License-Identifier: Apache-2.0
"""Held-out sets that stay the same when an utterance comes or goes, and their files."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.corpus.dataset import SPLITS
from sniper.tts.corpus.store import TensorStream, write_tensors
from sniper.tts.corpus.workfile import Record, Records, features_of
from sniper.tts.errors import SpeechError
from sniper.tts.text.text import Vocabulary


@dataclass(frozen=True)
class Entry:
    """A usable utterance of a work file, without its arrays."""

    position: int
    id: str
    text: str
    phones: tuple[str, ...]
    n_frames: int
    speaker: str = ""


def split_sizes(usable: int, valid: int | None, test: int | None) -> dict[str, int]:
    """Utterances per held-out split: what was asked for, else 5 % but at most ESPnet's 250 each.

    Raises:
        SpeechError: nothing would remain for training.
    """
    default = min(250, max(1, usable // 20)) if usable > 1 else 0
    # No test set unless asked for: a small corpus needs each utterance.
    sizes = {"valid": default if valid is None else valid, "test": 0 if test is None else test}
    if sum(sizes.values()) >= usable:
        raise SpeechError(
            f"{sum(sizes.values())} held-out utterances of {usable} usable ones leave nothing to "
            "train on: lower --valid or --test"
        )
    return sizes


def split(
    ids: Sequence[str],
    sizes: dict[str, int],
    seed: int,
    frames: Sequence[int] | None = None,
    speakers: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """Positions per split. Ranked by a hash, so that one utterance more or less moves hardly any
    other, and where lengths are given each split has its share of short and of long ones.

    Args:
        frames: length of each utterance; None ranks them all as one.
        speakers: of each utterance; the last of everyone's is not held out. None: anything may be.

    Raises:
        SpeechError: there are not as many that may be held out.
    """

    def rank(index: int) -> bytes:
        # The rank comes from the id and not from the place in the list: an utterance that is added
        # or removed moves no other one.
        return hashlib.sha256(f"{seed}:{ids[index]}".encode()).digest()

    left = sorted(range(len(ids)), key=rank)
    # The last one of each speaker in that order, who could not be trained without it.
    kept = {} if speakers is None else {speakers[index]: index for index in left}
    reserved = set(kept.values())
    left = [index for index in left if index not in reserved]
    if sum(sizes.values()) > len(left):
        raise SpeechError(
            f"{sum(sizes.values())} utterances are to be held out, and {len(left)} may be: "
            f"{len(kept)} speakers need one each to train on; lower --valid or --test"
        )
    # Classes of length with fixed borders, two to an octave, so that an utterance's class does not
    # depend on the others.
    classes = [int(2 * math.log2(n)) for n in frames] if frames is not None else [0] * len(ids)
    parts: dict[str, list[int]] = {}
    for name in ("valid", "test"):
        parts[name] = _share(left, classes, sizes[name])
        taken = set(parts[name])
        left = [index for index in left if index not in taken]
    parts["train"] = [*left, *reserved]
    return {name: sorted(parts[name]) for name in SPLITS if parts[name] or name != "test"}


def _share(ranked: list[int], classes: Sequence[int], count: int) -> list[int]:
    """The first of each class, in its share of all utterances (by the largest remainders)."""
    members: dict[int, list[int]] = {}
    for index in ranked:
        members.setdefault(classes[index], []).append(index)
    # Half of a corpus of prompts may be one word long; a split by count alone would hold out clips
    # that say little.
    exact = {c: count * len(of_class) / max(1, len(ranked)) for c, of_class in members.items()}
    quota = {c: int(share) for c, share in exact.items()}
    by_remainder = sorted(exact, key=lambda c: (quota[c] - exact[c], c))
    for c in by_remainder[: count - sum(quota.values())]:
        quota[c] += 1
    return [index for c, of_class in members.items() for index in of_class[: quota[c]]]


def read_entries(work: Records, entries: Sequence[Entry]) -> Iterator[Record]:
    """Read records one after the other."""
    for entry in entries:
        yield work.read(entry.position)


def write_split(
    path: Path,
    entries: Sequence[Entry],
    work: Records,
    vocabulary: Vocabulary,
    n_mels: int,
    speakers: Sequence[str] = (),
) -> None:
    """Write one split's feature file (`store` has its layout) from a work file.

    Args:
        speakers: of the corpus, by number; empty: it has one.
    """
    # Offsets, so that all utterances lie in one array end to end.
    frames = np.cumsum([0, *(entry.n_frames for entry in entries)])
    tokens = np.cumsum([0, *(len(entry.phones) for entry in entries)])
    # One pass for the small arrays, one for the mel: only the mel is large.
    small = [
        (f.durations, f.pitch, f.energy) for f in map(features_of, read_entries(work, entries))
    ]
    durations, pitch, energy = zip(*small, strict=True) if small else ((), (), ())
    ids = (vocabulary.ids(entry.phones) for entry in entries)
    # A generator, since the mels of a corpus do not fit into memory.
    mel = (features_of(record).mel for record in read_entries(work, entries))
    per_token, offsets = (int(tokens[-1]),), (len(entries) + 1,)
    tensors = {
        "mel_offsets": TensorStream(np.dtype(np.int64), offsets, [frames]),
        "token_offsets": TensorStream(np.dtype(np.int64), offsets, [tokens]),
        "mel": TensorStream(np.dtype(np.float32), (int(frames[-1]), n_mels), mel),
        "pitch": TensorStream(np.dtype(np.float32), per_token, pitch),
        "energy": TensorStream(np.dtype(np.float32), per_token, energy),
        "tokens": TensorStream(np.dtype(np.int32), per_token, ids),
        "durations": TensorStream(np.dtype(np.int32), per_token, durations),
    }
    metadata = {
        "ids": json.dumps([entry.id for entry in entries], ensure_ascii=False),
        "texts": json.dumps([entry.text for entry in entries], ensure_ascii=False),
    }
    if speakers:
        number = {name: i for i, name in enumerate(speakers)}
        metadata["speakers"] = json.dumps([number[entry.speaker] for entry in entries])
    write_tensors(path, tensors, metadata)
