# SPDX-License-Identifier: Apache-2.0
"""The factor on the learning rate: exact under every scheduler, seen by none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from sniper.sparsity.lr_scale import LrScale

A, B = 4.0, 2.5  # factors


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]


def scaled(ps: list[nn.Parameter]) -> LrScale:
    scale = LrScale()
    scale.set({ps[0]: A, ps[1]: B, ps[2]: 1.0})
    return scale


def step(optimizer: torch.optim.Optimizer, ps: list[nn.Parameter]) -> list[float]:
    """How far a step with gradients of 1 moves each parameter."""
    before = [p.detach().clone() for p in ps]
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return [(b - p.detach())[0].item() for b, p in zip(before, ps, strict=True)]


SCHEDULERS = {
    "step": lambda o: lrs.StepLR(o, 2, gamma=0.5),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "lambda": lambda o: lrs.LambdaLR(o, lambda i: 1 / (i + 1)),
    "multiplicative": lambda o: lrs.MultiplicativeLR(o, lambda i: 0.95),
    "cycle": lambda o: lrs.OneCycleLR(o, max_lr=0.3, total_steps=20, cycle_momentum=False),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("groups", ["one", "two", "three"])
def test_exact_under_schedulers(name, groups):
    ps = params()
    split = {"one": [ps], "two": [ps[:1], ps[1:]], "three": [[p] for p in ps]}[groups]
    optimizer = torch.optim.SGD([{"params": g} for g in split], lr=0.1)
    twin_params = params()
    twin = torch.optim.SGD(twin_params, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    scheduler, twin_scheduler = SCHEDULERS[name](optimizer), SCHEDULERS[name](twin)
    for _ in range(8):
        moved, plain = step(optimizer, ps), step(twin, twin_params)
        lr = twin.param_groups[0]["lr"]
        assert moved == pytest.approx([A * lr, B * lr, lr], rel=1e-9)
        assert plain == pytest.approx([lr] * 3, rel=1e-9)
        for s in (scheduler, twin_scheduler):
            s.step(*([1.0] if name == "plateau" else []))
        assert [g["lr"] for g in optimizer.param_groups] == [twin.param_groups[0]["lr"]] * len(
            split
        )
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g) for g in split]


def test_groups_are_the_same_objects_and_the_state_dict_is_the_optimizers_own():
    ps = params()
    optimizer = torch.optim.Adam(ps, lr=0.1)
    groups = optimizer.param_groups
    expected = set(groups[0])
    scale = scaled(ps)
    scale.attach(optimizer)
    step(optimizer, ps)
    assert optimizer.param_groups is groups
    assert groups[0]["params"] == ps
    assert set(groups[0]) == expected
    assert len(optimizer.state_dict()["param_groups"]) == 1


def test_adam_matches_a_group_per_factor():
    ps, qs = params(), params()
    ours = torch.optim.Adam(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(ours)
    theirs = torch.optim.Adam(
        [{"params": [q], "lr": 0.1 * f} for q, f in zip(qs, (A, B, 1.0), strict=True)]
    )
    for _ in range(5):
        step(ours, ps), step(theirs, qs)
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))


def test_attached_twice_scales_once():
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    scale.attach(optimizer)
    assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])


def test_detach_and_back_to_one():
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    scale.set({})
    assert step(optimizer, ps) == pytest.approx([0.1] * 3)
    scale.set({ps[0]: A})
    assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1, 0.1])
    scale.detach()
    assert step(optimizer, ps) == pytest.approx([0.1] * 3)


def test_two_optimizers():
    ps = params()
    first, second = torch.optim.SGD(ps[:1], lr=0.1), torch.optim.SGD(ps[1:], lr=0.01)
    scale = scaled(ps)
    scale.attach(first)
    scale.attach(second)
    assert step(first, ps) == pytest.approx([0.1 * A, 0, 0])
    assert step(second, ps) == pytest.approx([0, 0.01 * B, 0.01])


class Failing(torch.optim.SGD):
    """Raises on its first step."""

    failed = False

    def step(self, closure=None):
        if not self.failed:
            self.failed = True
            raise RuntimeError("out of memory")
        return super().step(closure)


def test_after_a_step_that_raised():
    ps = params()
    optimizer = Failing(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(optimizer, ps)
    for _ in range(2):
        assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["params"] == ps
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_rate_that_is_a_tensor():
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=torch.tensor(0.1))
    scale = scaled(ps)
    scale.attach(optimizer)
    assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.1)
