# SPDX-License-Identifier: Apache-2.0
"""`Sniper` in whole training loops."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from sniper import (
    Fixed,
    Following,
    LearningRateScale,
    NewWeights,
    Sniper,
    SparsitySchedule,
    densify,
    optim,
    saliency,
)
from sniper.sparsity.blocks import expand_blocks, pool_blocks
from sniper.sparsity.masking import masks

SCHEDULE = {0: 0.75, 2: 0.4, 4: 0.0}
EPOCHS, STEPS = 6, 3


class Net(nn.Module):
    """A conv and three linears, one of which fits blocks of 16 but not of 32."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 64, 3, padding=1)
        self.norm = nn.LayerNorm(64)
        self.odd = nn.Linear(64, 48)
        self.back = nn.Linear(48, 32)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2)).transpose(1, 2).relu()
        return self.out(self.back(self.odd(self.norm(y)).relu()).relu())


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(step: int) -> Tensor:
    return torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(step))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().mean()


# Masks that the cap decides, weights that are restored, rates that grow much: where most happens.
EVENTFUL = {
    "cap": Fixed(0.75),
    "new_weights": NewWeights(restore_init=True, prime_moments=0.0),
    "lr_scale": LearningRateScale(max=10.0),
}
DEFAULTS = {"cap": Following(0.1), "new_weights": NewWeights(), "lr_scale": LearningRateScale()}


def make_sniper(model: nn.Module, schedule=SCHEDULE, **kwargs) -> Sniper:
    return Sniper(model, schedule, **{**EVENTFUL, **kwargs})


def scored(model: nn.Module, schedule=SCHEDULE, **kwargs) -> Sniper:
    sniper = make_sniper(model, schedule, **kwargs)
    sniper.score([batch(100), batch(101)], loss_fn)
    return sniper


def train(
    model: nn.Module,
    sniper: Sniper,
    optimizer: torch.optim.Optimizer,
    epochs: range = range(EPOCHS),
    after: Callable[[int], None] = lambda epoch: None,
) -> None:
    for epoch in epochs:
        sniper.step(epoch, optimizer)
        for i in range(STEPS):
            optimizer.zero_grad()
            loss_fn(model, batch(epoch * STEPS + i)).backward()
            optimizer.step()
        after(epoch)


