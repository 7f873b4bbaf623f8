# SPDX-License-Identifier: Apache-2.0
"""Prepared features as a PyTorch dataset, collation, and batches of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.features import Prosody, Statistics
from sniper.tts.corpus.store import map_tensors
from sniper.tts.corpus.verify import check_info, check_speakers, check_split, check_voices, damaged
from sniper.tts.errors import SpeechError
from sniper.tts.files import damaged_file, is_as_written
from sniper.tts.text.text import Frontend, Vocabulary, frontend_from_json

SPLITS = ("train", "valid", "test")
CORPUS = "corpus.json"


@dataclass(frozen=True)
class CorpusInfo:
    """What a prepared corpus says about itself; a checkpoint carries it.

    Args:
        vocabulary: tokens of the model.
        features: settings of the analysis.
        statistics: of the training set.
        frontend: reads text the way the corpus was read.
        speech: one line on what kind of speech it is.
        speakers: pitch and energy of each, by name, in the order of the model's numbers; empty: one
            speaker, without a name.
    """

    vocabulary: Vocabulary
    features: FeatureConfig
    statistics: Statistics
    frontend: Frontend
    speech: str
    speakers: dict[str, Prosody] = field(default_factory=dict)

    def statistics_of(self, speaker: str | None) -> Statistics:
        """The statistics that one speaker's utterances are normalised with."""
        return self.statistics if speaker is None else self.statistics.of(self.speakers[speaker])

    def to_json(self) -> dict:
        """Return plain values for `from_json`."""
        data = {
            "vocabulary": list(self.vocabulary.symbols),
            "features": self.features.to_json(),
            "statistics": self.statistics.to_json(),
            "frontend": self.frontend.to_json(),
            "speech": self.speech,
        }
        # Left out where there are none, so that files of one speaker stay as they were.
        if self.speakers:  # a list: its order counts
            data["speakers"] = [{"name": n, **asdict(p)} for n, p in self.speakers.items()]
        return data

    @classmethod
    def from_json(cls, data: dict) -> CorpusInfo:
        """Build from `to_json`'s dict; other keys are ignored.

        Raises:
            ValueError: it holds something else, in one line.
        """
        try:
            info = cls(
                vocabulary=Vocabulary(data["vocabulary"]),
                features=FeatureConfig.from_json(data["features"]),
                statistics=Statistics.from_json(data["statistics"]),
                frontend=frontend_from_json(data["frontend"]),
                speech=data["speech"],
                speakers={
                    str(each["name"]): Prosody(**{k: v for k, v in each.items() if k != "name"})
                    for each in data.get("speakers", ())
                },
            )
            bins = info.features.n_mels
            check_info(info.vocabulary, bins, info.statistics, info.frontend, info.speech)
            check_speakers(info.speakers)
        # Reading contents of the wrong kind raises any of these.
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200]
            missing = isinstance(error, KeyError)
            raise ValueError(f"{reason} is missing" if missing else reason) from None
        return info


def load_corpus_info(folder: str | Path) -> CorpusInfo:
    """Read FOLDER/corpus.json.

    Raises:
        SpeechError: there is none, or it is damaged.
    """
    path = Path(folder) / CORPUS
    try:
        return CorpusInfo.from_json(read_corpus_json(path))
    except FileNotFoundError as error:
        raise SpeechError(
            f"{folder} holds no prepared corpus; make one with python -m sniper.prepare"
        ) from error
    except ValueError as error:
        raise damaged(path, str(error)) from error


