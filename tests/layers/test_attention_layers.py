# SPDX-License-Identifier: Apache-2.0
"""Other people's attention by our kernel: what is swapped, what stays theirs, and back."""

import copy
import pickle

import pytest
import torch
from dropin import fastspeech2_conformer
from torch import nn

from sniper import densify, sparsify
from sniper.layers.attention_huggingface import FastSpeech2ConformerAttention, RelativeAttention


@pytest.fixture
def pair():
    """Their module and, with the same weights, ours; in evaluation mode."""
    model, _ = fastspeech2_conformer()
    theirs = model.eval().encoder.conformer_layers[0].self_attn
    nn.init.normal_(theirs.pos_bias_u), nn.init.normal_(theirs.pos_bias_v)
    ours = copy.deepcopy(theirs)
    ours.__class__ = RelativeAttention
    return theirs, ours


def operands():
    mask = torch.arange(13) < torch.tensor([13, 6])[:, None]
    return torch.randn(2, 13, 32), mask[:, None], torch.randn(1, 25, 32)


def test_the_same_values_and_gradients(pair, monkeypatch):
    theirs, ours = pair
    monkeypatch.setattr(FastSpeech2ConformerAttention, "shift_relative_position_tensor", None)
    given = operands()
    x = given[0].clone().requires_grad_()
    y, weights = ours(x, *given[1:])
    y.square().sum().backward()
    monkeypatch.undo()
    wanted_x = given[0].clone().requires_grad_()
    wanted, _ = theirs(wanted_x, *given[1:])
    wanted.square().sum().backward()
    assert weights is None
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(x.grad, wanted_x.grad, rtol=1e-4, atol=1e-4)
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4)


def test_without_a_mask(pair):
    theirs, ours = pair
    x, _, pos_emb = operands()
    torch.testing.assert_close(ours(x, None, pos_emb)[0], theirs(x, None, pos_emb)[0])


@pytest.mark.parametrize("way", ["weights", "double", "positions each", "hook", "autocast"])
def test_theirs_for_the_rest(pair, way):
    theirs, ours = pair
    x, mask, pos_emb = operands()
    more = {"output_attentions": way == "weights"}
    if way == "double":
        theirs, ours, x, pos_emb = theirs.double(), ours.double(), x.double(), pos_emb.double()
    if way == "positions each":
        pos_emb = torch.cat([pos_emb, pos_emb + 1])
    seen = []
    if way == "hook":
        ours.dropout.register_forward_hook(lambda *args: seen.append(args[1][0].shape))
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        got, wanted = ours(x, mask, pos_emb, **more), theirs(x, mask, pos_emb, **more)
    assert torch.equal(got[0], wanted[0])
    if way == "weights":
        assert torch.equal(got[1], wanted[1])
    assert seen == ([torch.Size([2, 2, 13, 13])] if way == "hook" else [])


def test_a_mask_that_is_theirs_to_refuse(pair):
    x, _, pos_emb = operands()
    with pytest.raises(ValueError, match="Attention mask should be of size"):
        pair[1](x, torch.ones(2, 13, 13), pos_emb)


def test_a_whole_model_there_and_back(tmp_path):
    model, batch = fastspeech2_conformer()
    before = [type(m) for m in model.modules()]
    assert sparsify(model, 16).attentions == 0
    report = sparsify(model, 16, fast_attention=True)
    assert report.attentions == 2
    assert str(report).endswith("2 attentions by a kernel of their own")
    assert sparsify(model, 16, fast_attention=True).attentions == 0
    layer = model.encoder.conformer_layers[0].self_attn
    assert type(layer) is RelativeAttention
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(0)
        got = again.train()(**batch).loss
        torch.manual_seed(0)
        assert torch.equal(got, model.train()(**batch).loss)
        assert [type(m) for m in densify(again).modules()] == before
    assert set(vars(densify(model).encoder.conformer_layers[0].self_attn)) == set(
        vars(fastspeech2_conformer()[0].encoder.conformer_layers[0].self_attn)
    )


def test_a_version_that_is_called_otherwise_is_left_and_said(monkeypatch):
    def forward(self, hidden_states, rotary, pos_emb):
        raise AssertionError

    monkeypatch.setattr(FastSpeech2ConformerAttention, "forward", forward)
    model, _ = fastspeech2_conformer()
    with pytest.warns(
        UserWarning, match=r"this version has \(self, hidden_states, rotary, pos_emb\)"
    ):
        report = sparsify(model, 16, fast_attention=True)
    assert report.attentions == 0
    assert type(model.encoder.conformer_layers[0].self_attn) is FastSpeech2ConformerAttention


def test_espnets():
    espnet = pytest.importorskip(
        "espnet.nets.pytorch_backend.transformer.attention", reason="needs the espnet package"
    )
    mask = (torch.arange(13) < torch.tensor([13, 6])[:, None])[:, None]
    x, pos_emb = torch.randn(2, 13, 32), torch.randn(1, 25, 32)
    for name, more in (
        ("MultiHeadedAttention", ()),
        ("RelPositionMultiHeadedAttention", (pos_emb,)),
    ):
        theirs = getattr(espnet, name)(2, 32, 0.3)
        model = nn.ModuleDict({"it": copy.deepcopy(theirs)})
        assert sparsify(model, 16, fast_attention=True).attentions == 1
        ours = model["it"].eval()
        torch.testing.assert_close(ours(x, x, x, *more, mask), theirs.eval()(x, x, x, *more, mask))
        # By our kernel in training: the weights are nowhere.
        y = ours.train()(x, x, x, *more, mask)
        assert ours.attn is None and y.isfinite().all()
        each = mask.expand(2, 13, 13)
        ours(x, x, x, *more, each)
        assert ours.attn.shape == (2, 2, 13, 13)
        assert type(densify(model)["it"]) is type(theirs)
