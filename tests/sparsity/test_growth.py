# SPDX-License-Identifier: Apache-2.0
"""Masks that grow by gradients."""

from __future__ import annotations

import pytest
import torch

from sniper import Fixed, Following
from sniper.sparsity.growth import grown_masks


def _bools(text: str) -> torch.Tensor:
    return torch.tensor([c == "#" for c in text])


ACTIVE = {"a": _bools("#..."), "b": _bools("....")}
GRADIENTS = {"a": torch.tensor([9.0, 1, 5, 2]), "b": torch.tensor([3.0, 4, 0, 0])}


@pytest.mark.parametrize(
    ("sparsity", "cap", "a", "b"),
    [
        # 8 values, 7 pruned; at a half 4 go: the largest of all, whosoever they are.
        (0.5, Fixed(1.0), "#.#.", "##.."),
        (0.625, Fixed(1.0), "#.#.", ".#.."),
        # No parameter sparser than the cap: b is filled up to a half of its own before that.
        (0.625, Following(0.0), "#.#.", "##.."),
        (0.75, Fixed(0.75), "#...", ".#.."),
        (0.5, Following(0.0), "#.#.", "##.."),
        (0.0, Following(0.1), "####", "####"),
    ],
)
def test_the_largest_gradients_come(sparsity: float, cap: Fixed | Following, a: str, b: str):
    stages = grown_masks(ACTIVE, GRADIENTS, [sparsity], cap)
    found = stages.masks[sparsity]
    assert found["a"].tolist() == _bools(a).tolist()
    assert found["b"].tolist() == _bools(b).tolist()
    assert stages.counts[sparsity] == {"a": a.count("#"), "b": b.count("#")}


def test_a_cap_fills_a_parameter_whose_gradients_are_small():
    small = {**GRADIENTS, "b": torch.tensor([0.1, 0.4, 0.2, 0.3])}
    free = grown_masks(ACTIVE, small, [0.5], Following(1.0)).masks[0.5]
    capped = grown_masks(ACTIVE, small, [0.5], Following(0.0)).masks[0.5]
    assert [m.sum().item() for m in free.values()] == [4, 0]
    assert [m.sum().item() for m in capped.values()] == [2, 2]
    assert capped["b"].tolist() == _bools(".#.#").tolist()


def test_stages_nest_and_what_is_active_stays():
    generator = torch.Generator().manual_seed(0)
    active = {n: torch.rand(6, 5, generator=generator) > 0.8 for n in "abc"}
    gradients = {n: torch.rand(6, 5, generator=generator) for n in "abc"}
    stages = grown_masks(active, gradients, [0.0, 0.2, 0.6], Following(0.1))
    before = active
    for sparsity in (0.6, 0.2, 0.0):
        masks = stages.masks[sparsity]
        assert all(bool(masks[n][before[n]].all()) for n in "abc")
        assert sum(int((~m).sum()) for m in masks.values()) == int(sparsity * 90 + 1e-9)
        before = masks
    assert torch.equal(
        active["a"], torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) > 0.8
    )


def test_equal_gradients_come_in_order():
    equal = {n: torch.zeros(4) for n in "ab"}
    found = grown_masks(ACTIVE, equal, [0.5], Fixed(1.0)).masks[0.5]
    assert [m.tolist() for m in found.values()] == [[True] * 4, [False] * 4]


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity in a"):
        grown_masks(ACTIVE, {**GRADIENTS, "a": torch.full((4,), float("nan"))}, [0.5], Fixed(1.0))