def read_corpus_json(path: Path) -> dict:
    """What a preparation wrote last: settings, what it found, and a `CorpusInfo`.

    Raises:
        FileNotFoundError: there is none.
        SpeechError: it cannot be read, or is not what was written.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(data, dict):
        raise damaged(path, f"expected a mapping, got {data!r:.60}")
    if not is_as_written(data, path.name):
        raise damaged(path, "it is not what was written, its checksum is another")
    return data


@dataclass(frozen=True)
class Item:
    """One utterance, normalised, EOS included (duration, pitch and energy 0).

    Args:
        tokens, durations: `[L]` int64.
        mel: `[T, n_mels]` float32.
        pitch, energy: `[L]` float32.
        speaker: number of who speaks; None: the corpus has one speaker.
    """

    id: str
    tokens: np.ndarray
    durations: np.ndarray
    mel: np.ndarray
    pitch: np.ndarray
    energy: np.ndarray
    speaker: int | None = None


class FeatureDataset(torch.utils.data.Dataset):
    """One split of a prepared corpus, memory-mapped; safe to hand to any number of workers.

    The file is read once to compare its checksum, which puts it into the page cache: a second for
    each gigabyte that lies there already. A worker maps it without.

    Args:
        path: `train.safetensors` or another split; `corpus.json` must lie beside it.

    Raises:
        SpeechError: a file is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = load_corpus_info(self.path.parent)
        self._refuse_other_bytes()
        self._open()

    def _refuse_other_bytes(self) -> None:
        try:
            about = read_corpus_json(self.path.with_name(CORPUS))
            other = damaged_file(about, self.path.parent, [self.path.name])
        except OSError:
            return  # opening it says what is wrong
        if other is not None:
            raise damaged(self.path, "it is not what was written, its checksum is another")

    def _refuse_written_to(self) -> None:
        """Refuses a mapped file that somebody writes to: it would give a mixture of two files, or
        end the process where it has become shorter.
        """
        try:
            found = self.path.stat()
        except OSError:
            return  # what was removed or replaced stays mapped as it was
        size, time, inode = self._mapped
        if found.st_ino != inode or (found.st_size, found.st_mtime_ns) == (size, time):
            return
        if found.st_size != size:
            raise damaged(self.path, "it was written to while it was in use")
        self._refuse_other_bytes()  # only its time may be another
        self._mapped = size, found.st_mtime_ns, inode

    def _open(self) -> None:
        self._tensors, metadata = map_tensors(self.path)
        found = self.path.stat()
        self._mapped = found.st_size, found.st_mtime_ns, found.st_ino
        try:
            about = (self.info.vocabulary, self.info.features.n_mels)
            found = check_split(self._tensors, metadata, *about)
            # Numbers of the speakers, in a corpus of several.
            self._speakers = check_voices(metadata, len(found[0]), len(self.info.speakers))
        except ValueError as error:
            raise damaged(self.path, str(error)) from error
        self.ids, self.texts = found
        self._statistics = [self.info.statistics_of(name) for name in self.info.speakers]
        # The offsets are small and read for every utterance, so they are copied into memory.
        self._mel_offsets = np.array(self._tensors["mel_offsets"])
        self._token_offsets = np.array(self._tensors["token_offsets"])

    def __getstate__(self) -> dict:
        # Only the path travels to a worker, which maps the file itself.
        return {"path": self.path, "info": self.info}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mel_lengths(self) -> np.ndarray:
        """Frames of each utterance, `[N]` int64: what `BucketBatchSampler` takes."""
        return np.diff(self._mel_offsets)

    @property
    def token_lengths(self) -> np.ndarray:
        """Tokens of each utterance, the end of sentence included, `[N]` int64."""
        return np.diff(self._token_offsets) + 1

    def spoken_tokens(self, index: int) -> int:
        """Tokens of an utterance that have frames, counted without loading the rest of it."""
        tokens = slice(self._token_offsets[index], self._token_offsets[index + 1])
        return int(np.count_nonzero(self._tensors["durations"][tokens]))

    def __getitem__(self, index: int) -> Item:
        # A plain `for` over the dataset ends by this error.
        if not -len(self) <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)}")
        index %= len(self)
        self._refuse_written_to()
        frames = slice(self._mel_offsets[index], self._mel_offsets[index + 1])
        tokens = slice(self._token_offsets[index], self._token_offsets[index + 1])
        speaker = None if self._speakers is None else self._speakers[index]
        statistics = self.info.statistics if speaker is None else self._statistics[speaker]
        data = self._tensors
        zero = np.zeros(1, dtype=np.float32)
        return Item(
            id=self.ids[index],
            tokens=np.append(data["tokens"][tokens].astype(np.int64), self.info.vocabulary.eos),
            durations=np.append(data["durations"][tokens].astype(np.int64), 0),
            mel=statistics.normalize_mel(data["mel"][frames]),
            pitch=np.append(statistics.normalize_pitch(data["pitch"][tokens]), zero),
            energy=np.append(statistics.normalize_energy(data["energy"][tokens]), zero),
            speaker=speaker,
        )


