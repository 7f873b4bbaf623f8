# SPDX-License-Identifier: Apache-2.0
"""A batch that several processes share: each takes some of its utterances.

All parts together have the loss and the gradients of the whole batch: a part is padded as long as
the whole, and carries the counts that its means are over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sniper.tts.corpus.batch import Batch
from sniper.tts.corpus.dataset import FeatureDataset, Item, collate
from sniper.tts.corpus.shapes import StaticShapes, lengthen


@dataclass(frozen=True)
class Part:
    """Utterances of one process, and what it has to know of the others'.

    Args:
        items: its utterances; there may be none.
        like: any utterance of the whole batch.
        tokens, frames: the longest of the whole batch.
        totals: as `Batch.totals`.
    """

    items: list[Item]
    like: Item
    tokens: int
    frames: int
    totals: tuple[int, int, int, int]


class BatchParts(torch.utils.data.Dataset):
    """A dataset that is asked for whole batches and loads its own part of each.

    Of n utterances every part has n / parts, rounded up or down.

    Args:
        dataset: whose utterances they are.
        part: which one this is, counted from 0.
        parts: how many there are.
    """

    def __init__(self, dataset: FeatureDataset, part: int, parts: int):
        self.dataset, self.part, self.parts = dataset, part, parts

    @property
    def path(self) -> Path:
        """Of the dataset."""
        return self.dataset.path

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, whole: Sequence[int]) -> Part:
        """The part of a batch; a loader calls this with the numbers of its utterances."""
        data, numbers = self.dataset, list(whole)
        tokens, frames = data.token_lengths[numbers], data.mel_lengths[numbers]
        spoken = sum(data.spoken_tokens(i) for i in numbers)
        items = [data[i] for i in numbers[self.part :: self.parts]]
        return Part(
            items=items,
            like=items[0] if items else data[numbers[0]],
            tokens=int(tokens.max()),
            frames=int(frames.max()),
            totals=(len(numbers), int(frames.sum()), int(tokens.sum()), spoken),
        )


def collate_part(part: Part, shapes: StaticShapes | None = None) -> Batch:
    """A part as a batch, padded as long as the whole, or to one of `shapes` if there are some; one
    without utterances has B = 0.
    """
    batch = collate(part.items or [part.like])
    if not part.items:
        # Of the right widths and types, whatever the corpus has.
        tensors = {k: v[:0] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        batch = replace(batch, ids=[], n_frames=0, **tensors)
    tokens, frames = part.tokens - batch.tokens.shape[1], part.frames - batch.mel.shape[1]
    batch = replace(lengthen(batch, tokens, frames), totals=torch.tensor(part.totals))
    return batch if shapes is None or not part.items else shapes.pad(batch)
