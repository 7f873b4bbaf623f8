# SPDX-License-Identifier: Apache-2.0
"""Masks of all stages: nested, packed, carried over to other block sizes."""

from __future__ import annotations

import pytest
import torch

from sniper import SparsitySchedule
from sniper.sparsity import state as saved

T, F = True, False
W = torch.tensor([[1.0, 1, 9, 9], [1, 1, 9, 9], [1, 1, 4, 4], [1, 1, 4, 4]])


def state(block_size, masks, sparsity=0.5, shapes=None) -> dict:
    return {
        "version": saved.STATE_VERSION,
        "block_size": block_size,
        "sparsity": sparsity,
        "shapes": shapes or {"w": [4, 4]},
        "masks": saved.pack(masks),
        "init": {},
    }


def test_each_stage_keeps_what_the_one_before_had():
    result = saved.nested_masks({"w": W}, [0.0, 0.5, 0.75], 1.0, 2)
    assert list(result) == [0.75, 0.5, 0.0]
    assert result[0.75]["w"].tolist() == [[F, T], [F, F]]
    assert result[0.5]["w"].tolist() == [[F, T], [F, T]]
    assert result[0.0]["w"].tolist() == [[T, T], [T, T]]


def test_the_random_choice_nests_too():
    # At 0.9 the cap keeps a random weight of w, the last; at 0.2 only w's largest is above.
    scores = {"w": torch.tensor([50.0, 1.0, 2.0, 3.0]), "v": torch.arange(60.0, 72.0)}
    for nested, low in ((True, [T, F, F, T]), (False, [T, F, F, F])):
        result = saved.nested_masks(scores, [0.9, 0.2], 0.75, None, nested=nested)
        assert result[0.9]["w"].tolist() == [F, F, F, T]
        assert result[0.2]["w"].tolist() == low


def test_pack_and_unpack():
    masks = {0.5: {"w": torch.rand(5, 3) > 0.5}, 0.0: {"w": torch.ones(5, 3, dtype=torch.bool)}}
    saved = state(None, masks, shapes={"w": [5, 3]})
    assert all(b.dtype == torch.uint8 for stage in saved["masks"].values() for b in stage.values())
    result, added = saved.unpack(saved, None, {"w": torch.Size((5, 3))}, torch.device("cpu"))
    assert all(torch.equal(result[s]["w"], masks[s]["w"]) for s in masks)
    assert not any(added.values())


def test_smaller_blocks_keep_the_weights():
    saved = state(4, {0.5: {"w": torch.tensor([[T, F]])}}, shapes={"w": [4, 8]})
    result, added = saved.unpack(saved, 2, {"w": torch.Size((4, 8))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[T, T, F, F], [T, T, F, F]]
    assert not added[0.5]["w"].any()


def test_a_larger_block_is_active_if_any_weight_was():
    mask = torch.tensor([[T, F, F, F], [F, F, F, F]])
    saved = state(2, {0.5: {"w": mask}}, shapes={"w": [4, 8]})
    result, added = saved.unpack(saved, 4, {"w": torch.Size((4, 8))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[T, F]]
    assert added[0.5]["w"].tolist() == [
        [F, F, T, T, F, F, F, F],
        [F, F, T, T, F, F, F, F],
        [T, T, T, T, F, F, F, F],
        [T, T, T, T, F, F, F, F],
    ]


def test_single_weights_into_conv_blocks():
    mask = torch.zeros(2, 4, 3, dtype=torch.bool)  # [out, in, taps]
    mask[1, 3, 2] = True
    saved = state(None, {0.5: {"w": mask}}, shapes={"w": [2, 4, 3]})
    result, added = saved.unpack(saved, 2, {"w": torch.Size((2, 4, 3))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[[F, F], [F, F], [F, T]]]
    assert int(added[0.5]["w"].sum()) == 3


def test_conv_blocks_into_single_weights():
    saved = state(2, {0.5: {"w": torch.tensor([[[F], [T]]])}}, shapes={"w": [2, 2, 2]})
    result, _ = saved.unpack(saved, None, {"w": torch.Size((2, 2, 2))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[[F, T], [F, T]], [[F, T], [F, T]]]


def test_what_was_not_saved_is_active():
    saved = state(2, {0.5: {"w": torch.tensor([[T, F]])}}, shapes={"w": [2, 4]})
    shapes = {"w": torch.Size((2, 4)), "new": torch.Size((4, 4))}
    result, _ = saved.unpack(saved, 2, shapes, torch.device("cpu"))
    assert result[0.5]["new"].tolist() == [[T, T], [T, T]]
    assert result[0.0]["w"].tolist() == [[T, T]]


def test_mask_shapes():
    assert saved.mask_shape(torch.Size((4, 8)), None) == (4, 8)
    assert saved.mask_shape(torch.Size((4, 8)), 2) == (2, 4)
    assert saved.mask_shape(torch.Size((4, 8, 3)), 2) == (2, 3, 4)
    with pytest.raises(ValueError, match=r"a divisor of \(4, 6\), got 4"):
        saved.mask_shape(torch.Size((4, 6)), 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "expected version 1, got 99"),
        ({"shapes": {"w": [4, 5]}}, r"expected shape \(4, 4\) for w, got \(4, 5\)"),
        ({"shapes": {"other": [4, 4]}}, "parameters such as w, got other"),
        ({"shapes": {}}, "parameters such as w, got None"),
        ({"masks": {0.3: {}}}, r"among the scored \[0.3\], got \[0.5\]"),
        ({"masks": {0.5: {}}, "sparsity": 0.6}, r"among the scored \[0.5\], got 0.6"),
    ],
)
def test_states_that_do_not_fit(change, words):
    saved = state(2, {0.5: {"w": torch.ones(2, 2, dtype=torch.bool)}}) | change
    with pytest.raises(ValueError, match=words):
        saved.check_state(saved, {"w": (4, 4)}, SparsitySchedule({0: 0.5, 2: 0}))


def test_a_state_that_fits():
    saved = state(2, {0.5: {"w": torch.ones(2, 2, dtype=torch.bool)}})
    saved.check_state(saved, {"w": (4, 4)}, SparsitySchedule({0: 0.8, 1: 0.5, 2: 0}))
    saved.check_state(saved | {"masks": None}, {"w": (4, 4)}, SparsitySchedule({0: 0.3}))