def collate(items: Sequence[Item]) -> Batch:
    """Pad utterances with zeros to a batch `[B, L]` and `[B, T, n_mels]`.

    Raises:
        ValueError: no items.
    """
    if not items:
        raise ValueError("a batch needs at least one utterance")
    token_lengths = np.array([len(item.tokens) for item in items])
    mel_lengths = np.array([len(item.mel) for item in items])
    size, width = len(items), int(token_lengths.max())
    mel = np.zeros((size, mel_lengths.max(), items[0].mel.shape[1]), dtype=np.float32)
    for row, item in enumerate(items):
        mel[row, : len(item.mel)] = item.mel
    filled = np.arange(width) < token_lengths[:, None]  # [B, L]

    def pad(name: str, dtype: type) -> torch.Tensor:
        padded = np.zeros((size, width), dtype=dtype)
        padded[filled] = np.concatenate([getattr(item, name) for item in items])
        return torch.from_numpy(padded)

    return Batch(
        ids=[item.id for item in items],
        tokens=pad("tokens", np.int64),
        token_lengths=torch.from_numpy(token_lengths),
        mel=torch.from_numpy(mel),
        mel_lengths=torch.from_numpy(mel_lengths),
        durations=pad("durations", np.int64),
        pitch=pad("pitch", np.float32),
        energy=pad("energy", np.float32),
        speakers=None if items[0].speaker is None else torch.tensor([i.speaker for i in items]),
    )


class BucketBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of similar length whose padded size is bounded.

    Utterances are sorted by length and cut into buckets within which lengths differ by at most a
    tenth or that fill one batch; every bucket is dealt anew each epoch and the batches are
    shuffled. The order is a pure function of (seed, epoch), and the number of batches is the same
    in every epoch.

    Args:
        lengths_in_frames: `[N]` frames of each utterance.
        max_frames_per_batch: bound on B * T of a batch, padding included.
        seed: of the order.
        shuffle: False gives one fixed order, longest first.
        ids: names for the error message.
        parts: that a batch is shared out in; the bound is that of each part.
        members: the utterances to deal; None: all.

    Attributes:
        buckets: members and batch size of each, the longest first.

    Raises:
        ValueError: no utterances, or one longer than a batch may be (all of these are named).
    """

    def __init__(
        self,
        lengths_in_frames: Sequence[int] | np.ndarray,
        max_frames_per_batch: int,
        seed: int = 0,
        shuffle: bool = True,
        ids: Sequence[str] | None = None,
        parts: int = 1,
        members: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.parts = parts
        self._members = members
        self.lengths = np.asarray(lengths_in_frames, dtype=np.int64)
        self.max_frames = int(max_frames_per_batch)
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        if len(self.lengths) == 0:
            raise ValueError("there is no utterance to make batches of")
        if self.lengths.min() < 1:
            raise ValueError("every utterance needs at least one frame")
        if long := np.flatnonzero(self.lengths > self.max_frames).tolist():
            names = [f"{ids[i] if ids else i} ({self.lengths[i]} frames)" for i in long[:10]]
            more = f" and {len(long) - 10} more" if len(long) > 10 else ""
            raise ValueError(
                f"longer than max_frames_per_batch = {self.max_frames}: {', '.join(names)}{more}; "
                f"raise it to at least {self.lengths.max()}"
            )
        self.buckets = self._make_buckets()
        self._batches_per_epoch = sum(-(-len(b) // size) for b, size in self.buckets)

    def _make_buckets(self) -> list[tuple[np.ndarray, int]]:
        """(members, utterances per batch) of each bucket, longest first."""
        # Stable, so that utterances of one length have the same order everywhere.
        order = np.argsort(-self.lengths, kind="stable")
        if self._members is not None:
            order = order[np.isin(order, self._members)]
        descending = self.lengths[order]
        buckets, begin = [], 0
        while begin < len(order):
            size = self.parts * int(self.max_frames // descending[begin])
            # Both with a minus, since searchsorted wants ascending values.
            similar = int(np.searchsorted(-descending, -0.9 * descending[begin], side="right"))
            # Whole batches only, so that just the last bucket of all leaves a small one.
            count = max(1, -(-(similar - begin) // size)) * size
            buckets.append((order[begin : begin + count], size))
            begin += count
        return buckets

    def of(self, members: Sequence[int] | np.ndarray | None, parts: int) -> BucketBatchSampler:
        """The same sampler of some utterances, or for another number of parts; of the same epoch.

        Args:
            members: numbers of utterances; None: all.
            parts: as the constructor takes it.
        """
        other = BucketBatchSampler(
            self.lengths, self.max_frames, self.seed, self.shuffle, parts=parts, members=members
        )
        other.epoch = self.epoch
        return other

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`; call it before iterating."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self._batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        # The order depends on nothing else, so that a resumed run deals the same batches.
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for members, size in self.buckets:
            dealt = rng.permutation(members) if self.shuffle else members
            batches += [dealt[i : i + size].tolist() for i in range(0, len(dealt), size)]
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        yield from batches
