# SPDX-License-Identifier: Apache-2.0
"""The asked sparsity is reached, and no parameter is sparser than its share of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sniper import Sniper
from sniper.sparsity.spread import cap_of, spread_plan

# One layer whose saliencies are small, one whose are large, one between.
SCORES = {
    "low": torch.tensor([0.01, 0.04, 0.02, 0.03]),
    "high": torch.tensor([[9.0, 7.0], [6.0, 8.0]]),
    "mixed": torch.tensor([0.05, 1.0]),
}


def kept(plan, sparsity: float) -> dict[str, list]:
    return {name: mask.int().tolist() for name, mask in plan.masks[sparsity].items()}


def test_without_spread_every_parameter_is_equally_sparse():
    assert kept(spread_plan(SCORES, [0.5], 0.0), 0.5) == {
        "low": [0, 1, 0, 1],
        "high": [[1, 0], [0, 1]],
        "mixed": [0, 1],
    }


def test_with_all_spread_one_threshold_decides():
    assert kept(spread_plan(SCORES, [0.5], 1.0), 0.5) == {
        "low": [0, 0, 0, 0],
        "high": [[1, 1], [1, 1]],
        "mixed": [0, 1],
    }


def test_between_the_cap_follows_the_sparsity_and_others_make_up_for_it():
    """At 60 % no parameter is sparser than 80 %: `low` and `mixed` keep one each, and two of
    `high` go in their place.
    """
    plan = spread_plan(SCORES, [0.6], 0.5)
    assert cap_of(0.6, 0.5) == pytest.approx(0.8)
    assert kept(plan, 0.6) == {"low": [0, 1, 0, 0], "high": [[1, 0], [0, 1]], "mixed": [0, 1]}
    assert plan.counts[0.6] == {"low": 1, "high": 2, "mixed": 1}


def test_nothing_and_everything():
    plan = spread_plan(SCORES, [0.0, 1.0], 0.25)
    assert all(mask.all() for mask in plan.masks[0.0].values())
    assert not any(mask.any() for mask in plan.masks[1.0].values())


def test_equal_saliencies_go_in_their_order():
    plan = spread_plan({n: torch.ones(4) for n in "ab"}, [0.75, 0.5], 0.0)
    assert kept(plan, 0.75) == {"a": [0, 0, 0, 1], "b": [0, 0, 0, 1]}
    assert kept(plan, 0.5) == {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    plan = spread_plan({n: torch.ones(4) for n in "ab"}, [0.5], 0.5)
    assert kept(plan, 0.5) == {"a": [0, 0, 0, 1], "b": [0, 1, 1, 1]}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_saliencies_that_cannot_be(bad: float):
    with pytest.raises(ValueError, match="saliency: .* in b"):
        spread_plan({"a": torch.ones(2), "b": torch.tensor([1.0, bad])}, [0.5], 0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 1.0])
def test_random_saliencies(seed: int, spread: float):
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, scale: float) -> Tensor:
        return torch.rand(n, generator=generator) * scale

    scores = {f"p{i}": draw(100 + 50 * i, 10.0**-i) for i in range(6)}
    total = sum(s.numel() for s in scores.values())
    plan = spread_plan(scores, [0.8, 0.5, 0.2, 0.0], spread)
    before = None
    for sparsity, masks in plan.masks.items():
        active = sum(int(m.sum()) for m in masks.values())
        assert 0 <= active - round((1 - sparsity) * total) <= len(scores)
        for name, mask in masks.items():
            assert plan.counts[sparsity][name] == int(mask.sum())
            assert 1 - float(mask.double().mean()) <= cap_of(sparsity, spread) + 1e-9
            if before is not None:
                assert (mask >= before[name]).all()
            own, rest = scores[name][mask], scores[name][~mask]
            if len(own) and len(rest):
                assert own.min() >= rest.max()  # in a parameter the largest stay
        before = masks


@pytest.mark.parametrize("spread", [-0.1, 1.1, float("nan")])
def test_a_spread_that_cannot_be(spread: float):
    with pytest.raises(ValueError, match="spread"):
        spread_plan(SCORES, [0.5], spread)
    with pytest.raises(ValueError, match="spread"):
        Sniper(nn.Linear(64, 64), {0: 0.5}, spread=spread)


@pytest.mark.parametrize("block_size", [16, None])
def test_a_model_is_as_sparse_as_the_schedule_says(block_size: int | None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 128), nn.Linear(128, 16))
    with torch.no_grad():
        model[0].weight.mul_(0.01)  # nothing of it would stay under one threshold
    sniper = Sniper(model, {0: 0.75, 1: 0.0}, block_size=block_size, spread=0.2)
    sniper.score([torch.randn(8, 64)], lambda m, x: m(x).square().mean())
    sniper.step(0)
    densities = sniper.densities()
    assert min(densities.values()) >= 1 - cap_of(0.75, 0.2) - 1e-9
    sizes = {name: p.numel() for name, p in model.named_parameters() if name in densities}
    active = sum(densities[name] * n for name, n in sizes.items()) / sum(sizes.values())
    assert active == pytest.approx(0.25, abs=0.03)
