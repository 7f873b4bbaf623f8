# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's loss of FastSpeech2: all terms at once, and all gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK
from sniper.ops.backends.triton.launch import check as check_tensor
from sniper.ops.backends.triton.launch import kernels, on, usable

CHUNK, TILE = configs.LOSS_CHUNK, configs.LOSS_TILE
TERMS_TILE = {"BM": configs.LOSS_TERMS.tokens, "BN": configs.LOSS_TERMS.width}
# Utterances lie along the grid's second side, which CUDA limits.
MOST_UTTERANCES = 65535


class Targets(NamedTuple):
    """What is measured against, and what counts.

    Args:
        mel: float32 `[B, T, n_mels]`.
        durations: int64 `[B, L]`, frames.
        pitch, energy: float32 `[B, L]`.
        mel_lengths, token_lengths: int64 `[B]`.
        totals: int64 `[4]`: utterances, frames, tokens and tokens with frames of the whole batch,
            where this is a part; None: this is the whole.
    """

    mel: Tensor
    durations: Tensor
    pitch: Tensor
    energy: Tensor
    mel_lengths: Tensor
    token_lengths: Tensor
    totals: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> Targets:
        """Of each tensor that there is."""
        return Targets(*(None if t is None else function(t) for t in self))  # pyright: ignore[reportArgumentType]


class Predictions(NamedTuple):
    """`[B, T, n_mels]` before and after the postnet (None: there is none), and `[B, L]` each."""

    before: Tensor
    after: Tensor | None
    log_durations: Tensor
    pitch: Tensor
    energy: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Of each tensor that there is."""
        return Predictions(*(None if t is None else function(t) for t in self))  # pyright: ignore[reportArgumentType]


def serves(x: Tensor) -> bool:
    """Whether these kernels may run on predictions such as x: they fit, and passed their check."""
    if not usable(x) or not x.numel() or len(x) > MOST_UTTERANCES:
        return False
    # Within an utterance kernels count in 32 bits, past its end too.
    if x.numel() // len(x) >= 2**31 - CHUNK:
        return False
    return selfcheck.trusted(x, ELEMENTWISE_BLOCK, selfcheck.LOSS)


def losses(
    predicted: Predictions, targets: Targets, empty: bool, masking: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the terms, the terms, and what an entry of each utterance weighs in them.

    Args:
        empty: whether tokens without frames count in pitch and energy.
        masking: what means are over: `entries`, `utterances` or `none`.

    Returns:
        float32: `[]`; `[5]`, of the mels before and after (0 without a postnet), the durations,
        pitch and energy; and `[3, B]`, the weight of a value of a mel, of a token, of a token that
        counts in pitch and energy.

    Raises:
        ValueError: shapes, dtypes or devices that do not do.
    """
    predicted, targets = _checked(predicted, targets)
    batch, frames, columns = predicted.before.shape
    tokens = predicted.pitch.shape[1]
    chunks = -(-frames * columns // CHUNK)
    new: dict[str, Any] = {"dtype": torch.float32, "device": predicted.before.device}
    mel_sums, token_sums = torch.empty(2, batch, chunks, **new), torch.empty(4, batch, **new)
    weights, terms = torch.empty(3, batch, **new), torch.empty(5, **new)
    total = torch.empty((), **new)
    with on(predicted.before.device):
        args = (*predicted, *targets[:-1], mel_sums, token_sums, batch, frames, tokens, columns)
        chosen = {"EMPTY": empty, "MASKED": masking != "none"}
        kernels().loss_parts[(chunks + 1, batch)](*args, CHUNK=CHUNK, TILE=TILE, **chosen)
        args = (mel_sums, token_sums, *targets[-3:], weights, terms, total)
        args += (batch, frames, tokens, columns, chunks)
        chosen = {"AFTER": predicted.after is not None, "EMPTY": empty, "MASKING": masking}
        kernels().loss_terms[(1,)](*args, **chosen, **TERMS_TILE)
    return total, terms, weights


def losses_backward(
    dtotal: Tensor,
    weights: Tensor,
    predicted: Predictions,
    targets: Targets,
    empty: bool,
    masking: str,
) -> Predictions:
    """The gradient of the sum of the terms, of each prediction in its dtype.

    Args:
        dtotal: float32 `[]`.
        weights: of `losses`, as are the others.

    Raises:
        ValueError: as `losses`.
    """
    predicted, targets = _checked(predicted, targets)
    batch, frames, columns = predicted.before.shape
    tokens = predicted.pitch.shape[1]
    check_tensor("dtotal", dtotal, dtotal, ())
    check_tensor("weights", weights, dtotal, (3, batch))
    gradients = predicted.map(torch.empty_like)
    with on(predicted.before.device):
        args = (dtotal, weights.contiguous(), *predicted, *targets[:-1], *gradients)
        args += (batch, frames, tokens, columns)
        grid = (-(-frames * columns // TILE) + 1, batch)
        kernels().loss_backward[grid](*args, TILE=TILE, EMPTY=empty, MASKED=masking != "none")
    return gradients


def _checked(predicted: Predictions, targets: Targets) -> tuple[Predictions, Targets]:
    """Both contiguous."""
    mel, pitch = targets.mel, targets.pitch
    check_tensor("mel", mel, mel, (None, None, None))
    check_shape("pitch", pitch, (len(mel), None))
    shapes = {"mel": mel.shape, "totals": (4,), "before": mel.shape, "after": mel.shape}
    shapes |= dict.fromkeys(("mel_lengths", "token_lengths"), (len(mel),))
    for group, tensors in (("predicted", predicted), ("target", targets)):
        for name, t in tensors._asdict().items():
            if t is None:
                continue
            label = f"{group} {name}"
            if t.device != mel.device:
                raise ValueError(
                    f"{label}: expected a tensor on {mel.device}, got one on {t.device}"
                )
            dtype = torch.float32 if name in ("mel", "pitch", "energy") else torch.int64
            if group == "predicted":
                check_tensor(label, t, t, None)
            elif t.dtype != dtype:
                raise ValueError(f"{label}: expected {dtype}, got {t.dtype}")
            check_shape(label, t, tuple(shapes.get(name, pitch.shape)))
    return predicted.map(Tensor.contiguous), targets.map(Tensor.contiguous)
