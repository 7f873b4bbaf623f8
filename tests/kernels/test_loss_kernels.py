# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2's loss and its gradients against torch's functions, which a CPU runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sniper.ops import loss as ops
from sniper.ops.backends.triton import loss as triton
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.loss import fastspeech2_loss

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
Named = dict[str, Any]


def make(B: int, L: int, T: int, n_mels: int, dtype: str) -> tuple[Batch, dict[str, Tensor]]:
    """On the CPU: utterances of all lengths, one whole and one of a single frame, tokens without
    frames; a value that is predicted exactly.
    """
    mel_lengths = torch.linspace(T, 1, B).round().long()
    token_lengths = torch.linspace(L, 1, B).round().long()
    inside = torch.arange(L) < token_lengths[:, None]
    durations = torch.randint(0, 3, (B, L)) * inside
    mel, pitch, energy = torch.randn(B, T, n_mels), torch.randn(B, L), torch.randn(B, L)
    ids = [str(b) for b in range(B)]
    tokens = torch.ones(B, L, dtype=torch.int64)
    batch = Batch(ids, tokens, token_lengths, mel, mel_lengths, durations, pitch, energy)
    shapes = {"mel_before": mel.shape, "mel_after": mel.shape, "log_durations": pitch.shape}
    shapes |= {"pitch": pitch.shape, "energy": pitch.shape}
    rounded = getattr(torch, dtype)
    predicted = {name: torch.randn(shape).to(rounded) for name, shape in shapes.items()}
    mel[0, 0, 0] = predicted["mel_after"][0, 0, 0].float()
    return batch, predicted


def differentiated(batch: Batch, predicted: Named, **options: Any) -> list[Tensor]:
    """The total, the terms, and the gradients of three times the total."""
    leaves = {k: None if t is None else t.clone().requires_grad_() for k, t in predicted.items()}
    total, terms = fastspeech2_loss(batch, **leaves, **options)
    assert total.requires_grad and not any(t.requires_grad for t in terms.values())
    known = [t for t in leaves.values() if t is not None]
    return [total.detach(), *terms.values(), *torch.autograd.grad(3 * total, known)]


