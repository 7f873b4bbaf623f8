# SPDX-License-Identifier: Apache-2.0
"""Masks of all stages: nested, packed, carried over to other block sizes."""

from __future__ import annotations

import pytest
import torch

from sniper import SparsitySchedule
from sniper.sparsity.state import STATE_VERSION, check_state, mask_shape, pack, unpack

T, F = True, False


def state(block_size, masks, sparsity=0.5, shapes=None) -> dict:
    return {
        "version": STATE_VERSION,
        "block_size": block_size,
        "sparsity": sparsity,
        "shapes": shapes or {"w": [4, 4]},
        "masks": pack(masks),
        "init": {},
    }


def test_pack_and_unpack():
    masks = {0.5: {"w": torch.rand(5, 3) > 0.5}, 0.0: {"w": torch.ones(5, 3, dtype=torch.bool)}}
    saved = state(None, masks, shapes={"w": [5, 3]})
    assert all(b.dtype == torch.uint8 for stage in saved["masks"].values() for b in stage.values())
    result, added = unpack(saved, None, {"w": torch.Size((5, 3))}, torch.device("cpu"))
    assert all(torch.equal(result[s]["w"], masks[s]["w"]) for s in masks)
    assert not any(added.values())


def test_smaller_blocks_keep_the_weights():
    saved = state(4, {0.5: {"w": torch.tensor([[T, F]])}}, shapes={"w": [4, 8]})
    result, added = unpack(saved, 2, {"w": torch.Size((4, 8))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[T, T, F, F], [T, T, F, F]]
    assert not added[0.5]["w"].any()


def test_a_larger_block_is_active_if_any_weight_was():
    mask = torch.tensor([[T, F, F, F], [F, F, F, F]])
    saved = state(2, {0.5: {"w": mask}}, shapes={"w": [4, 8]})
    result, added = unpack(saved, 4, {"w": torch.Size((4, 8))}, torch.device("cpu"))
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
    result, added = unpack(saved, 2, {"w": torch.Size((2, 4, 3))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[[F, F], [F, F], [F, T]]]
    assert int(added[0.5]["w"].sum()) == 3


def test_conv_blocks_into_single_weights():
    saved = state(2, {0.5: {"w": torch.tensor([[[F], [T]]])}}, shapes={"w": [2, 2, 2]})
    result, _ = unpack(saved, None, {"w": torch.Size((2, 2, 2))}, torch.device("cpu"))
    assert result[0.5]["w"].tolist() == [[[F, T], [F, T]], [[F, T], [F, T]]]


def test_what_was_not_saved_is_active():
    saved = state(2, {0.5: {"w": torch.tensor([[T, F]])}}, shapes={"w": [2, 4]})
    shapes = {"w": torch.Size((2, 4)), "new": torch.Size((4, 4))}
    result, _ = unpack(saved, 2, shapes, torch.device("cpu"))
    assert result[0.5]["new"].tolist() == [[T, T], [T, T]]
    assert result[0.0]["w"].tolist() == [[T, T]]


def test_mask_shapes():
    assert mask_shape(torch.Size((4, 8)), None) == (4, 8)
    assert mask_shape(torch.Size((4, 8)), 2) == (2, 4)
    assert mask_shape(torch.Size((4, 8, 3)), 2) == (2, 3, 4)
    with pytest.raises(ValueError, match=r"a divisor of \(4, 6\), got 4"):
        mask_shape(torch.Size((4, 6)), 4)


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
        check_state(saved, {"w": (4, 4)}, SparsitySchedule({0: 0.5, 2: 0}))


def test_a_state_that_fits():
    saved = state(2, {0.5: {"w": torch.ones(2, 2, dtype=torch.bool)}})
    check_state(saved, {"w": (4, 4)}, SparsitySchedule({0: 0.8, 1: 0.5, 2: 0}))
    check_state(saved | {"masks": None}, {"w": (4, 4)}, SparsitySchedule({0: 0.3}))
