# SPDX-License-Identifier: Apache-2.0
"""A few fixed shapes for all batches of a corpus, so that a step can be recorded and replayed.

Each length bucket of `BucketBatchSampler` has one shape: its batch size, and its longest utterance
in tokens and frames. Missing utterances of a last batch are rows of length 0, which no loss counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sniper.tts.batch import Batch

# Frames and tokens are rounded up to this: aligned rows, and fewer different shapes.
MULTIPLE = 8

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class StaticShapes:
    """The shapes `(B, L, T)` that batches are padded to, smallest T first.

    Args:
        shapes: utterances, tokens, frames.
    """

    shapes: tuple[Shape, ...]

    @classmethod
    def of_buckets(
        cls, buckets: list[tuple[np.ndarray, int]], frames: np.ndarray, tokens: np.ndarray
    ) -> StaticShapes:
        """One shape a bucket.

        Args:
            buckets: members and batch size of each, as `BucketBatchSampler.buckets` gives them.
            frames, tokens: `[N]` lengths of all utterances, the end of sentence included.
        """
        found = {
            (size, _round_up(tokens[members].max()), _round_up(frames[members].max()))
            for members, size in buckets
        }
        return cls(tuple(sorted(found, key=lambda shape: (shape[2], shape[0], shape[1]))))

    def pad(self, batch: Batch) -> Batch:
        """`batch` in the smallest shape that holds it.

        Raises:
            ValueError: none does.
        """
        have = (len(batch), batch.tokens.shape[1], batch.mel.shape[1])
        for shape in self.shapes:
            if all(h <= s for h, s in zip(have, shape, strict=True)):
                return _pad(batch, shape)
        raise ValueError(
            f"batch: expected utterances, tokens, frames within {self.shapes}, got {have}"
        )


def padding_share(batch: Batch) -> float:
    """Share of the batch's mel rows that are padding."""
    return 1 - batch.n_frames / (batch.mel.shape[0] * batch.mel.shape[1])


def _round_up(length: int) -> int:
    return -(-int(length) // MULTIPLE) * MULTIPLE


def _pad(batch: Batch, shape: Shape) -> Batch:
    rows = shape[0] - len(batch)
    tokens = shape[1] - batch.tokens.shape[1]
    frames = shape[2] - batch.mel.shape[1]

    def per_token(values: torch.Tensor) -> torch.Tensor:
        return F.pad(values, (0, tokens, 0, rows))

    return Batch(
        ids=batch.ids + [""] * rows,
        tokens=per_token(batch.tokens),
        token_lengths=F.pad(batch.token_lengths, (0, rows)),
        mel=F.pad(batch.mel, (0, 0, 0, frames, 0, rows)),
        mel_lengths=F.pad(batch.mel_lengths, (0, rows)),
        durations=per_token(batch.durations),
        pitch=per_token(batch.pitch),
        energy=per_token(batch.energy),
        n_frames=batch.n_frames,
    )
