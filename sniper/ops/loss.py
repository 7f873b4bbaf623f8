# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2's loss on a GPU: three kernels for all terms and all their gradients.

Torch's own functions compute it where no kernel is trusted, on a CPU, under `torch.compile` and
inside function transforms; `sniper.tts.model.loss` has them and says what the terms are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sniper.ops.backends.triton import loss as triton
from sniper.ops.backends.triton.launch import DTYPES
from sniper.ops.backends.triton.loss import Predictions, Targets
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed

__all__ = ["Predictions", "Targets", "fuses_losses", "masked_losses"]


def fuses_losses(predicted: Predictions, targets: Targets) -> bool:
    """Whether `masked_losses` takes such tensors: our kernels may run, and nothing around needs
    torch's.

    Args:
        predicted, targets: as `masked_losses` takes them.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    given = [t for t in (*predicted, *targets) if t is not None]
    device = predicted.before.device
    # A subclass may know torch's functions and not this one.
    if any(type(t) not in (Tensor, nn.Parameter) or t.device != device for t in given):
        return False
    if any(t.dtype not in DTYPES for t in predicted if t is not None):
        return False
    if any(t.dtype != torch.float32 for t in (targets.mel, targets.pitch, targets.energy)):
        return False
    if any(t.dtype != torch.int64 for t in (targets.durations, *targets[4:]) if t is not None):
        return False
    # What torch would broadcast is torch's.
    mels = all(t.shape == targets.mel.shape for t in predicted[:2] if t is not None)
    if not mels or any(t.shape != targets.pitch.shape for t in predicted[2:]):
        return False
    return targets.pitch.numel() > 0 and triton.serves(predicted.before)


def masked_losses(
    predicted: Predictions, targets: Targets, empty: bool, masking: str
) -> tuple[Tensor, Tensor]:
    """The sum of the loss's terms, and the terms, where `fuses_losses` says so.

    The sum is differentiable in the predictions, as often as one likes; the terms are not. Sums are
    float32, in an order that the shape decides.

    Args:
        predicted: float32, bfloat16 or float16.
        targets: what is predicted.
        empty: whether tokens without frames count in pitch and energy.
        masking: `entries`, `utterances` or `none`, as of `fastspeech2_loss`.

    Returns:
        A scalar, and `[5]`: mel before and after (0 without a postnet), duration, pitch, energy.
    """
    total, terms, _ = _losses(*predicted, *targets, empty, masking)
    return total, terms


@operation("sniper::masked_losses")
def _losses(
    before: Tensor,
    after: Tensor | None,
    log_durations: Tensor,
    pitch: Tensor,
    energy: Tensor,
    mel: Tensor,
    durations: Tensor,
    pitch_target: Tensor,
    energy_target: Tensor,
    mel_lengths: Tensor,
    token_lengths: Tensor,
    totals: Tensor | None,
    empty: bool,
    masking: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, the terms, and what an entry of each utterance weighs in them."""
    predicted = Predictions(before, after, log_durations, pitch, energy)
    targets = Targets(
        mel, durations, pitch_target, energy_target, mel_lengths, token_lengths, totals
    )
    return triton.losses(predicted, targets, empty, masking)


@_losses.register_fake
def _(before, after, log_durations, pitch, energy, mel, *others):
    new = [mel.new_empty(shape, dtype=torch.float32) for shape in ((), (5,), (3, len(mel)))]
    return new[0], new[1], new[2]


@operation("sniper::masked_losses_backward")
def _gradients(
    dtotal: Tensor,
    weights: Tensor,
    before: Tensor,
    after: Tensor | None,
    log_durations: Tensor,
    pitch: Tensor,
    energy: Tensor,
    mel: Tensor,
    durations: Tensor,
    pitch_target: Tensor,
    energy_target: Tensor,
    mel_lengths: Tensor,
    token_lengths: Tensor,
    empty: bool,
    masking: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each prediction, in its dtype; empty where there is no postnet."""
    predicted = Predictions(before, after, log_durations, pitch, energy)
    targets = Targets(mel, durations, pitch_target, energy_target, mel_lengths, token_lengths, None)
    found = triton.losses_backward(dtotal, weights, predicted, targets, empty, masking)
    # A custom op cannot return None for a tensor.
    return found.before, before.new_empty(0) if found.after is None else found.after, *found[2:]


@_gradients.register_fake
def _(dtotal, weights, before, after, log_durations, pitch, energy, *others):
    contiguous = torch.contiguous_format
    found = [
        before.new_empty(0) if t is None else torch.empty_like(t, memory_format=contiguous)
        for t in (before, after, log_durations, pitch, energy)
    ]
    return tuple(found)


def _save(ctx, inputs, output):
    *tensors, ctx.empty, ctx.masking = inputs
    _, terms, weights = output
    ctx.mark_non_differentiable(terms, weights)
    ctx.save_for_backward(*tensors[:-1], weights)


def _backward(ctx, dtotal, _dterms, _dweights):
    *tensors, weights = ctx.saved_tensors
    args: tuple = (dtotal, weights, *tensors, ctx.empty, ctx.masking)
    # Grad mode is on here only where somebody wants gradients of gradients.
    found = list(_differentiable(*args) if torch.is_grad_enabled() else _gradients(*args))
    if tensors[1] is None:
        found[1] = None
    return *found, *[None] * 9


def _differentiable(
    dtotal: Tensor,
    weights: Tensor,
    before: Tensor,
    after: Tensor | None,
    log_durations: Tensor,
    pitch: Tensor,
    energy: Tensor,
    mel: Tensor,
    durations: Tensor,
    pitch_target: Tensor,
    energy_target: Tensor,
    mel_lengths: Tensor,
    token_lengths: Tensor,
    empty: bool,
    masking: str,
) -> tuple[Tensor | None, ...]:
    """`_gradients` by torch's functions, which have derivatives of their own."""
    masked = masking != "none"

    def counts(lengths: Tensor, length: int) -> Tensor:
        known = torch.arange(length, device=lengths.device) < lengths[:, None]
        return known if masked else torch.ones_like(known)

    frames, tokens = counts(mel_lengths, mel.shape[1]), counts(token_lengths, pitch.shape[1])
    spoken = tokens & (durations > 0) if masked and not empty else tokens
    by_frame, by_token, by_spoken = (
        weight[:, None] * mask * dtotal
        for weight, mask in zip(weights.detach(), (frames, tokens, spoken), strict=True)
    )

    def l1(predicted: Tensor | None) -> Tensor | None:
        if predicted is None:
            return None
        slope = (predicted.float() - mel).sign() * by_frame.unsqueeze(-1)
        return slope.to(predicted.dtype)

    def mse(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return (2 * (predicted.float() - target) * weight).to(predicted.dtype)

    return (
        l1(before),
        l1(after),
        mse(log_durations, torch.log(durations.float() + 1.0), by_token),
        mse(pitch, pitch_target, by_spoken),
        mse(energy, energy_target, by_spoken),
    )


_losses.register_autograd(_backward, setup_context=_save)
