# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from sniper.tts.corpus.batch import Batch
from sniper.tts.model.fastspeech2 import FastSpeech2Output
from sniper.tts.model.loss import fastspeech2_loss


@pytest.fixture
def batch() -> Batch:
    """Two utterances: 3 tokens and 3 frames, 2 tokens and 1 frame; the last token has no frame."""
    return Batch(
        ids=["a", "b"],
        tokens=torch.tensor([[1, 2, 3], [1, 3, 0]]),
        token_lengths=torch.tensor([3, 2]),
        mel=torch.zeros(2, 3, 2),
        mel_lengths=torch.tensor([3, 1]),
        durations=torch.tensor([[2, 1, 0], [1, 0, 0]]),
        pitch=torch.zeros(2, 3),
        energy=torch.zeros(2, 3),
    )


@pytest.fixture
def output() -> FastSpeech2Output:
    mel = torch.tensor([[[1.0, 3.0]] * 3, [[6.0, 6.0], [100.0, 100.0], [100.0, 100.0]]])
    tokens = torch.tensor([[1.0, 2.0, 9.0], [3.0, 7.0, 50.0]])
    return FastSpeech2Output(mel, mel / 2, torch.zeros(2, 3), tokens, 2 * tokens)


def test_means_over_unpadded_entries(output, batch):
    total, terms = fastspeech2_loss(batch, **vars(output))
    assert list(terms) == ["mel_before", "mel_after", "duration", "pitch", "energy"]
    assert terms["mel_before"].item() == pytest.approx((3 * 2 + 6) / 4)
    assert terms["mel_after"].item() == pytest.approx((3 * 2 + 6) / 8)
    squares = math.log(3) ** 2 + 2 * math.log(2) ** 2
    assert terms["duration"].item() == pytest.approx(squares / 5)
    # Tokens of zero duration (9 and 7) do not count.
    assert terms["pitch"].item() == pytest.approx((1 + 4 + 9) / 3)
    assert terms["energy"].item() == pytest.approx(4 * (1 + 4 + 9) / 3)
    assert total.item() == pytest.approx(sum(term.item() for term in terms.values()))


def test_empty_tokens_count_on_request(output, batch):
    _, terms = fastspeech2_loss(batch, **vars(output), empty_token_loss=True)
    assert terms["pitch"].item() == pytest.approx((1 + 4 + 81 + 9 + 49) / 5)


def test_means_over_utterances(output, batch):
    _, terms = fastspeech2_loss(batch, **vars(output), masking="utterances")
    assert terms["mel_before"].item() == pytest.approx((2 + 6) / 2)
    assert terms["pitch"].item() == pytest.approx(((1 + 4) / 2 + 9) / 2)


def test_no_masking(output, batch):
    _, terms = fastspeech2_loss(batch, **vars(output), masking="none")
    assert terms["mel_before"].item() == pytest.approx((3 * 2 + 6 + 200) / 6)


def test_padding_has_no_gradient(output, batch):
    mel = output.mel_before.clone().requires_grad_()
    pitch = output.pitch.clone().requires_grad_()
    out = FastSpeech2Output(mel, None, output.log_durations, pitch, output.energy)
    total, terms = fastspeech2_loss(batch, **vars(out))
    total.backward()
    assert "mel_after" not in terms
    assert mel.grad[1, 1:].abs().sum() == 0
    assert (pitch.grad != 0).tolist() == [[True, True, False], [True, False, False]]


def test_terms_are_detached(output, batch):
    output.mel_before.requires_grad_()
    total, terms = fastspeech2_loss(batch, **vars(output))
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_half_precision_outputs_are_measured_in_float32(output, batch):
    half = FastSpeech2Output(*(t.bfloat16() for t in vars(output).values()))
    total, _ = fastspeech2_loss(batch, **vars(half))
    assert total.dtype == torch.float32


def test_only_empty_tokens_is_zero_not_nan(output, batch):
    silent = Batch(**{**vars(batch), "durations": torch.zeros(2, 3, dtype=torch.int64)})
    for masking in ("entries", "utterances"):
        _, terms = fastspeech2_loss(silent, **vars(output), masking=masking)
        assert terms["pitch"].item() == 0


def test_unknown_masking(output, batch):
    with pytest.raises(ValueError, match="entries, utterances, none, got 'padding'"):
        fastspeech2_loss(batch, **vars(output), masking="padding")
