# SPDX-License-Identifier: Apache-2.0
"""Masks, written out by hand."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from sniper.sparsity.masking import expand_blocks, is_eligible, masks, pool_blocks

T, F = True, False


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def one(values: Tensor, sparsity: float, **kwargs) -> list:
    return masks({"w": values}, sparsity, **kwargs)["w"].tolist()


def test_strictly_above_the_kth_smallest():
    assert one(t(5, 1, 4, 2, 3), 0.4) == [T, F, T, F, T]


def test_k_is_rounded_down():
    assert one(t(5, 1, 4, 2, 3), 0.59) == [T, F, T, F, T]  # int(2.95) = 2
    assert one(t(5, 1, 4, 2, 3), 0.19) == [T, T, T, T, T]  # int(0.95) = 0


def test_ties_with_the_threshold_are_pruned():
    assert one(t(1, 2, 2, 2, 3), 0.4) == [F, F, F, F, T]
    assert one(t(1, 1, 2, 2, 2), 0.4) == [F, F, T, T, T]
    assert one(t(0, 0, 0, 1), 0.25) == [F, F, F, T]


def test_one_threshold_for_all_parameters():
    result = masks({"a": t(1, 5), "b": t(2, 3, 4, 6).reshape(2, 2)}, 0.5)
    assert result["a"].tolist() == [F, T]
    assert result["b"].tolist() == [[F, F], [T, T]]


@pytest.mark.parametrize("values", [(3, 1, 2), (7, 7, 7), (0, 0, 0)])
def test_sparsity_0_keeps_everything(values):
    assert one(t(*values), 0.0) == [T, T, T]
    assert one(t(*values), 0, max_param_sparsity=0.0) == [T, T, T]


def test_sparsity_1_without_a_cap_prunes_everything():
    assert one(t(3, 1, 2), 1.0) == [F, F, F]
    assert one(t(3, 1, 2), 1) == [F, F, F]


def test_sparsity_1_with_a_cap():
    # k = 1 + int(0.5 * 4) = 3: only what is above the third smallest stays.
    assert one(t(4, 1, 3, 2), 1.0, max_param_sparsity=0.5) == [T, F, F, F]


def test_all_equal_without_a_cap_prunes_everything():
    assert one(t(2, 2, 2, 2), 0.25) == [F, F, F, F]


def test_one_value():
    assert one(t(3), 0.5) == [T]
    assert one(t(3), 1.0) == [F]
    assert one(t(3), 1.0, max_param_sparsity=0.5) == [T]  # int(0.5 * 1) = 0 are pruned


def test_cap_gives_a_parameter_its_own_threshold():
    saliency = {"low": t(1, 2, 3, 4), "high": t(11, 12, 13, 14, 15, 16, 17, 18)}
    without = masks(saliency, 0.5)
    assert without["low"].tolist() == [F, F, F, F]
    assert without["high"].tolist() == [F, F, T, T, T, T, T, T]
    capped = masks(saliency, 0.5, max_param_sparsity=0.5)
    assert capped["low"].tolist() == [F, F, F, T]
    assert capped["high"].tolist() == without["high"].tolist()


def test_exactly_at_the_cap_is_left_alone():
    saliency = {"a": t(1, 2, 9, 10), "b": t(3, 4, 5, 6)}
    assert masks(saliency, 0.25, max_param_sparsity=0.5)["a"].tolist() == [F, F, T, T]


def test_cap_that_leaves_nothing_takes_a_fixed_choice():
    saliency = {"zero": torch.zeros(8), "high": t(*range(1, 9))}
    result = masks(saliency, 0.5, max_param_sparsity=0.5)
    assert result["zero"].tolist() == [T, F, T, F, F, F, T, T]
    assert result["high"].tolist() == [T] * 8
    expected = [False] * 4 + [True] * 4
    random.Random(0).shuffle(expected)
    assert result["zero"].tolist() == expected


def test_fixed_choice_has_the_parameters_shape_and_leaves_random_alone():
    random.seed(5)
    before = random.getstate()
    mask = masks({"w": torch.ones(3, 5)}, 0.5, max_param_sparsity=0.8)["w"]
    assert random.getstate() == before
    expected = [False] * 12 + [True] * 3
    random.Random(0).shuffle(expected)
    assert mask.shape == (3, 5)
    assert mask.flatten().tolist() == expected


def test_fixed_choice_where_the_kth_is_the_largest():
    # k = 1 + int(0.75 * 4) = 4: nothing is above the largest.
    expected = [False] * 3 + [True]
    random.Random(0).shuffle(expected)
    assert expected == [F, F, F, T]
    assert one(t(1, 2, 3, 4), 1.0, max_param_sparsity=0.75) == expected


@pytest.mark.parametrize("cap", [1.0, 0.75, 0.5])
def test_nested(cap):
    saliency = {"a": torch.rand(16, 16), "b": torch.rand(32) * 0.1, "c": torch.rand(8, 4, 3)}
    before = masks(saliency, 0.9, max_param_sparsity=cap)
    for sparsity in (0.7, 0.4, 0.2, 0.05, 0.0):
        now = masks(saliency, sparsity, max_param_sparsity=cap)
        for name in saliency:
            assert not (before[name] & ~now[name]).any()
        before = now


def test_density_is_what_was_asked_for():
    mask = masks({"w": torch.rand(100, 100)}, 0.8)["w"]
    assert int(mask.sum()) == 2000


def test_block_score_is_the_sum_over_the_block():
    w = torch.tensor(
        [
            [1.0, 1, 9, 0],  # blocks: 4 | 9
            [1.0, 1, 0, 0],
            [2.0, 2, 0, 1],  # 5 | 3
            [0.0, 1, 1, 1],
        ]
    )
    assert pool_blocks({"w": w}, 2)["w"].tolist() == [[4, 9], [5, 3]]
    assert one(w, 0.25, block_size=2) == [[T, T], [T, F]]
    assert one(w, 0.5, block_size=2) == [[F, T], [T, F]]
    assert one(w, 0.75, block_size=2) == [[F, T], [F, F]]


def test_rectangular_blocks():
    w = torch.tensor([[1.0, 1, 2, 2, 3, 3], [1.0, 1, 2, 2, 3, 3]])
    assert pool_blocks({"w": w}, 2)["w"].tolist() == [[4, 8, 12]]
    assert one(w, 0.34, block_size=2) == [[F, T, T]]


def test_conv_blocks_are_out_tap_in():
    w = torch.zeros(2, 4, 3)  # [out, in, taps], block 2: one out-block, three taps, two in-blocks
    w[0, 0] = t(1, 2, 3)  # in-block 0
    w[1, 1] = t(10, 0, 10)
    w[0, 2] = t(4, 5, 6)  # in-block 1
    pooled = pool_blocks({"w": w}, 2)["w"]
    assert pooled.tolist() == [[[11, 4], [2, 5], [13, 6]]]
    assert one(w, 0.5, block_size=2) == [[[T, F], [F, F], [T, T]]]


def test_block_masks_cover_eligible_entries_only():
    saliency = {"bias": t(9, 9), "odd": torch.ones(3, 4), "w": torch.ones(4, 4).tril() + 1}
    assert list(masks(saliency, 0.5, block_size=2)) == ["w"]


def test_block_cap_counts_blocks():
    saliency = {"low": t(1, 2, 3, 4).reshape(2, 2), "high": torch.full((2, 2), 9.0)}
    result = masks(saliency, 0.5, max_param_sparsity=0.5, block_size=1)
    assert result["low"].tolist() == [[F, F], [F, T]]
    assert result["high"].tolist() == [[T, T], [T, T]]


def test_one_block():
    w = torch.ones(4, 4)
    assert one(w, 0.5, block_size=4) == [[T]]
    assert one(w, 1.0, block_size=4) == [[F]]
    assert one(w, 1.0, max_param_sparsity=0.75, block_size=4) == [[T]]


def test_expand_blocks():
    mask = torch.tensor([[T, F], [F, T]])
    assert expand_blocks(mask, 2, torch.Size((4, 4))).tolist() == [
        [T, T, F, F],
        [T, T, F, F],
        [F, F, T, T],
        [F, F, T, T],
    ]
    conv = torch.tensor([[[T], [F], [T]]])
    assert expand_blocks(conv, 2, torch.Size((2, 2, 3))).tolist() == [[[T, F, T]] * 2] * 2


def test_eligible_shapes():
    yes = [((64, 128), 64), ((64, 64, 9), 32), ((1, 1), 1)]
    no = [((64,), 64), ((64, 65), 64), ((63, 64, 3), 64), ((64, 64, 3, 3), 64), ((0, 64), 64)]
    assert all(is_eligible(torch.Size(shape), b) for shape, b in yes)
    assert not any(is_eligible(torch.Size(shape), b) for shape, b in no)


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [(40, "write 0.4 for 40 %"), (-0.1, "got -0.1"), (math.nan, "fraction"), ("0.4", "fraction")],
)
def test_bad_sparsity(sparsity, words):
    with pytest.raises(ValueError, match=words):
        masks({"w": t(1, 2)}, sparsity)


def test_bad_cap():
    with pytest.raises(ValueError, match="max_param_sparsity.*0.75 for 75 %"):
        masks({"w": t(1, 2)}, 0.5, max_param_sparsity=75)


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "NaN or infinity in bad"), (math.inf, "in bad"), (-1.0, "negative ones in bad")],
)
def test_bad_saliency_is_named(value, words):
    with pytest.raises(ValueError, match=words):
        masks({"good": t(1, 2), "bad": t(1, value)}, 0.5)


@pytest.mark.parametrize("saliency", [{}, {"w": torch.zeros(0)}])
def test_no_saliency(saliency):
    with pytest.raises(ValueError, match="at least one value"):
        masks(saliency, 0.5)


@pytest.mark.parametrize("block_size", [0, -2, 2.0, True, "2"])
def test_block_size_that_is_no_size(block_size):
    with pytest.raises(ValueError, match="block_size: expected a whole number"):
        masks({"w": torch.ones(4, 4)}, 0.5, block_size=block_size)


def test_block_size_that_divides_nothing():
    with pytest.raises(ValueError, match=r"got 64 for w \(4, 4\)"):
        masks({"w": torch.ones(4, 4)}, 0.5, block_size=64)


def test_an_empty_parameter_beside_others():
    result = masks({"empty": torch.zeros(0, 4), "w": t(1, 2)}, 0.5, max_param_sparsity=0.75)
    assert result["empty"].shape == (0, 4)
    assert result["w"].tolist() == [F, T]
