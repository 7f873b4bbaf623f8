# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2's loss: `L1(before) + L1(after) + MSE(log(d + 1)) + MSE(pitch) + MSE(energy)`.

Source: FastSpeech 2 (arXiv 2006.04558) section 2.3, weights and masking as in ESPnet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.loss import Predictions, Targets, fuses_losses, masked_losses
from sniper.tts.corpus.batch import Batch, length_mask
from sniper.tts.model.config import MASKINGS

_TERMS = ("mel_before", "mel_after", "duration", "pitch", "energy")


def fastspeech2_loss(
    batch: Batch,
    *,
    mel_before: Tensor,
    mel_after: Tensor | None,
    log_durations: Tensor,
    pitch: Tensor,
    energy: Tensor,
    empty_token_loss: bool = False,
    masking: str = "entries",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the loss terms, each of weight 1, in float32.

    Args:
        batch: the targets.
        mel_before, mel_after: `[B, T, n_mels]` predicted frames before and after the postnet; None
            where there is none.
        log_durations: `[B, L]`, log(frames + 1).
        pitch, energy: `[B, L]`, normalised as the targets are.
        empty_token_loss: whether tokens of zero duration (the end of sentence above all) count in
            the pitch and energy terms. They have no frames to average over, so by default they do
            not; ESPnet counts them.
        masking: what a term's mean is over. "entries": all unpadded frames or tokens of the batch.
            "utterances": each utterance's own mean first, then over utterances. "none": everything,
            padding and empty tokens too (ESPnet's `use_masking=False`).

    Returns:
        The total, and its terms detached: `mel_before`, `mel_after` (absent without a postnet),
        `duration`, `pitch`, `energy`. No value is read back to the host.

    Raises:
        ValueError: an unknown `masking`.
    """
    if masking not in MASKINGS:
        raise ValueError(f"masking: expected one of {', '.join(MASKINGS)}, got {masking!r}")
    predicted = Predictions(mel_before, mel_after, log_durations, pitch, energy)
    targets = Targets(
        batch.mel,
        batch.durations,
        batch.pitch,
        batch.energy,
        batch.mel_lengths,
        batch.token_lengths,
        batch.totals,
    )
    if fuses_losses(predicted, targets):
        total, values = masked_losses(predicted, targets, empty_token_loss, masking)
        named: dict[str, Tensor] = dict(zip(_TERMS, values.unbind(), strict=True))
        if mel_after is None:
            del named["mel_after"]
        return total, named
    frames = length_mask(batch.mel_lengths, batch.mel.shape[1])
    tokens = length_mask(batch.token_lengths, batch.tokens.shape[1])
    spoken = tokens if empty_token_loss else tokens & (batch.durations > 0)
    # Of a part of a batch the means are over the whole.
    whole = (None,) * 4 if batch.totals is None else batch.totals.unbind()
    frame_weights = _mean_weights(frames, masking, whole[0], whole[1])
    token_weights = _mean_weights(tokens, masking, whole[0], whole[2])
    pitch_weights = _mean_weights(spoken, masking, whole[0], whole[2 if empty_token_loss else 3])

    def l1(mel: Tensor) -> Tensor:
        # In float32 whatever the model runs in: sums over thousands of frames lose bits in
        # bfloat16.
        return ((mel.float() - batch.mel).abs().mean(-1) * frame_weights).sum()

    def mse(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return ((predicted.float() - target).square() * weights).sum()

    terms = {"mel_before": l1(mel_before)}
    if mel_after is not None:
        terms["mel_after"] = l1(mel_after)
    # log(frames + 1), since a token may have no frame and the logarithm of 0 is infinite.
    target = torch.log(batch.durations.float() + 1.0)
    terms["duration"] = mse(log_durations, target, token_weights)
    terms["pitch"] = mse(pitch, batch.pitch, pitch_weights)
    terms["energy"] = mse(energy, batch.energy, pitch_weights)
    total = torch.stack(list(terms.values())).sum()
    return total, {name: term.detach() for name, term in terms.items()}


def _mean_weights(
    mask: Tensor, masking: str, rows: Tensor | None, entries: Tensor | None
) -> Tensor:
    """Weights `[B, T]` that make a sum the mean over the mask, or over each row of it first.

    Args:
        mask: of a batch, or a part of one.
        rows, entries: of the whole batch's mask, where this is a part; otherwise None.
    """
    if masking == "entries":
        # Weights in place of an index: the number of frames stays on the device, and recorded
        # graphs keep their shapes.
        return mask / (mask.sum() if entries is None else entries).clamp(min=1)
    if masking == "utterances":
        count = mask.shape[0] if rows is None else rows
        return mask / (mask.sum(1, keepdim=True).clamp(min=1) * count)
    if rows is None:
        return torch.full(mask.shape, 1.0 / mask.numel(), device=mask.device)
    return torch.ones_like(mask, dtype=torch.float32) / (rows * mask.shape[1])