def on(device: str, predicted: Named) -> Named:
    return {k: None if t is None else t.to(device) for k, t in predicted.items()}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Kernels run on what they are asked for, on the CPU too; what they were asked for."""
    asked = []
    run = triton.losses

    def losses(*args: Any) -> Any:
        asked.append(args)
        return run(*args)

    monkeypatch.setattr(triton, "losses", losses)
    monkeypatch.setattr(triton, "serves", lambda x: True)
    return asked


def check(batch: Batch, predicted: Named, device: str, served: list, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "serves", lambda x: False)
        wanted = differentiated(batch, predicted, **options)
    assert not served
    # Nobody may read what is padding: it holds what a model computes there.
    if options["masking"] != "none":
        predicted = {k: None if t is None else t.clone() for k, t in predicted.items()}
        for name, t in predicted.items():
            for b in range(len(batch)):
                lengths = batch.mel_lengths if name.startswith("mel") else batch.token_lengths
                if t is not None:
                    t[b, lengths[b] :] = float("nan")
    got = differentiated(batch.to(device), on(device, predicted), **options)
    assert len(served) == 1
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # Sums have another order; a gradient may be rounded to the neighbour.
        rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(ours.dtype, 1e-5)
        torch.testing.assert_close(ours.cpu(), theirs, rtol=rounding, atol=1e-7)
    again = differentiated(batch.to(device), on(device, predicted), **options)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("masking", ["entries", "utterances", "none"])
@pytest.mark.parametrize("empty, part", [(False, False), (True, True), (False, True)])
def test_terms_and_gradients_are_torchs(masking, empty, part, dtype, device, served):
    """Two chunks of frames, no multiple of a tile; in half precision beside float32 durations."""
    batch, predicted = make(3, 7, 70, 75, dtype)
    predicted["log_durations"] = predicted["log_durations"].float()
    if part:
        batch = replace(batch, totals=torch.tensor([5, 900, 40, 31]))
    check(batch, predicted, device, served, masking=masking, empty_token_loss=empty)


def test_many_utterances_and_tokens_without_a_postnet(device, served, monkeypatch):
    """More than a program takes at once, of each."""
    monkeypatch.setattr(triton, "TILE", 16)
    monkeypatch.setattr(triton, "CHUNK", 16)
    monkeypatch.setattr(triton, "TERMS_TILE", {"BM": 4, "BN": 2})
    batch, predicted = make(9, 40, 13, 5, "float32")
    check(batch, predicted | {"mel_after": None}, device, served, masking="entries")


def test_tokens_without_frames_alone_weigh_nothing(device, served):
    batch, predicted = make(2, 4, 3, 5, "float32")
    batch = replace(batch, durations=torch.zeros_like(batch.durations))
    for masking in ("entries", "utterances"):
        _, terms = fastspeech2_loss(batch.to(device), **on(device, predicted), masking=masking)
        assert terms["pitch"].item() == 0 and terms["duration"].item() > 0
    assert len(served) == 2


def test_strided_predictions(device, served):
    batch, predicted = make(2, 4, 6, 5, "float32")
    predicted["mel_after"] = predicted["mel_after"].mT.contiguous().mT
    check(batch, predicted, device, served, masking="entries")


def test_gradients_of_gradients(device, served):
    batch, predicted = make(2, 5, 6, 5, "float32")

    def second(serves: bool) -> tuple[Tensor, ...]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton, "serves", lambda x: serves)
            leaves = {k: t.to(device).requires_grad_() for k, t in predicted.items()}
            total, _ = fastspeech2_loss(batch.to(device), **leaves)
            known = list(leaves.values())
            first = torch.autograd.grad(total.sin(), known, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), known)

    for got, wanted in zip(second(True), second(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("with_postnet", [True, False])
def test_registrations(with_postnet, device):
    batch, predicted = make(2, 5, 6, 5, "float32")
    leaves = [t.to(device).requires_grad_() for t in predicted.values()]
    known = batch.to(device)
    targets = (known.mel, known.durations, known.pitch, known.energy)
    targets += (known.mel_lengths, known.token_lengths)
    if not with_postnet:
        leaves[1] = None
    args = (*leaves, *targets, None, False, "entries")
    torch.library.opcheck(ops._losses.op, args)
    weights = ops._losses(*args)[2]
    leaves = [None if t is None else t.detach() for t in leaves]
    one = torch.ones((), device=device)
    torch.library.opcheck(ops._gradients.op, (one, weights, *leaves, *targets, False, "entries"))


def test_refused(device):
    batch, predicted = make(2, 5, 6, 5, "float32")
    known, there = batch.to(device), on(device, predicted)
    targets = ops.Targets(
        known.mel, known.durations, known.pitch, known.energy, known.mel_lengths,
        known.token_lengths, None,
    )  # fmt: skip
    good = ops.Predictions(*there.values())
    for bad, said in (
        (good._replace(after=good.after[:, :3]), r"predicted after: expected shape \[2, 6, 5\], "),
        (good._replace(pitch=good.pitch.double()), r"predicted pitch: .* got torch.float64"),
    ):
        with pytest.raises(ValueError, match=said):
            triton.losses(bad, targets, False, "entries")
    with pytest.raises(ValueError, match=r"target durations: expected torch.int64, got torch.int"):
        wrong = targets._replace(durations=targets.durations.int())
        triton.losses(good, wrong, False, "entries")
    with pytest.raises(ValueError, match=r"weights: expected shape \[3, 2\], got \[2, 2\]"):
        one = torch.ones((), device=device)
        triton.losses_backward(one, known.mel[0, :2, :2], good, targets, False, "entries")
