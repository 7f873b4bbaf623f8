# SPDX-License-Identifier: Apache-2.0
"""Saliency against autograd of explicit masks, and nothing left behind."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sniper import Sniper, saliency
from sniper.ops import use_backend
from sniper.tts.model.transformer import same_conv


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


class Net(nn.Module):
    """Linear, Conv1d, norms, an embedding, and a parameter that no forward uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(6, 4)
        self.embed = nn.Embedding(5, 4)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.conv(x)).relu())
        return self.out(y.mean(2)) + self.embed.weight.sum(0)


def batches(n: int = 3) -> list[Tensor]:
    return [torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def test_equals_the_gradient_of_explicit_masks():
    model = Net().eval()
    data = batches()
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters()}
    total = 0
    for batch in data:
        masked = {n: p.detach() * masks[n] for n, p in model.named_parameters()}
        total = total + functional_call(model, masked, (batch,)).square().mean()
    names = ["conv.weight", "conv.bias", "out.weight", "out.bias"]
    expected = torch.autograd.grad(total, [masks[n] for n in names])
    got = saliency(model, data, mean_square)
    assert list(got) == ["unused", *names]
    for name, grad in zip(names, expected, strict=True):
        torch.testing.assert_close(got[name], grad.abs(), rtol=1e-5, atol=1e-7)
    assert got["unused"].tolist() == [0, 0]


