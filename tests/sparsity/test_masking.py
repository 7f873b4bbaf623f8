# SPDX-License-Identifier: Apache-2.0
"""Masks: written out by hand; the extension against plain torch, to the bit."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

import sniper
from sniper import _C, Sniper
from sniper.sparsity.blocks import pool_blocks
from sniper.sparsity.masking import (
    Fixed,
    Following,
    MaskStages,
    fixed_choice,
    nested_masks,
    nested_masks_reference,
)

T, F = True, False
SPARSITIES = (1.0, 0.9, 0.75, 0.4, 0.4 + 1e-12, 0.1, 0.0)
pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def masks(saliency: dict[str, Tensor], *args, **kwargs) -> dict[str, Tensor]:
    """`sniper.masks`, by the extension and, in another dtype, by its reference."""
    found = sniper.masks(saliency, *args, **kwargs)
    same = sniper.masks({n: s.double() for n, s in saliency.items()}, *args, **kwargs)
    assert found.keys() == same.keys()
    assert all(torch.equal(found[name], same[name]) for name in found)
    return found


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


def scores(kind: str) -> dict[str, Tensor]:
    """Layers of many sizes, one of them far above the rest and one all zero."""
    sizes = {"a": (16, 16), "one": (1, 1), "conv": (8, 9, 4), "low": (5, 7), "bias": (33,)}
    make = {
        "random": lambda s: torch.rand(s),
        "few values": lambda s: torch.randint(0, 4, s).float(),
        "zero or one": lambda s: (torch.rand(s) > 0.7).float(),
        "all equal": lambda s: torch.full(s, 0.25),
        "zeros": lambda s: torch.zeros(s),
        "minus zeros": lambda s: torch.where(torch.rand(s) > 0.5, -0.0, torch.rand(s).round()),
        "tiny and huge": lambda s: torch.rand(s).mul(120).sub(100).exp() * 1e-30,
        "neighbours": lambda s: torch.nextafter(torch.ones(s), torch.randint(0, 3, s).float()),
    }[kind]
    result = {name: make(size) for name, size in sizes.items()}
    result["low"] *= 1e-3
    result["dead"] = torch.zeros(12)
    return result


KINDS = (
    *("random", "few values", "zero or one", "all equal", "zeros"),
    *("minus zeros", "tiny and huge", "neighbours"),
)


def assert_same_stages(got: MaskStages, expected: MaskStages) -> None:
    assert list(got.masks) == list(expected.masks)
    assert got.counts == expected.counts
    for sparsity, stage in expected.masks.items():
        assert list(got.masks[sparsity]) == list(stage)
        for name, mask in stage.items():
            found = got.masks[sparsity][name]
            assert found.dtype == torch.bool
            assert torch.equal(found.cpu(), mask), (sparsity, name)


# One layer whose saliencies are small, one whose are large, one between.
SCORES = {
    "low": torch.tensor([0.01, 0.04, 0.02, 0.03]),
    "high": torch.tensor([[9.0, 7.0], [6.0, 8.0]]),
    "mixed": torch.tensor([0.05, 1.0]),
}


def following(
    scores: dict[str, Tensor], sparsities: list[float], spread: float, device: str
) -> MaskStages:
    """By the extension on the device, once the reference says the same."""
    moved = {name: s.to(device) for name, s in scores.items()}
    found = nested_masks(moved, sparsities, Following(spread))
    assert_same_stages(found, nested_masks_reference(scores, sparsities, Following(spread)))
    return found


def kept(stages: MaskStages, sparsity: float) -> dict[str, list]:
    return {name: mask.int().tolist() for name, mask in stages.masks[sparsity].items()}


def test_without_spread_every_parameter_is_equally_sparse(device):
    assert kept(following(SCORES, [0.5], 0.0, device), 0.5) == {
        "low": [0, 1, 0, 1],
        "high": [[1, 0], [0, 1]],
        "mixed": [0, 1],
    }


def test_with_all_spread_one_threshold_decides(device):
    assert kept(following(SCORES, [0.5], 1.0, device), 0.5) == {
        "low": [0, 0, 0, 0],
        "high": [[1, 1], [1, 1]],
        "mixed": [0, 1],
    }


def test_between_the_cap_follows_the_sparsity_and_others_make_up_for_it(device):
    """At 60 % no parameter is sparser than 80 %: `low` and `mixed` keep one each, and two of
    `high` go in their place.
    """
    stages = following(SCORES, [0.6], 0.5, device)
    assert Following(0.5).of(0.6) == pytest.approx(0.8)
    assert kept(stages, 0.6) == {"low": [0, 1, 0, 0], "high": [[1, 0], [0, 1]], "mixed": [0, 1]}
    assert stages.counts[0.6] == {"low": 1, "high": 2, "mixed": 1}


def test_nothing_and_everything(device):
    stages = following(SCORES, [0.0, 1.0], 0.25, device)
    assert all(mask.all() for mask in stages.masks[0.0].values())
    assert not any(mask.any() for mask in stages.masks[1.0].values())


def test_equal_saliencies_go_in_their_order(device):
    ones = {n: torch.ones(4) for n in "ab"}
    stages = following(ones, [0.75, 0.5], 0.0, device)
    assert kept(stages, 0.75) == {"a": [0, 0, 0, 1], "b": [0, 0, 0, 1]}
    assert kept(stages, 0.5) == {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    stages = following(ones, [0.5], 0.5, device)
    assert kept(stages, 0.5) == {"a": [0, 0, 0, 1], "b": [0, 1, 1, 1]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 1.0])
def test_following_random_saliencies(seed: int, spread: float):
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, scale: float) -> Tensor:
        return torch.rand(n, generator=generator) * scale

    values = {f"p{i}": draw(100 + 50 * i, 10.0**-i) for i in range(6)}
    total = sum(s.numel() for s in values.values())
    stages = nested_masks(values, [0.8, 0.5, 0.2, 0.0], Following(spread))
    before = None
    for sparsity, found in stages.masks.items():
        active = sum(int(m.sum()) for m in found.values())
        assert 0 <= active - round((1 - sparsity) * total) <= len(values)
        for name, mask in found.items():
            assert stages.counts[sparsity][name] == int(mask.sum())
            assert 1 - float(mask.double().mean()) <= Following(spread).of(sparsity) + 1e-9
            if before is not None:
                assert (mask >= before[name]).all()
            own, rest = values[name][mask], values[name][~mask]
            if len(own) and len(rest):
                assert own.min() >= rest.max()  # in a parameter the largest stay
        before = found


@pytest.mark.parametrize("spread", [-0.1, 1.1, float("nan")])
def test_a_spread_that_cannot_be(spread: float):
    with pytest.raises(ValueError, match="spread"):
        Following(spread)
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
    assert min(densities.values()) >= 1 - Following(0.2).of(0.75) - 1e-9
    sizes = {name: p.numel() for name, p in model.named_parameters() if name in densities}
    active = sum(densities[name] * n for name, n in sizes.items()) / sum(sizes.values())
    assert active == pytest.approx(0.25, abs=0.03)


CAPS, SPREADS = (1.0, 0.95, 0.75, 0.3, 0.0), (0.0, 0.1, 0.5, 1.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every kind of scores under some caps, by turns, so that each pair of a cap and `nested`, and
    each spread, meets several kinds; the products of all with --all-kernels.
    """
    everything = metafunc.config.getoption("--all-kernels")
    if metafunc.function is test_fixed_is_the_reference:
        cases = [
            (kind, CAPS[(i + j) % len(CAPS)], j % 2 == 0)
            for i, kind in enumerate(KINDS)
            for j in range(3)
        ]
        if everything:
            cases = list(itertools.product(KINDS, CAPS, (True, False)))
        metafunc.parametrize(("kind", "cap", "nested"), cases)
    if metafunc.function is test_following_is_the_reference:
        cases = [(kind, SPREADS[(i + j) % 4]) for i, kind in enumerate(KINDS) for j in range(2)]
        if everything:
            cases = list(itertools.product(KINDS, SPREADS))
        metafunc.parametrize(("kind", "spread"), cases)


