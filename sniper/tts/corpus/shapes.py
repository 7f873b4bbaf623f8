# SPDX-License-Identifier: Apache-2.0
"""A few fixed shapes for all batches of a corpus, so that a step can be recorded and replayed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from sniper.tts.corpus.batch import Batch

# Tokens and frames are rounded up to this: rows stay aligned for the GPU's copy engine.
MULTIPLE = 8

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class StaticShapes:
    """The shapes `(B, L, T)` that batches are padded to, the fewest frames first.

    Each length bucket has one: its batch size, and its longest utterance in tokens and in frames.
    A bucket whose last batch is smaller has a second one of that size, so that no utterance is made
    up to fill a batch.
    """

    shapes: tuple[Shape, ...]

    @classmethod
    def of_buckets(
        cls,
        buckets: Iterable[tuple[np.ndarray, int]],
        tokens: Sequence[int] | np.ndarray,
        frames: Sequence[int] | np.ndarray,
        parts: int = 1,
    ) -> StaticShapes:
        """The shapes that all batches dealt from these buckets fit into.

        Args:
            buckets: members and batch size of each, as `BucketBatchSampler.buckets` has them.
            tokens, frames: `[N]` lengths of all utterances, the end of sentence included.
            parts: that each batch is shared out in, as `BatchParts` does.
        """
        tokens, frames = np.asarray(tokens), np.asarray(frames)
        found = set()
        for members, size in buckets:
            longest = (_round_up(tokens[members].max()), _round_up(frames[members].max()))
            whole = (min(size, len(members)), len(members) % size)
            sizes = {(n + more) // parts for n in whole for more in (0, parts - 1)} - {0}
            found |= {(b, *longest) for b in sizes}
        # `pad` takes the first that fits, and frames are what costs most.
        return cls(tuple(sorted(found, key=lambda shape: (shape[2], shape[1], shape[0]))))

    def pad(self, batch: Batch) -> Batch:
        """`batch` with zeros up to the smallest shape of its size that holds it.

        Raises:
            ValueError: none does.
        """
        B, L, T = len(batch), batch.tokens.shape[1], batch.mel.shape[1]
        for b, tokens, frames in self.shapes:
            if b == B and tokens >= L and frames >= T:
                return lengthen(batch, tokens - L, frames - T)
        raise ValueError(
            f"batch: expected utterances, tokens and frames within {list(self.shapes)}, "
            f"got {(B, L, T)}"
        )


def _round_up(length: int) -> int:
    return -(-int(length) // MULTIPLE) * MULTIPLE


def lengthen(batch: Batch, tokens: int, frames: int) -> Batch:
    """`batch` with so many more tokens and frames of padding."""

    def longer(values: Tensor) -> Tensor:
        return F.pad(values, (0, tokens))

    return replace(
        batch,
        tokens=longer(batch.tokens),
        mel=F.pad(batch.mel, (0, 0, 0, frames)),
        durations=longer(batch.durations),
        pitch=longer(batch.pitch),
        energy=longer(batch.energy),
    )