def test_convolutions_are_torchs_to_the_last_bit():
    """Whatever is faster in training: masks must not depend on it."""
    torch.manual_seed(0)
    ours, plain = same_conv(64, 64, 3), nn.Conv1d(64, 64, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    batches = [torch.randn(4, 64, 90)]
    with use_backend("cpu"):
        a, b = (saliency(m, batches, lambda m, x: m(x).square().mean()) for m in (ours, plain))
    assert torch.equal(a["weight"], b["weight"])


def test_batches_add_up_with_their_signs():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    loss = lambda m, b: (m(torch.ones(1, 1)) * b).sum()  # noqa: E731
    assert saliency(model, [3.0, -1.0], loss)["weight"].item() == 4.0  # |2 * (3 - 1)|
    assert saliency(model, [3.0, -3.0], loss)["weight"].item() == 0.0
    assert saliency(model, iter([-3.0]), loss)["weight"].item() == 6.0


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind(training, raises):
    model = Net().train(training)
    model.drop.eval()  # modules may be in different modes
    mean_square(model, batches()[0]).backward()
    before = copy.deepcopy(model.state_dict())
    grads = {n: p.grad for n, p in model.named_parameters()}
    values = {n: None if g is None else g.clone() for n, g in grads.items()}
    modes = [m.training for m in model.modules()]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def loss_fn(m: nn.Module, batch: Tensor) -> Tensor:
        torch.rand(3), np.random.rand(3), random.random()
        m.train()
        loss = mean_square(m, batch)
        if raises:
            raise KeyError("from the loss")
        return loss

    if raises:
        with pytest.raises(KeyError, match="from the loss"):
            saliency(model, batches(), loss_fn)
    else:
        saliency(model, batches(), loss_fn)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert after["norm.num_batches_tracked"] == int(training)
    for name, p in model.named_parameters():
        assert p.grad is grads[name]
        assert p.grad is None or torch.equal(p.grad, values[name])
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert random.getstate() == states[2]


def test_iterating_the_batches_leaves_the_generators_alone():
    loader = torch.utils.data.DataLoader(torch.randn(8, 3, 7), batch_size=4, shuffle=True)
    model = Net()
    state = torch.get_rng_state()
    saliency(model, loader, mean_square)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_that_are_replaced_or_expanded():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("shared", torch.zeros(1).expand(4))
            self.register_buffer("absent", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    model = Counting()
    calls = model.calls
    saliency(model, [torch.randn(2, 3)], mean_square)
    assert model.calls is calls
    assert calls.item() == 0


def test_works_inside_no_grad():
    model, data = Net().eval(), batches()
    expected = saliency(model, data, mean_square)
    with torch.no_grad():
        got = saliency(model, data, mean_square)
    assert all(torch.equal(got[n], expected[n]) for n in expected)
    assert not any(s.requires_grad for s in got.values())


def test_earlier_gradients_do_not_count():
    model, data = Net().eval(), batches()
    expected = saliency(model, data, mean_square)
    mean_square(model, data[0]).backward()
    got = saliency(model, data, mean_square)
    assert all(torch.equal(got[n], expected[n]) for n in expected)


def test_exclude_and_frozen():
    model = Net()
    model.out.weight.requires_grad_(False)
    assert list(saliency(model, batches(), mean_square, exclude=("embed", "conv"))) == [
        "unused",
        "out.bias",
    ]


class Hidden(nn.Module):
    """Normalisation and embeddings under names that do not say so, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(5, 4)
        self.h = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.ln_1 = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ln_1(self.h[1](self.h[0](self.wte(x)))))


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ((), ["h.0.weight", "h.0.bias", "h.1.weight", "h.1.bias"]),
        (("h.0",), ["h.1.weight", "h.1.bias"]),
        (("h.[1-9]", "*.bias"), ["h.0.weight"]),
        (("norm", "embed", "bias"), ["h.0.weight", "h.1.weight"]),
    ],
)
def test_left_out_by_type_and_by_pattern(exclude, left):
    scores = saliency(Hidden(), [torch.arange(5)], mean_square, exclude=exclude)
    assert list(scores) == left


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"exclude: expected patterns .*, got 'decoder', 'h\.7'"):
        saliency(Hidden(), [torch.arange(5)], mean_square, exclude=["decoder", "h.0", "h.7"])


def test_tied_parameters_count_once_with_both_uses():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    got = saliency(model, [torch.ones(1, 2)], lambda m, b: m(b).sum())
    w = model[0].weight.detach().requires_grad_()
    (grad,) = torch.autograd.grad((torch.ones(1, 2) @ w.t() @ w.t()).sum(), w)
    assert list(got) == ["0.weight"]
    torch.testing.assert_close(got["0.weight"], (grad * w).abs().detach())


def test_nan_names_the_parameters():
    with pytest.raises(ValueError, match="NaN or infinity in weight.*check the loss"):
        saliency(nn.Linear(2, 2), [torch.tensor([[float("nan"), 1.0]])], mean_square)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (lambda m, b: m(b), r"scalar tensor, got shape \(4, 4\)"),
        (lambda m, b: m(b).sum().item(), "got float"),
        (lambda m, b: None, "got NoneType"),
        (lambda m, b: m(b).sum().detach(), "does not require grad"),
    ],
)
def test_bad_losses(loss_fn, words):
    with pytest.raises(ValueError, match=words):
        saliency(Net(), batches(), loss_fn)


def test_no_batches():
    with pytest.raises(ValueError, match="at least one batch"):
        saliency(Net(), [], mean_square)


def test_a_model_on_two_devices():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="one device, got parameters on cpu, meta"):
        saliency(model, [torch.ones(1, 2)], mean_square)


def test_a_model_without_values():
    with pytest.raises(ValueError, match="meta device"):
        saliency(nn.Linear(2, 2, device="meta"), [torch.ones(1, 2)], mean_square)


@pytest.mark.parametrize("exclude", [("weight", "bias"), ("",)])
def test_nothing_left_to_prune(exclude):
    with pytest.raises(ValueError, match="no trainable parameter is left"):
        saliency(nn.Linear(2, 2), [torch.ones(1, 2)], mean_square, exclude)


def test_exclude_must_not_be_one_string():
    with pytest.raises(ValueError, match="sequence of patterns, got the string 'norm'"):
        saliency(nn.Linear(2, 2), [torch.ones(1, 2)], mean_square, "norm")


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_weight_norm_makes_weights_of_is_left_alone(norm):
    """A row that is pruned whole has no length to divide by."""
    model = nn.Sequential(norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 16))
    sniper = Sniper(model, {0: 0.99, 1: 0.0}, block_size=None)
    sniper.score([torch.randn(8, 16)], mean_square)
    sniper.step(0)
    assert list(sniper.densities()) == ["0.bias", "2.weight", "2.bias"]
    assert torch.isfinite(model(torch.randn(2, 16))).all()


def test_optimizers_that_step_in_the_backward_pass_rest():
    """As in torch's tutorial: each parameter has an optimizer behind its gradient."""
    model = nn.Linear(4, 4)
    steps = []

    def step(p):
        steps.append(p)
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    scores = saliency(model, [torch.randn(2, 4)], lambda m, x: m(x).square().sum())
    assert scores["weight"].any() and not steps
    model(torch.randn(2, 4)).sum().backward()
    assert len(steps) == 2
