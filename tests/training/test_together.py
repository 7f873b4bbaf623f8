# SPDX-License-Identifier: Apache-2.0
"""All parameters at once: the bits of one at a time, in fewer launches."""

from __future__ import annotations

import copy

import pytest
import torch
from test_step import BATCHES, make_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sniper import Sniper
from sniper.layers import sparsify
from sniper.ops.dispatch import last_runs
from sniper.ops.gradients import place_of
from sniper.optim import Adam
from sniper.training.together import gradients_added, gradients_laid, weights_cast
from sniper.tts.model.transformer import SelfAttention


class Counts(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def train(together: bool, masked: bool, steps: int = 2) -> tuple[nn.Module, dict[str, int]]:
    """Two micro-batches a step, under autocast."""
    model = make_model().train()
    optimizer = Adam(model.parameters(), lr=1e-3)
    if masked:
        sniper = Sniper(model, {0: 0.5}, block_size=16)
        sniper.score([BATCHES[0]], lambda m, b: m.loss(b)[0])
        sniper.step(0, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.manual_seed(1)
    counts = Counts()
    for _ in range(steps):
        with counts:
            for batch in BATCHES[:2]:
                with torch.autocast("cpu", torch.bfloat16):
                    if together:
                        with weights_cast(model, torch.bfloat16):
                            loss = model.loss(batch)[0]
                    else:
                        loss = model.loss(batch)[0]
                if together:
                    with gradients_added(model):
                        loss.backward()
                else:
                    loss.backward()
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return model, counts.calls


@pytest.mark.parametrize("masked", [False, True])
def test_the_bits_of_one_at_a_time(masked: bool, monkeypatch):
    monkeypatch.setattr(SelfAttention, "stacked", ())  # one product rounds once where three do
    (one, each), (all_, few) = train(False, masked), train(True, masked)
    ours, theirs = all_.state_dict(), one.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert each["aten::add_"] - few["aten::add_"] > 100
    assert few["aten::_foreach_add_"] == few["aten::_foreach_copy_"] / 2 == 4


@pytest.mark.parametrize("masked", [False, True])
def test_layers_of_one_input_are_one_product(masked: bool, monkeypatch):
    def gradients(stacked: bool) -> tuple[nn.Module, float]:
        monkeypatch.setattr(SelfAttention, "stacked", ("query", "key", "value") if stacked else ())
        model = make_model().eval()
        if masked:
            sniper = Sniper(model, {0: 0.5}, block_size=16)
            sniper.score([BATCHES[0]], lambda m, b: m.loss(b)[0])
            sniper.step(0)
        Adam(model.parameters())  # gradients may be added to their places
        gradients_laid(model)
        places = [p.grad.data_ptr() for p in model.parameters()]
        seen: list[tuple[object, Tensor | None]] = []
        found = place_of
        monkeypatch.setattr(
            "sniper.ops.gradients.place_of",
            lambda source, pruned: seen.append((source, found(source, pruned))) or seen[-1][1],
        )
        for batch in BATCHES[:2]:
            with torch.autocast("cpu", torch.bfloat16), weights_cast(model, torch.bfloat16):
                attention = next(m for m in model.modules() if isinstance(m, SelfAttention))
                assert (attention.stack is not None) == stacked
                loss = model.loss(batch)[0]
            assert attention.stack is None
            with gradients_added(model):
                loss.backward()
        assert places == [p.grad.data_ptr() for p in model.parameters()]
        monkeypatch.setattr("sniper.ops.gradients.place_of", found)
        if masked:
            # Straight to where they lie: one matrix for three weights.
            stacks = [place for source, place in seen if isinstance(source, tuple)]
            assert len(stacks) == 4 * stacked and all(p.shape == (96, 32) for p in stacks)
            query = attention.query
            pruned = ~query.layout.element_mask().view_as(query.weight)
            assert pruned.any() and not query.weight.grad[pruned].any()
            assert set(last_runs(query.layout)) == {"fwd", "dgrad", "wgrad"}
        return model, float(loss)

    (one, loss), (all_, theirs) = gradients(False), gradients(True)
    assert loss == pytest.approx(theirs, rel=1e-3)
    for (name, p), q in zip(one.named_parameters(), all_.parameters(), strict=True):
        # The key's bias moves all scores of a query alike: its gradient is rounding alone.
        if not name.endswith("key.bias"):
            assert (p.grad - q.grad).norm() <= 3e-2 * p.grad.norm(), name


def test_layers_are_stacked_only_where_that_changes_nothing():
    def stacks(change) -> bool:
        model = make_model()
        attention = next(m for m in model.modules() if isinstance(m, SelfAttention))
        change(attention)
        with weights_cast(model, torch.bfloat16):
            return attention.stack is not None

    def shared(attention) -> None:
        attention.key.weight = attention.query.weight

    assert stacks(lambda attention: None)
    assert not stacks(shared)
    assert not stacks(lambda attention: attention.key.register_forward_hook(lambda *args: None))
    assert not stacks(lambda attention: attention.value.requires_grad_(False))
    assert not stacks(lambda attention: attention.value.register_parameter("bias", None))
    assert not stacks(lambda attention: attention.query.bfloat16())
    assert not stacks(lambda attention: setattr(attention, "query", nn.Identity()))
    assert not stacks(lambda attention: sparsify(attention, include=["query"], block_size=16))


def test_layers_have_their_parameters_again_whatever_happens():
    model = make_model()
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError), weights_cast(model, torch.bfloat16):
        assert model.mel_out.weight.dtype == torch.bfloat16
        raise RuntimeError
    assert all(p is before[name] for name, p in model.named_parameters())


def test_shared_frozen_and_watched_parameters():
    torch.manual_seed(0)
    one = nn.ModuleDict({n: nn.Linear(4, 4) for n in ("a", "b", "frozen")})
    one["b"].weight = one["a"].weight
    one["frozen"].requires_grad_(False)
    other = copy.deepcopy(one)
    seen: list[Tensor] = []
    for model in (one, other):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model["a"].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (other["frozen"](other["b"](other["a"](x)))).float().sum().backward()
        with weights_cast(one, torch.bfloat16):
            assert one["a"].weight is one["b"].weight
            assert one["frozen"].weight.dtype == torch.float32
            y = one["frozen"](one["b"](one["a"](x)))
    with gradients_added(one):
        y.float().sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(seen[0], seen[1])


def test_a_backward_that_fails_leaves_the_gradients():
    model = nn.Linear(2, 2)
    grads = [torch.ones_like(p) for p in model.parameters()]
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    with pytest.raises(RuntimeError), gradients_added(model):
        model(torch.ones(1, 2)).sum().backward()
        raise RuntimeError
    assert all(
        p.grad is g and g.eq(1).all() for p, g in zip(model.parameters(), grads, strict=True)
    )