def pruned(sniper: Sniper) -> dict[str, Tensor]:
    """Pruned weights by name, True where pruned."""
    params, targets = sniper._targets.parameters, sniper._targets
    return {n: ~targets.expand(n, targets.get_mask(n)) for n in params}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd_fused": partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": partial(Adam, lr=1e-2),
    "adam_foreach": partial(Adam, lr=1e-2, weight_decay=0.1, foreach=True),
    "adam_fused": partial(Adam, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("block_size", [16, None])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_and_their_moments_stay_zero(optimizer, block_size):
    model = make_net()
    sniper = scored(model, block_size=block_size)
    opt = OPTIMIZERS[optimizer](sniper.param_groups(1e-2))
    seen = []

    def check(epoch: int) -> None:
        params = sniper._targets.parameters
        for name, mask in pruned(sniper).items():
            p = params[name]
            assert not p[mask].any()
            tensors = [v for v in opt.state[p].values() if v.shape == p.shape]
            assert tensors
            assert not any(v[mask].any() for v in tensors)
            assert not p.grad[mask].any()
        seen.append(sum(int(m.sum()) for m in pruned(sniper).values()))

    train(model, sniper, opt, after=check)
    assert seen[0] == seen[1] > seen[2] == seen[3] > seen[4] == seen[5] == 0
    assert all(d == 1.0 for d in sniper.densities().values())


def test_masks_are_those_of_the_scores():
    model = make_net()
    expected_scores = saliency(copy.deepcopy(model), [batch(100), batch(101)], loss_fn)
    sniper = make_sniper(model, SCHEDULE, block_size=16)
    scores = sniper.score([batch(100), batch(101)], loss_fn)
    assert set(scores) == {"conv.weight", "odd.weight", "back.weight", "out.weight"}
    expected_scores = {name: expected_scores[name] for name in scores}
    for name, blocks in pool_blocks(expected_scores, 16).items():
        torch.testing.assert_close(scores[name], blocks)
    expected = masks(expected_scores, 0.75, 0.75, 16)
    sniper.step(0)
    assert model.conv.block_mask.tolist() == expected["conv.weight"].tolist()
    assert model.odd.block_mask.tolist() == expected["odd.weight"].tolist()


def test_element_masks_cover_biases_but_no_norms():
    sniper = scored(make_net(), block_size=None)
    assert set(sniper.densities()) == {
        f"{layer}.{kind}" for layer in ("conv", "odd", "back", "out") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("block_size", [16, None])
@pytest.mark.parametrize("restore", [True, False])
def test_newly_active_weights(block_size, restore):
    model = make_net()
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    sniper = scored(model, block_size=block_size, new_weights=NewWeights(restore, 0.0))
    opt = Adam(sniper.param_groups(1e-2))
    train(model, sniper, opt, range(2))
    for epoch in (2, 4):
        before = pruned(sniper)
        trained = {n: p.detach().clone() for n, p in sniper._targets.parameters.items()}
        sniper.step(epoch, opt)
        for name, p in sniper._targets.parameters.items():
            newly = before[name] & ~pruned(sniper)[name]
            expected = initial[name] if restore else torch.zeros_like(p)
            assert torch.equal(p[newly], expected[newly])
            assert torch.equal(p[~newly], trained[name][~newly])
        train(model, sniper, opt, range(epoch, epoch + 2))


def test_what_is_active_stays_active():
    sniper = scored(make_net(), {0: 0.9, 1: 0.7, 2: 0.5, 3: 0.2, 4: 0}, block_size=16)
    before = None
    for epoch in range(5):
        sniper.step(epoch)
        now = pruned(sniper)
        if before:
            assert not any((now[n] & ~before[n]).any() for n in now)
        before = now


@pytest.mark.parametrize("block_size", [16, None])
def test_no_parameter_is_sparser_than_the_cap(block_size):
    sniper = scored(make_net(), {0: 0.99}, block_size=block_size, cap=Fixed(0.5))
    sniper.step(0)
    for mask in pruned(sniper).values():
        size = (block_size or 1) ** min(mask.dim(), 2)
        one = size / mask.numel()  # the cap's own threshold prunes up to one more
        assert int(mask.sum()) / mask.numel() <= 0.5 + one + 1e-9


@pytest.mark.parametrize("block_size", [16, None])
def test_learning_rates(block_size):
    model = make_net()
    sniper = scored(model, block_size=block_size, lr_scale=LearningRateScale(3.0))
    opt = SGD(model.parameters(), lr=0.5)  # neither groups nor an order that we know
    sniper.step(0, opt)
    densities = sniper.densities()
    assert sniper.lr_scales() == {n: min(3.0, 1 / d) for n, d in densities.items()}
    assert 1.0 < sorted(sniper.lr_scales().values())[-3] <= max(sniper.lr_scales().values()) == 3.0
    masked = pruned(sniper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss_fn(model, batch(0)).backward()
    opt.step()
    for name, p in model.named_parameters():
        factor = sniper.lr_scales().get(name, 1.0)
        expected = before[name] - 0.5 * factor * p.grad
        if name in masked:
            expected = expected.masked_fill(masked[name], 0)
        torch.testing.assert_close(p.detach(), expected)
    assert opt.param_groups[0]["lr"] == 0.5
    sniper.step(4, opt)
    assert set(sniper.lr_scales().values()) == {1.0}


def test_rates_that_are_left_alone():
    sniper = scored(make_net(), block_size=16, lr_scale=None)
    sniper.step(0)
    assert set(sniper.lr_scales().values()) == {1.0}


def test_two_optimizers():
    model = make_net()
    sniper = scored(model, block_size=16)
    first = SGD(model.conv.parameters(), lr=0.1)
    second = Adam([p for n, p in model.named_parameters() if not n.startswith("conv")], lr=1e-2)
    sniper.step(0, [first, second])
    before = model.conv.weight.detach().clone()
    loss_fn(model, batch(0)).backward()
    first.step(), second.step()
    expected = before - 0.1 * sniper.lr_scales()["conv.weight"] * model.conv.weight.grad
    torch.testing.assert_close(model.conv.weight.detach(), expected)
    assert not any(sniper._targets.parameters[n][m].any() for n, m in pruned(sniper).items())


@pytest.mark.parametrize("block_size", [16, None])
@pytest.mark.parametrize(
    "make",
    [
        partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
        partial(Adam, lr=1e-2, weight_decay=0.1),
        partial(AdamW, lr=1e-2, weight_decay=0.1, amsgrad=True),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_masks_put_on_a_model_that_was_trained(make, block_size):
    """Moments, a pending gradient and their memory order must follow the weight."""
    results = []
    for how in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        model = make_net()
        opt = make(model.parameters(), **how)
        for i in range(3):
            opt.zero_grad(set_to_none=False)
            loss_fn(model, batch(i)).backward()
            opt.step()
        sniper = scored(model, block_size=block_size)
        sniper.step(0, opt)  # with a gradient pending
        opt.step()
        for i in range(3):
            opt.zero_grad(set_to_none=False)
            loss_fn(model, batch(i)).backward()
            opt.step()
        for name, mask in pruned(sniper).items():
            assert not sniper._targets.parameters[name][mask].any()
        results.append(model)
    for p, q, r in zip(*(m.parameters() for m in results), strict=True):
        torch.testing.assert_close(p, r, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(q, r, rtol=1e-3, atol=1e-4)


def paper_loop(model: nn.Module, schedule: dict[int, float], cap: float, lr: float) -> None:
    """The authors' rule, written out: mask before each forward, Adam unmasked, restore zeros."""
    prunable = {n: p for n, p in model.named_parameters() if "norm" not in n}
    initial = {n: p.detach().clone() for n, p in prunable.items()}
    scores = saliency(model, [batch(100), batch(101)], loss_fn)
    steps, active = SparsitySchedule(schedule), {}

    def before_forward(module: nn.Module, args: tuple) -> None:
        for name, mask in active.items():
            prunable[name].data.mul_(mask)

    model.register_forward_pre_hook(before_forward)
    opt = Adam([{"params": [p], "lr": lr} for p in model.parameters()], lr=lr)
    for epoch in range(EPOCHS):
        if steps.changes_at(epoch):
            new = masks(scores, steps.sparsity_at(epoch), cap)
            for name, p in prunable.items():
                if active:
                    p.data.mul_(active[name])
                    restored = (p.data == 0) & new[name]
                    p.data[restored] = initial[name][restored]
                else:
                    p.data.mul_(new[name])
            active.update(new)
            for group in opt.param_groups:
                (p,) = group["params"]
                density = [m.float().mean() for n, m in active.items() if prunable[n] is p]
                group["lr"] = lr * min(10.0, 1 / float(density[0])) if density else lr
        for i in range(STEPS):
            opt.zero_grad()
            loss_fn(model, batch(epoch * STEPS + i)).backward()
            opt.step()


def test_paper_exact_is_the_authors_rule():
    ours, theirs = make_net(), make_net()
    sniper = scored(ours, block_size=None, paper_exact=True)
    opt = Adam(sniper.param_groups(1e-2))
    moved = []

    def check(epoch: int) -> None:
        moments = [
            opt.state[p]["exp_avg"][~sniper._targets.get_mask(n)].any()
            for n, p in sniper._targets.parameters.items()
        ]
        moved.append(any(moments))

    train(ours, sniper, opt, after=check)
    assert moved == [True] * 4 + [False] * 2
    paper_loop(theirs, SCHEDULE, 0.75, 1e-2)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("paper_exact", [True, False])
def test_an_active_weight_that_is_exactly_zero(paper_exact):
    """The authors' rule restores it at a change, ours leaves it alone."""
    model = make_net()
    sniper = scored(model, block_size=None, paper_exact=paper_exact)
    initial = model.odd.weight.detach().clone()
    sniper.step(0)
    row, column = model.odd.weight.nonzero()[0].tolist()
    with torch.no_grad():
        model.odd.weight[row, column] = 0
    sniper.step(2)
    expected = initial[row, column] if paper_exact else torch.tensor(0.0)
    assert torch.equal(model.odd.weight[row, column], expected)


def save_and_load(tmp_path, model, sniper, opt, stop: int, block_size, **kwargs):
    """What a new process makes of a checkpoint after `stop` epochs."""
    state = {"model": model.state_dict(), "sniper": sniper.state_dict(), "opt": opt.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model = make_net(seed=1)
    sniper = make_sniper(model, SCHEDULE, block_size=block_size, **kwargs)
    opt = Adam(sniper.param_groups(1e-2), fused=True)
    model.load_state_dict(state["model"])
    sniper.load_state_dict(state["sniper"])
    opt.load_state_dict(state["opt"])
    return model, sniper, opt


@pytest.mark.parametrize(
    "kwargs",
    [
        {"block_size": 16},
        {"block_size": None},
        {"block_size": None, "paper_exact": True},
        {"block_size": 16, **DEFAULTS},
    ],
    ids=str,
)
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 5])
def test_resumed_bit_for_bit(tmp_path, stop, kwargs):
    through = make_net()
    sniper = scored(through, **kwargs)
    train(through, sniper, Adam(sniper.param_groups(1e-2), fused=True))

    model = make_net()
    sniper = scored(model, **kwargs)
    opt = Adam(sniper.param_groups(1e-2), fused=True)
    train(model, sniper, opt, range(stop))
    model, sniper, opt = save_and_load(tmp_path, model, sniper, opt, stop, **kwargs)
    train(model, sniper, opt, range(stop, EPOCHS))
    assert_same(model, through)


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
@pytest.mark.parametrize(("old", "new"), [(16, 32), (32, 16), (16, None), (None, 16), (None, 32)])
def test_resumed_with_another_block_size(tmp_path, stop, old, new):
    model = make_net()
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    sniper = scored(model, block_size=old)
    before = Adam(model.parameters(), lr=1e-2, fused=True)
    train(model, sniper, before, range(stop))
    was = {n: p.detach().clone() for n, p in model.named_parameters()}
    masked = pruned(sniper) if stop else {}
    state = {"model": model.state_dict(), "sniper": sniper.state_dict(), "opt": before.state_dict()}

    model = make_net(seed=1)
    sniper = make_sniper(model, SCHEDULE, block_size=new)
    model.load_state_dict(state["model"])
    sniper.load_state_dict(state["sniper"])
    opt = Adam(model.parameters(), lr=1e-2, fused=True)
    opt.load_state_dict(state["opt"])
    if stop:
        for name, mask in pruned(sniper).items():
            added = masked[name] & ~mask if name in masked else torch.zeros_like(mask)
            p = model.get_parameter(name)
            assert not p[mask].any()
            assert torch.equal(p[~mask & ~added], was[name][~mask & ~added])
            assert torch.equal(p[added], initial[name][added])
    train(model, sniper, opt, range(stop, EPOCHS))
    for name, mask in pruned(sniper).items():
        p = model.get_parameter(name)
        assert not mask.any()
        assert p.isfinite().all()
        assert opt.state[p]["exp_avg"].stride() == p.stride()


def test_a_schedule_that_ends_dense_can_follow_one_that_did_not():
    model = make_net()
    sniper = scored(model, {0: 0.75}, block_size=16)
    sniper.step(0)
    other = make_net()
    resumed = make_sniper(other, {0: 0.75, 1: 0.0}, block_size=16)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(sniper.state_dict())
    assert resumed.step(1) == 0.0
    assert set(resumed.densities().values()) == {1.0}


def test_loading_where_masks_are_in_force():
    sniper = scored(make_net(), block_size=16)
    sniper.step(0)
    with pytest.raises(ValueError, match="without masks in force.*new model and Sniper"):
        sniper.load_state_dict(sniper.state_dict())


def test_a_scored_state_that_never_stepped(tmp_path):
    sniper = scored(make_net(), block_size=16)
    other = make_net()
    resumed = make_sniper(other, SCHEDULE, block_size=16)
    resumed.load_state_dict(sniper.state_dict())
    assert resumed.scored
    assert resumed.sparsity is None
    resumed.step(0)
    assert resumed.sparsity == 0.75


def test_saved_state_does_not_move_with_training():
    model = make_net()
    sniper = scored(model, block_size=16)
    opt = Adam(model.parameters())
    sniper.step(0, opt)
    state = sniper.state_dict()
    twin = copy.deepcopy(state)
    train(model, sniper, opt, range(1, EPOCHS))
    assert state["sparsity"] == twin["sparsity"] == 0.75
    assert all(torch.equal(state["init"][n], twin["init"][n]) for n in twin["init"])
    assert len(twin["init"]) == 4


def test_a_deep_copied_model_keeps_its_blocks_and_follows_nobody():
    model = make_net()
    sniper = scored(model, block_size=16)
    sniper.step(0)
    twin = copy.deepcopy(model)
    weights = twin.conv.weight.detach().clone()
    density = model.conv.density
    sniper.step(4)
    assert model.conv.density == 1.0
    assert twin.conv.density == density < 1.0
    assert torch.equal(twin.conv.weight, weights)
    loss_fn(twin, batch(0)).backward()
    assert torch.equal(twin.conv.weight.grad != 0, weights != 0)


def test_a_model_that_changes_its_dtype():
    model = make_net()
    initial = model.odd.weight.detach().clone()
    sniper = scored(model, block_size=16, lr_scale=None)
    sniper.step(0)
    was = model.odd.weight != 0
    model.double()
    sniper.step(4)
    assert torch.equal(model.odd.weight[~was], initial.double()[~was])


def test_a_dense_schedule_needs_no_score():
    model, plain = make_net(), make_net()
    sniper = make_sniper(model, {0: 0}, block_size=16)
    opt = Adam(model.parameters())
    train(model, sniper, opt, range(2))
    assert not sniper.scored
    plain_opt = Adam(plain.parameters())
    for i in range(2 * STEPS):
        plain_opt.zero_grad()
        loss_fn(plain, batch(i)).backward()
        plain_opt.step()
    assert_same(model, plain)
    resumed = make_sniper(make_net(), {0: 0}, block_size=16)
    resumed.load_state_dict(sniper.state_dict())
    assert resumed.step(2) == 0.0


def test_a_layer_without_any_active_block():
    model = make_net()
    sniper = scored(model, {0: 1.0, 1: 0.0}, block_size=16, cap=Fixed(1.0))
    opt = Adam(model.parameters())
    assert sniper.step(0, opt) == 1.0
    assert set(sniper.densities().values()) == {0.0}
    assert set(sniper.lr_scales().values()) == {1.0}
    train(model, sniper, opt, range(2))
    assert all(p.isfinite().all() for p in model.parameters())


def test_order_of_calls():
    sniper = make_sniper(make_net(), SCHEDULE, block_size=16)
    with pytest.raises(ValueError, match=r"call score\(batches, loss_fn\) first"):
        sniper.step(0)
    sniper.score([batch(0)], loss_fn)
    asked = []
    for epoch in (0, 1, 2, 2.5, 3):
        sniper.step(epoch)
        asked.append(sniper.sparsity)
    assert asked == [0.75, 0.75, 0.4, 0.4, 0.4]
    with pytest.raises(ValueError, match="must not rise, got 0.4 then 0.75"):
        sniper.step(0)
    with pytest.raises(ValueError, match="not masked yet, got sparsity 0.4"):
        sniper.score([batch(0)], loss_fn)


def test_param_groups():
    model = make_net()
    model.out.bias.requires_grad_(False)
    groups = make_sniper(model, SCHEDULE, block_size=16).param_groups(0.1)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("masked", 0.1, 4),
        ("dense", 0.1, 5),
    ]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"schedule": {0: 40}}, "write 0.4"),
        ({"block_size": 7}, "at least one eligible Linear or Conv1d"),
        ({"block_size": 0}, "whole number >= 1"),
        ({"block_size": 16.0}, "whole number >= 1"),
        ({"cap": 0.75}, "cap: expected Fixed or Following, got 0.75"),
        ({"new_weights": True}, "new_weights: expected NewWeights, got True"),
        ({"lr_scale": 2.0}, "lr_scale: expected LearningRateScale or None, got 2.0"),
        ({"paper_exact": 1}, "paper_exact: expected bool, got 1"),
        ({"paper_exact": True}, "expected block_size=None, got 16"),
        ({"exclude": "norm"}, "sequence of patterns"),
        ({"exclude": ("",)}, "no trainable parameter is left"),
        ({"exclude": ("decoder",)}, "exclude: expected patterns that match .*got 'decoder'"),
    ],
)
def test_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        make_sniper(make_net(), **{"schedule": SCHEDULE, "block_size": 16, **kwargs})