def test_fixed_is_the_reference(kind, cap, nested, device):
    values = scores(kind)
    expected = nested_masks_reference(values, SPARSITIES, Fixed(cap), nested)
    moved = {name: v.to(device) for name, v in values.items()}
    assert_same_stages(nested_masks(moved, SPARSITIES, Fixed(cap), nested), expected)


def test_following_is_the_reference(kind, spread, device):
    following(scores(kind), [*SPARSITIES, 0.29, 0.5], spread, device)


def many_single_weights() -> dict[str, Tensor]:
    """More than one thread's stretch of 2^16 values in a layer, and many equal to the threshold."""
    return {
        "big": torch.rand(300, 700).mul(50).round(),
        "strided": torch.rand(100, 90, 9).mul(50).round().permute(0, 2, 1),
        "bias": torch.rand(7),
        "empty": torch.zeros(0, 3),
        "equal": torch.full((70_000,), 1.0),
    }


@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.1)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_single_weights(threads, cap):
    torch.set_num_threads(threads)
    values = many_single_weights()
    expected = nested_masks_reference(values, SPARSITIES, cap)
    assert_same_stages(nested_masks(values, SPARSITIES, cap), expected)


@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.1)])
def test_more_values_than_one_pass_of_the_grid(cap, device, request):
    """More than 1,024 thread blocks of 256 in a layer, or than the shim's 4, so that threads go
    round again.
    """
    long = 2_300 if request.node.callspec.params["device"] == "shim" else 264_000
    values = {"long": torch.rand(long).mul(1e4).round(), "few": torch.rand(7)}
    expected = nested_masks_reference(values, [0.8], cap)
    moved = {name: v.to(device) for name, v in values.items()}
    assert_same_stages(nested_masks(moved, [0.8], cap), expected)


