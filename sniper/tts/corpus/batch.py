# SPDX-License-Identifier: Apache-2.0
"""A padded batch of utterances: what the dataset hands to FastSpeech2.

B utterances, L tokens, T mel frames. Everything is padded at the end with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


def length_mask(lengths: Tensor, length: int) -> Tensor:
    """`mask[b, i] = i < lengths[b]`: bool `[B, length]`, true where there is no padding."""
    # No loop and no index, so that a recorded graph may hold it.
    return torch.arange(length, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Teacher-forced training input.

    Args:
        ids: names of the utterances, for messages.
        tokens: int64 `[B, L]`, the end-of-sentence token included, 0 in padding.
        token_lengths: int64 `[B]`, tokens of each utterance, the end of sentence included.
        mel: float32 `[B, T, n_mels]`, normalised log-mel frames.
        mel_lengths: int64 `[B]`, frames of each utterance.
        durations: int64 `[B, L]`, frames of each token; 0 in padding and usually at the end of
            sentence.
        pitch: float32 `[B, L]`, normalised log-F0, averaged over each token.
        energy: float32 `[B, L]`, normalised energy, averaged over each token.
        speakers: int64 `[B]`, the speaker of each utterance; None: the corpus has one.
        totals: int64 `[4]`, where this is a part of a larger batch: utterances, frames, tokens and
            tokens that have frames, all of the whole batch. The losses of all parts then add up to
            that of the whole. None: this is the whole.
        n_frames: unpadded frames in the batch, a Python int. Counted here when not given, so make
            the batch on the CPU: later uses (frames/s) then need no device synchronisation.

    Raises:
        ValueError: shapes that disagree.
    """

    ids: list[str]
    tokens: Tensor
    token_lengths: Tensor
    mel: Tensor
    mel_lengths: Tensor
    durations: Tensor
    pitch: Tensor
    energy: Tensor
    speakers: Tensor | None = None
    totals: Tensor | None = None
    n_frames: int | None = None

    def __post_init__(self):
        if self.tokens.ndim != 2 or self.mel.ndim != 3:
            raise ValueError(
                "expected tokens [B, L] and mel [B, T, n_mels], got "
                f"{list(self.tokens.shape)} and {list(self.mel.shape)}"
            )
        B, L = self.tokens.shape
        expected = {
            "token_lengths": (B,),
            "mel": (B, *self.mel.shape[1:]),
            "mel_lengths": (B,),
            "durations": (B, L),
            "pitch": (B, L),
            "energy": (B, L),
        }
        if self.speakers is not None:
            expected["speakers"] = (B,)
        if self.totals is not None:
            expected["totals"] = (4,)
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(
                    f"{name}: expected shape {shape} to fit tokens {(B, L)}, got {got}"
                )
        if len(self.ids) != B:
            raise ValueError(f"ids: expected {B} names, got {len(self.ids)}")
        # Through object, as the class is frozen.
        if self.n_frames is None:
            object.__setattr__(self, "n_frames", int(self.mel_lengths.sum()))

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def trim(self) -> Batch:
        """Cut padding past the longest utterance, as ESPnet does before every forward.

        Synchronises when the batch is on a GPU, so call it at collation. A model trains on a
        longer batch too, but BatchNorm then counts the extra frames in its statistics.
        """
        L, T = int(self.token_lengths.max()), int(self.mel_lengths.max())
        tokens = {name: getattr(self, name)[:, :L] for name in _PER_TOKEN}
        return replace(self, mel=self.mel[:, :T], **tokens)

    def validate(self, vocab_size: int | None = None) -> None:
        """Check the values; meant for collation, since it would synchronise on a GPU.

        Args:
            vocab_size: when given, token ids must be below it.

        Raises:
            ValueError: names the first utterance whose durations do not add up to its frames, whose
                lengths exceed the padded size, whose token ids are out of range or which has
                a duration in its padding.
        """
        L, T = self.tokens.shape[1], self.mel.shape[1]
        self._refuse(
            (self.token_lengths < 1) | (self.token_lengths > L),
            self.token_lengths,
            f"expected 1 to {L} tokens",
        )
        self._refuse(
            (self.mel_lengths < 1) | (self.mel_lengths > T),
            self.mel_lengths,
            f"expected 1 to {T} frames",
        )
        frames = self.durations.sum(1)
        self._refuse(
            frames != self.mel_lengths,
            frames,
            "expected durations that add up to the mel frames; the alignment does not fit",
        )
        padding = ~length_mask(self.token_lengths, L)
        self._refuse(
            ((self.durations < 0) | (padding & (self.durations != 0))).any(1),
            self.durations.amin(1),
            "expected durations of 0 or more, 0 in padding; lowest",
        )
        if vocab_size is not None:
            self._refuse(
                ((self.tokens < 0) | (self.tokens >= vocab_size)).any(1),
                self.tokens.amax(1),
                f"expected token ids in [0, {vocab_size}); highest",
            )

    def _refuse(self, bad: Tensor, got: Tensor, expected: str) -> None:
        # One look at the device for all utterances; which one it is is asked only where something
        # is wrong.
        if bad.any():
            b = int(bad.nonzero()[0])
            raise ValueError(f"utterance {self.ids[b]}: {expected}, got {int(got[b])}")

    def _map(self, function) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


_PER_TOKEN = ("tokens", "durations", "pitch", "energy")