def test_a_model_on_two_devices():
    model = make_net()
    model.out.to("meta")
    with pytest.raises(ValueError, match="one device, got parameters on cpu, meta"):
        make_sniper(model, SCHEDULE, block_size=16)


def test_nan_saliency_leaves_the_model_unmasked():
    model = make_net()
    sniper = make_sniper(model, SCHEDULE, block_size=16)
    with pytest.raises(ValueError, match="NaN or infinity"):
        sniper.score([batch(0) * float("nan")], loss_fn)
    assert not sniper.scored
    assert model.conv.block_mask is None


def test_the_papers_settings():
    snip = Sniper.paper(make_net(), SCHEDULE, exclude=["norm", "odd"], max_param_sparsity=0.9)
    assert (snip.block_size, snip.paper_exact, snip.cap) == (None, True, Fixed(0.9))
    assert snip.new_weights == NewWeights(restore_init=True, prime_moments=0.0)
    assert snip.lr_scale == LearningRateScale(max=10.0)
    assert {name.split(".")[0] for name in snip.densities()} == {"conv", "back", "out"}
    assert Sniper.paper(make_net(), SCHEDULE).cap == Fixed(1.0)
    defaults = Sniper(make_net(), SCHEDULE, block_size=16)
    assert {name: getattr(defaults, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("block_size", [16, None])
def test_masks_by_name(block_size):
    snip = make_sniper(make_net(), block_size=block_size)
    with pytest.raises(ValueError, match="masks: expected a scored model, got one without"):
        snip.masks()
    scores = snip.score([batch(100)], loss_fn)
    assert all(m.all() for m in snip.masks().values())
    snip.step(0)
    masks = snip.masks()
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}
    assert all(m.dtype == torch.bool for m in masks.values())
    assert not all(m.all() for m in masks.values())
    stages = {sparsity: snip.masks(sparsity) for sparsity in (0.75, 0.4, 0.0)}
    assert all(torch.equal(stages[0.75][n], m) for n, m in masks.items())
    assert sum(int(m.sum()) for m in stages[0.4].values()) > sum(
        int(m.sum()) for m in masks.values()
    )
    kept = snip.densities()
    for mask in (*masks.values(), *stages[0.75].values()):
        mask.zero_()  # copies
    assert snip.densities() == kept and all(m.any() for m in snip.masks().values())
    with pytest.raises(
        ValueError, match=r"expected one of the schedule, got 0.5; .*0.75, 0.4, 0.0"
    ):
        snip.masks(0.5)


def test_learning_rates_without_an_optimizer():
    snip = scored(make_net(), block_size=16)
    with pytest.warns(
        UserWarning, match=r"not scaled without the optimizer: call step\(epoch, opt"
    ):
        snip.step(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snip.step(1)  # said once
        for quiet in ({"lr_scale": None}, {"schedule": {0: 0.0}}):
            scored(make_net(), block_size=None, cap=Fixed(1.0), **quiet).step(0)
        attached = scored(make_net(), block_size=None, cap=Fixed(1.0))
        optimizer = SGD(attached.model.parameters(), lr=0.1)
        attached.step(0, optimizer), attached.step(1)


@pytest.mark.parametrize("block_size", [16, None])
def test_one_sniper_a_model(block_size):
    model = make_net()
    first = scored(model, block_size=block_size)
    first.step(0)
    for again in (model, model.odd, nn.Sequential(model)):
        with pytest.raises(ValueError, match="without a Sniper, got one whose .*call its detach"):
            make_sniper(again, block_size=block_size)
    first.detach()
    with pytest.raises(ValueError, match="step: expected a Sniper in use, got one after detach"):
        first.step(2)
    loss_fn(model, batch(0)).backward()
    assert all(p.grad.any() for p in model.parameters())
    second = scored(model, block_size=block_size)
    train(model, second, Adam(model.parameters(), lr=1e-2))
    assert set(second.densities().values()) == {1.0}


def test_masks_that_an_earlier_sniper_left():
    model = make_net()
    scored(model, block_size=16).step(0)  # it is gone, its masks are not
    with pytest.raises(ValueError, match="score: expected a model without masks.*sniper.densify"):
        scored(model, block_size=16)
    densify(model)
    assert scored(model, block_size=16).scored


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_sniper_is_not_copied_and_says_what_is(copied):
    with pytest.raises(TypeError, match="expected its state .*got the object: save .*state_dict"):
        copied(scored(make_net(), block_size=16))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_model_takes_the_papers_masks_along(copied):
    snip = scored(make_net(), block_size=None, paper_exact=True)
    snip.step(0)
    twin, masked = copied(snip.model), pruned(snip)["odd.weight"]
    for model in (twin, snip.model):
        nn.init.ones_(model.odd.weight)
    twin(batch(0))
    assert not twin.odd.weight[masked].any()
    assert snip.model.odd.weight[masked].all()


def test_lbfgs():
    model = make_net()
    snip = scored(model, block_size=16, lr_scale=None)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    snip.step(0, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch(0))
        loss.backward()
        return loss

    before = float(closure())
    optimizer.step(closure)
    assert float(closure()) < before
    for name, mask in pruned(snip).items():
        assert not model.get_parameter(name)[mask].any()


def test_a_state_that_lacks_a_mask():
    snip = scored(make_net(), block_size=16)
    lost = snip.state_dict()
    del lost["masks"][0.4]["odd.weight"]
    with pytest.raises(ValueError, match="a mask of odd.weight for sparsity 0.4, got none"):
        make_sniper(make_net(), block_size=16).load_state_dict(lost)
    narrow = scored(make_net(), block_size=16, exclude=["odd"]).state_dict()
    with pytest.raises(
        ValueError, match="a mask of odd.weight .*saved with this model and exclude"
    ):
        make_sniper(make_net(), block_size=16).load_state_dict(narrow)
    with pytest.raises(ValueError, match="sniper state: expected a mapping.*, got str"):
        make_sniper(make_net(), block_size=16).load_state_dict("sniper.pt")


def _train(sniper: Sniper, optimizer: Adam, epochs: range, *how) -> None:
    for epoch in epochs:
        sniper.step(epoch, optimizer, *how)
        for step in range(STEPS):
            loss_fn(sniper.model, batch(STEPS * epoch + step)).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("size", [16, None], ids=["blocks", "single weights"])
def test_growth_by_gradients_takes_what_has_the_largest(size: int | None):
    sniper = scored(make_net(), block_size=size, cap=Following(0.1), growth="gradient")
    optimizer = Adam(sniper.param_groups(1e-3))
    few = [batch(7), batch(8)]
    _train(sniper, optimizer, range(2), few, loss_fn)
    before = sniper.masks()
    planned = sniper.masks(0.4)
    # The same gradients by hand: of a model without masks whose pruned weights are 0.
    plain = make_net()
    plain.load_state_dict(sniper.model.state_dict())
    for x in few:
        loss_fn(plain, x).backward()
    named = dict(plain.named_parameters())
    sizes = {n: named[n].grad.abs() for n in before}
    if size is not None:
        sizes = pool_blocks(sizes, size)
    sniper.step(2, optimizer, few, loss_fn)
    after = sniper.masks()
    assert sniper.reached == pytest.approx(0.4, abs=0.02)
    assert all(bool(after[n][before[n]].all()) for n in before)
    new = torch.cat([sizes[n][after[n] & ~before[n]] for n in before])
    out = torch.cat([sizes[n][~after[n]] for n in before])
    # Caps and ties in no layer's way here but for a few.
    assert new.mean() > 1.5 * out.mean()
    assert any(not torch.equal(after[n], planned[n]) for n in before)
    assert all(not p.grad.any() for p in sniper.model.parameters() if p.grad is not None)


def test_growth_by_gradients_leaves_the_model_as_it_was_and_nests():
    settings = {"block_size": 16, "growth": "gradient", **DEFAULTS}
    sniper = scored(make_net(), **settings)
    optimizer = Adam(sniper.param_groups(1e-3))
    _train(sniper, optimizer, range(2), [batch(7)], loss_fn)
    weights = copy.deepcopy(sniper.model.state_dict())
    generator = torch.get_rng_state()
    sniper.step(2, optimizer, [batch(7)], loss_fn)
    assert all(torch.equal(v, weights[n]) for n, v in sniper.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(bool((sniper.masks(0.0)[n] >= m).all()) for n, m in sniper.masks(0.4).items())
    state = sniper.state_dict()
    other = make_sniper(make_net(), **settings)
    other.load_state_dict(state)
    assert all(torch.equal(m, other.masks()[n]) for n, m in sniper.masks().items())


def test_growth_by_gradients_wants_batches():
    sniper = scored(make_net(), block_size=16, growth="gradient")
    optimizer = Adam(sniper.param_groups(1e-3))
    sniper.step(0, optimizer)
    with pytest.raises(ValueError, match="expected batches and loss_fn, got none"):
        sniper.step(2, optimizer)
    assert sniper.sparsity == 0.75
    sniper.step(4, optimizer)  # a dense stage leaves nothing to choose
    with pytest.raises(ValueError, match="growth: expected one of score, gradient, got 'size'"):
        Sniper(make_net(), SCHEDULE, block_size=16, growth="size")


@pytest.mark.parametrize("size", [16, None], ids=["blocks", "single weights"])
def test_without_pruning_the_rates_alone_follow_the_masks(size: int | None):
    pruned = scored(make_net(), block_size=size, lr_scale=LearningRateScale(3.0))
    rates = scored(make_net(), block_size=size, lr_scale=LearningRateScale(3.0), prune=False)
    for epoch in (0, 2, 4):
        for sniper in (pruned, rates):
            sniper.step(epoch, Adam(sniper.model.parameters()))
        assert rates.lr_scales() == pytest.approx(pruned.lr_scales())
        assert rates.reached == 0
        assert rates.sparsity == pruned.sparsity
    assert rates.lr_scales() == dict.fromkeys(rates.lr_scales(), 1.0)
    assert set(rates.densities().values()) == {1.0}


def test_without_pruning_training_is_dense_training_at_those_rates():
    rates = scored(make_net(), block_size=16, lr_scale=LearningRateScale(2.0), prune=False)
    optimizer = Adam(rates.model.parameters(), lr=1e-3)
    _train(rates, optimizer, range(2))
    by_hand = make_net()
    scales = rates.lr_scales()
    groups = [
        {"params": [p], "lr": 1e-3 * scales.get(n, 1.0)} for n, p in by_hand.named_parameters()
    ]
    plain = Adam(groups)
    for step in range(2 * STEPS):
        loss_fn(by_hand, batch(step)).backward()
        plain.step()
        plain.zero_grad()
    for name, p in by_hand.named_parameters():
        torch.testing.assert_close(rates.model.state_dict()[name], p.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [None, 16], ids=["single weights", "blocks"])
def test_weights_that_were_assigned_are_masked(size: int | None):
    """`load_state_dict(assign=True)` puts other parameters there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=size)
    x = torch.randn(8, 32)
    sniper.score([x], lambda m, b: m(b).square().mean())
    sniper.step(0, torch.optim.SGD(model.parameters(), lr=0.1))
    state = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sniper.step(0.5, optimizer)
    masks = {n: p.detach() != 0 for n, p in model.named_parameters()}
    pruned = sum(int((~m).sum()) for n, m in masks.items() if n in sniper.densities())
    total = sum(p.numel() for p in sniper.masked_parameters().values())
    assert pruned / total == pytest.approx(sniper.reached) and sniper.reached > 0.4
    model(x).square().mean().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    moved = model[0].weight.detach() - before
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    factor = sniper.lr_scales()["0.weight"]
    active = masks["0.weight"]
    torch.testing.assert_close(moved[active], -0.1 * factor * model[0].weight.grad[active])


def test_weights_that_are_assigned_while_frozen_are_masked_once_they_are_trained():
    model = nn.Linear(32, 32)
    sniper = Sniper(model, {0: 0.5}, block_size=None, lr_scale=None)
    sniper.score([torch.randn(8, 32)], lambda m, b: m(b).square().mean())
    sniper.step(0)
    model.requires_grad_(False)
    model.load_state_dict(model.state_dict(), assign=True)
    sniper.step(0)
    model.requires_grad_(True)
    model.weight.sum().backward()
    assert torch.equal(model.weight.grad != 0, sniper.masks()["weight"])


def test_a_model_that_was_densified_under_its_sniper_is_told():
    model = nn.Sequential(nn.Linear(32, 32))
    sniper = Sniper(model, {0: 0.5}, block_size=16)
    densify(model)
    with pytest.raises(
        ValueError, match="expected its block-sparse layers, got 0.weight as Linear"
    ):
        sniper.step(0)
    assert "32x32  1.000" in sniper.summary()
    sniper.detach()


@pytest.mark.parametrize("change", ["other shape", "other kind", "weight norm"])
def test_a_module_that_was_exchanged_does_not_stop_the_step(change: str):
    """A head for another task, say; what it knew of it is masked as before."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    sniper = Sniper(model, {0: 0.5}, block_size=None)
    x = torch.randn(8, 32)
    sniper.score([x], lambda m, b: m(b).square().mean())
    sniper.step(0, torch.optim.SGD(model.parameters(), lr=0.1))
    if change == "weight norm":
        nn.utils.parametrizations.weight_norm(model[2])
    else:
        model[2] = nn.Linear(32, 7) if change == "other shape" else nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert (model[0].weight == 0).float().mean() > 0.3


class Holder(nn.Module):
    """Its loss does not call it, as a LightningModule's does not."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def loss(self, x: Tensor) -> Tensor:
        return (self.net(x) - x).square().mean()


def test_the_papers_masks_hold_where_the_loss_does_not_call_the_model():
    torch.manual_seed(0)
    model = Holder()
    sniper = Sniper.paper(model, {0: 0.8, 1: 0.0})
    x = torch.randn(8, 16)
    sniper.score([x], Holder.loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sniper.step(0, optimizer)
    for _ in range(3):
        model.loss(x).backward()
        optimizer.step()
        zeros = sum(int((p == 0).sum()) for p in model.parameters())
        assert zeros >= 0.75 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [8, None], ids=["blocks", "single weights"])
def test_a_layer_that_is_gone_is_told(size):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=size)
    sniper.score([torch.randn(4, 16)], lambda m, x: m(x).square().mean())
    sniper.step(0)
    model[2] = nn.Linear(16, 8)
    with pytest.raises(ValueError, match=r"got one without 2\.weight, which was"):
        sniper.step(1)
    del model[2]
    assert "2.weight" in sniper.summary()


def test_initial_values_that_a_state_lacks_are_told():
    model = make_net()
    sniper = scored(model, {0: 0.75}, block_size=16)
    sniper.step(0)  # the end of its schedule: nothing is to come back
    other = make_net()
    longer = make_sniper(other, {0: 0.75, 1: 0.0}, block_size=16)
    with pytest.warns(UserWarning, match="expected an initial value of .* weights come back at 0"):
        longer.load_state_dict(sniper.state_dict())


def test_larger_blocks_than_the_masks_were_chosen_for_say_why_less_is_reached():
    model = make_net()
    sniper = scored(model, {0: 0.6}, block_size=8, cap=Following(0.1))
    sniper.step(0)
    other = make_sniper(make_net(), {0: 0.6}, block_size=32, cap=Following(0.1))
    other.load_state_dict(sniper.state_dict())
    with pytest.warns(UserWarning, match="chosen for blocks of 8, and one of 32 is active where"):
        other.step(0)
    smaller = make_sniper(make_net(), {0: 0.6}, block_size=None, cap=Fixed(0.5))
    larger = scored(make_net(), {0: 0.6}, block_size=8, cap=Fixed(0.5))
    smaller.load_state_dict(larger.state_dict())
    with pytest.warns(UserWarning, match="no parameter may be sparser than the cap"):
        smaller.step(0)


def test_patterns_that_can_be_read_once_leave_layers_out_too():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    snip = Sniper(model, {0: 0.5}, block_size=16, exclude=(name for name in ["1"]))
    assert snip.exclude == ("1",) and type(model[1]) is nn.Linear


def test_smaller_blocks_than_the_masks_were_chosen_for_are_no_reason_for_still_smaller_ones():
    few = scored(make_net(), {0: 0.6}, block_size=32, cap=Following(0.1))
    weights = make_sniper(make_net(), {0: 0.6}, block_size=None, cap=Following(0.1))
    weights.load_state_dict(few.state_dict())
    with pytest.warns(UserWarning, match="chosen for blocks of 32 and stay as they were"):
        weights.step(0)
    tiny = Sniper(nn.Linear(2, 2, bias=False), {0: 0.6}, block_size=None, lr_scale=None)
    tiny.score([torch.randn(4, 2)], lambda m, x: m(x).square().mean())
    with pytest.warns(UserWarning, match="only 4 single weights .* in each parameter$"):
        tiny.step(0)


class ReadsAndCalls(nn.Module):
    """A decoder that is the transposed encoder, as autoencoders have it, and a penalty."""

    def __init__(self, pulled: bool):
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 32)
        self.pulled = pulled

    def forward(self, x):
        y = self.outer(self.inner(x).relu())
        if self.pulled:  # as L2-SP does
            return y.square().mean() + (self.inner.weight - 1).square().mean()
        return nn.functional.linear(y, self.inner.weight.t()).square().mean()


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, optim.Adam])
def test_a_loss_that_reads_a_weight_besides_gives_pruned_blocks_nothing(kind, pulled):
    torch.manual_seed(0)
    x, model = torch.randn(8, 32), ReadsAndCalls(pulled)
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=16)
    sniper.score([x], lambda m, x: m(x))
    optimizer = kind(sniper.param_groups(1e-2))
    sniper.step(0, optimizer)
    weight = model.inner.weight
    pruned = ~expand_blocks(sniper.masks()["inner.weight"].as_subclass(torch.Tensor), 16, (32, 32))
    assert pruned.any()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).backward()
        assert not weight.grad[pruned].any() and weight.grad[~pruned].any()
        optimizer.step()
    assert not optimizer.state[weight]["exp_avg"][pruned].any()


@pytest.mark.parametrize("block_size", [None, 16])
def test_what_was_left_in_pruned_weights_gradients_and_momentum_is_gone_when_they_return(
    block_size,
):
    torch.manual_seed(0)
    x, model = torch.randn(8, 32), ReadsAndCalls(False)
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=block_size)
    sniper.score([x], lambda m, x: m(x))
    optimizer = optim.Adam(sniper.param_groups(1e-2))
    sniper.step(0, optimizer)
    model(x).backward()
    optimizer.step()
    optimizer.zero_grad()
    weight = model.inner.weight
    pruned = weight == 0
    # By a hand that nobody sees, to what is cleared: no gradient has arrived.
    left = torch.ones_like(weight) if weight.grad is None else weight.grad
    weight.grad = left
    for tensor in (left, optimizer.state[weight]["exp_avg"]):
        tensor.data[pruned] = 3.0
    version = left._version
    sniper.step(1, optimizer)
    assert not left[pruned].any() and not optimizer.state[weight]["exp_avg"][pruned].any()
    assert left._version == version


@pytest.mark.parametrize("block_size", [None, 16])
def test_weights_that_are_tied_later_are_told(block_size):
    model = nn.ModuleDict({"embedding": nn.Embedding(32, 32), "head": nn.Linear(32, 32)})
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=block_size)
    sniper.score([torch.arange(8)], lambda m, i: m["head"](m["embedding"](i)).square().sum())
    model["head"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match="head.weight tied to another module's since: tie weights"):
        sniper.step(0)
    assert model["embedding"].weight.all()


def test_scores_of_zeros_are_told():
    model = nn.Sequential(nn.Linear(32, 32))
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=16)
    free = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match=r"got zeros alone: check that the loss depends on 0\."):
        sniper.score([0], lambda m, b: free * 2)


@pytest.mark.parametrize("block_size", [None, 16])
def test_complex_weights_are_left_out(block_size):
    model = nn.ModuleDict({"real": nn.Linear(32, 32, bias=False)})
    model["complex"] = nn.Linear(32, 32, dtype=torch.complex64)
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=block_size)
    x = torch.randn(4, 32)
    sniper.score([x], lambda m, x: m["complex"](m["real"](x).cfloat()).abs().sum())
    sniper.step(0)
    assert set(sniper.densities()) == {"real.weight"}