@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.1)])
def test_more_layers_than_threads_in_a_block(cap, device):
    values = {f"p{i}": torch.rand(1 + i % 5).mul(9).round() for i in range(300)}
    expected = nested_masks_reference(values, [0.8], cap)
    moved = {name: v.to(device) for name, v in values.items()}
    assert_same_stages(nested_masks(moved, [0.8], cap), expected)


def test_stages_by_hand(device):
    values = {"w": torch.tensor([5.0, 1, 4, 2, 3]), "v": torch.tensor([2.0, 2, 0])}
    moved = {name: v.to(device) for name, v in values.items()}
    stages = nested_masks(moved, [0.0, 0.5, 1.0], Fixed(1.0))  # of 0 1 2 2 2 3 4 5 the fourth is 2
    assert list(stages.masks) == [1.0, 0.5, 0.0]
    assert stages.masks[0.5]["w"].tolist() == [T, F, T, F, T]
    assert stages.masks[0.5]["v"].tolist() == [F, F, F]
    assert stages.counts == {
        1.0: {"w": 0, "v": 0},
        0.5: {"w": 3, "v": 0},
        0.0: {"w": 5, "v": 3},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_select_is_kthvalue(kind):
    values = torch.cat([v.flatten() for v in scores(kind).values()])
    for k in range(1, values.numel() + 1, 7):
        found = _C.select_smallest(values.data_ptr(), values.numel(), k, 2)
        assert found == torch.kthvalue(values, k).values.item()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 623, 625, 70_001])
def test_fixed_choice_is_pythons_shuffle(n):
    for pruned in {0, n // 3, n}:
        expected = [False] * pruned + [True] * (n - pruned)
        random.Random(0).shuffle(expected)
        assert fixed_choice(n, pruned).tolist() == expected


def test_each_stage_keeps_what_the_one_before_had(device):
    # At 0.9 the cap keeps a random weight of w, the last; at 0.2 only w's largest is above.
    values = {"w": torch.tensor([50.0, 1.0, 2.0, 3.0]), "v": torch.arange(60.0, 72.0)}
    moved = {name: v.to(device) for name, v in values.items()}
    for nested, low in ((True, [T, F, F, T]), (False, [T, F, F, F])):
        found = nested_masks(moved, [0.9, 0.2], Fixed(0.75), nested)
        assert found.masks[0.9]["w"].tolist() == [F, F, F, T]
        assert found.masks[0.2]["w"].tolist() == low


@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.5)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, -1e-45])
def test_values_that_are_no_saliency_are_named(value, cap, device):
    values = {"good": torch.rand(3000), "bad": torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match="in bad"):
        nested_masks({n: v.to(device) for n, v in values.items()}, [0.5, 0.0], cap)


@pytest.mark.parametrize(
    ("values", "sparsities", "words"),
    [
        ({}, [0.5], "at least one value"),
        ({"w": torch.zeros(0)}, [0.5], "at least one value"),
        ({"w": torch.ones(2)}, [], "sparsities: expected at least one"),
        ({"w": torch.ones(2)}, [40], "write 0.4"),
        ({"w": torch.ones(2), "v": torch.ones(2, device="meta")}, [0.5], "one device"),
        ({"w": torch.ones(1).expand(2**31)}, [0.5], "fewer than 2.31 values, got 2,147,483,648"),
    ],
)
@pytest.mark.parametrize("cap", [Fixed(1.0), Following(0.5)])
def test_scores_that_are_refused(values, sparsities, words, cap):
    with pytest.raises(ValueError, match=words):
        nested_masks(values, sparsities, cap)


@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_take_the_reference(dtype, cap):
    values = {"w": torch.rand(40, 3).to(dtype), "v": torch.rand(9).to(dtype)}
    expected = nested_masks_reference(values, [0.5, 0.0], cap)
    assert_same_stages(nested_masks(values, [0.5, 0.0], cap), expected)


def test_caps_are_values():
    assert Fixed(0.75) == Fixed(0.75) != Following(0.75)
    assert (Fixed(0.75).of(0.2), Following(0.5).of(0.2)) == (0.75, pytest.approx(0.6))
    with pytest.raises(ValueError, match="max_param_sparsity.*0.75 for 75 %"):
        Fixed(75)
