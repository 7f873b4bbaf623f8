# SPDX-License-Identifier: Apache-2.0
"""Factors on the learning rate, exact under every scheduler and seen by none; moments of weights
that come back.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import lr_scheduler as lrs

from sniper import LearningRateScale, NewWeights, Sniper
from sniper.optim import Adam
from sniper.sparsity.optimizer import RateFactors, as_list, check_optimizers, prime

A, B = 4.0, 2.5  # factors


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]


def scaled(ps: list[nn.Parameter]) -> RateFactors:
    scale = RateFactors()
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


def test_two_on_one_optimizer():
    """Encoder and decoder with a Sniper each: neither puts back what the other has split."""
    for kind in (torch.optim.SGD, Adam):
        ps = params()
        ps = [nn.Parameter(p.detach().float()) for p in ps]
        optimizer = kind(ps, lr=0.1)
        first, second = RateFactors(), RateFactors()
        first.set({ps[0]: A})
        second.set({ps[1]: B})
        first.attach(optimizer)
        second.attach(optimizer)
        for _ in range(3):
            assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1], rel=1e-4)
        assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["lr"] == 0.1
        second.set({ps[1]: 1.0})
        assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1, 0.1], rel=1e-4)
        first.detach()
        assert step(optimizer, ps) == pytest.approx([0.1] * 3, rel=1e-4)


def test_what_another_left_on_an_optimizer_does_not_multiply():
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=0.1)
    gone = scaled(ps)
    gone.attach(optimizer)
    del gone  # without detach()
    again = RateFactors()
    again.set({ps[0]: B, ps[1]: 1.0})
    again.attach(optimizer)
    for _ in range(2):
        assert step(optimizer, ps) == pytest.approx([0.1 * B, 0.1, 0.1])


def test_a_closure_that_raises_leaves_whole_groups():
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    scheduler = lrs.ExponentialLR(optimizer, 0.5)

    def closure():
        raise RuntimeError("out of memory")

    for how in ((closure,), {"closure": closure}):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(*how) if isinstance(how, tuple) else optimizer.step(**how)
        assert len(optimizer.state_dict()["param_groups"]) == 1
    scheduler.step()
    assert step(optimizer, ps) == pytest.approx([0.05 * A, 0.05 * B, 0.05])


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


def test_one_several_or_no_optimizers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    assert as_list(None) == []
    assert as_list(optimizer) == [optimizer]
    assert as_list((optimizer, optimizer)) == [optimizer, optimizer]


def test_wrapped_optimizers_are_unwrapped():
    from accelerate import Accelerator

    plain = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    wrapped = Accelerator(cpu=True).prepare(plain)
    assert wrapped is not plain
    assert as_list(wrapped) == as_list([wrapped]) == [plain]


def test_new_weights_get_the_mean_second_moment_of_the_active_ones():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.Adam([p], lr=1.0, amsgrad=True)
    p.grad = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    optimizer.step()
    active = torch.tensor([[True, True], [False, False]])
    newly = torch.tensor([[False, False], [True, False]])
    prime([optimizer], p, active, newly)
    state = optimizer.state[p]
    for name in ("exp_avg_sq", "max_exp_avg_sq"):
        # 0.001 * (1 + 9) / 2, for the one weight that becomes active
        torch.testing.assert_close(state[name], torch.tensor([[0.001, 0.009], [0.005, 0.0]]))
    torch.testing.assert_close(state["exp_avg"], torch.tensor([[0.1, 0.3], [0.0, 0.0]]))
    prime([optimizer], p, active, torch.tensor([[False, False], [False, True]]), times=4.0)
    torch.testing.assert_close(state["exp_avg_sq"], torch.tensor([[0.001, 0.009], [0.005, 0.02]]))


def test_an_optimizer_without_second_moments_is_left_alone():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    p.grad = torch.ones(2)
    optimizer.step()
    prime([optimizer], p, torch.tensor([True, False]), torch.tensor([False, True]))
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], torch.ones(2))


def first_step_of_new_weights(prime_moments: float) -> float:
    """Largest step, in learning rates, of weights that became active after 100 updates."""
    torch.manual_seed(0)
    model = nn.Linear(32, 32, bias=False)
    sniper = Sniper(
        model,
        {0: 0.5, 1: 0.0},
        block_size=16,
        new_weights=NewWeights(restore_init=False, prime_moments=prime_moments),
        lr_scale=None,
    )
    x = torch.randn(64, 32)

    def loss_fn(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (m(batch) - batch.roll(1, 1)).square().mean()

    sniper.score([x], loss_fn)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sniper.step(0, optimizer)
    newly = model.weight.detach() == 0
    for update in range(101):
        if update == 100:
            sniper.step(1, optimizer)
            before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss_fn(model, torch.randn(64, 32)).backward()
        optimizer.step()
    assert newly.any()
    return ((model.weight.detach() - before)[newly].abs().max() / 1e-3).item()


def test_primed_weights_do_not_leap():
    primed = first_step_of_new_weights(prime_moments=1.0)
    assert first_step_of_new_weights(prime_moments=0.0) > 0.9
    assert primed < 0.5
    assert 0.2 * primed < first_step_of_new_weights(prime_moments=16.0) < 0.3 * primed


@pytest.mark.parametrize("wrong", ["adam", 3, [3], {"lr": 0.1}, object()])
def test_what_is_no_optimizer(wrong):
    with pytest.raises(ValueError, match="optimizer: expected a torch.optim.Optimizer.*, got "):
        as_list(wrong)


def test_optimizers_that_masks_cannot_follow():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    good, foreign = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(other.parameters())
    check_optimizers([good], model, scaled=True)
    with pytest.raises(ValueError, match="expected one of the model's parameters, got Adam"):
        check_optimizers([good, foreign], model, scaled=False)
    lbfgs = torch.optim.LBFGS(model.parameters())
    check_optimizers([lbfgs], model, scaled=False)
    with pytest.raises(ValueError, match="got LBFGS, which has one for all: .*lr_scale=None"):
        check_optimizers([lbfgs], model, scaled=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LearningRateScale(0.5), "max: expected 1 or more, got 0.5"),
        (lambda: LearningRateScale(float("nan")), "max: expected 1 or more, got nan"),
        (lambda: LearningRateScale("2"), "max: expected 1 or more, got '2'"),
        (lambda: NewWeights(prime_moments=-1.0), "prime_moments: expected 0 or more, got -1"),
        (lambda: NewWeights(prime_moments=float("inf")), "expected 0 or more, got inf"),
        (lambda: NewWeights(prime_moments=True), "expected 0 or more, got True"),
        (lambda: NewWeights("no"), "restore_init: expected a bool, got 'no'"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_factors():
    scale = LearningRateScale(4.0)
    assert [scale.factor(d) for d in (1.0, 0.5, 0.25, 0.1, 0.0)] == [1.0, 2.0, 4.0, 4.0, 1.0]


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as people have it: groups shared with the one that updates."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


def test_wrappers_are_looked_into(tmp_path):
    ps = params()
    sam = Sam(ps, lr=0.1)
    (inner,) = as_list(sam)
    assert inner is sam.base_optimizer
    scale = scaled(ps)
    scale.attach(inner)
    assert step(sam, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])
    assert sam.param_groups is inner.param_groups and len(sam.param_groups) == 1
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        ps = params()
        zero = ZeroRedundancyOptimizer(ps, optimizer_class=torch.optim.SGD, lr=0.1)
        scale = scaled(ps)
        scale.attach(*as_list(zero))
        assert step(zero, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("group", [{"lr": None}, {"lr": 0.0, "relative_step": True}])
def test_an_optimizer_that_sets_its_own_rate_is_refused(group):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0].update(group)
    with pytest.raises(ValueError, match="got SGD, which sets its own: make .* lr_scale=None"):
        check_optimizers([optimizer], model, scaled=True)
    check_optimizers([optimizer], model, scaled=False)


def test_a_step_that_is_compiled_keeps_the_factors():
    torch._dynamo.reset()
    ps = params()
    optimizer = torch.optim.SGD(ps, lr=0.1)
    scale = scaled(ps)
    scale.attach(optimizer)
    optimizer.step, eager = torch.compile(optimizer.step, backend="eager"), optimizer.step
    assert step(optimizer, ps) == pytest.approx([0.1 * A, 0.1 * B, 0.1])
    scale.set({ps[0]: 1.0, ps[1]: A, ps[2]: B})  # another stage
    assert step(optimizer, ps) == pytest.approx([0.1, 0.1 * A, 0.1 * B])
    optimizer.step = eager
    assert len(optimizer.param_groups) == 1


class Hybrid(torch.optim.SGD):
    """Updates one parameter itself and leaves the others to another."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.optimizer = torch.optim.AdamW(self.param_groups[0]["params"][1:], **options)


def test_one_that_shares_the_work_is_no_wrapper():
    hybrid = Hybrid(params(), lr=0.1)
    assert as_list(hybrid) == [hybrid]
