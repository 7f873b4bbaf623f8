# SPDX-License-Identifier: Apache-2.0
"""What lies in pruned blocks never counts, and can be put back to zero."""

import pytest
import torch

from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import masked, only_active, zero_pruned_

B = 16


def layout_and_weight(taps: int, dtype=torch.float32):
    mask = torch.rand(3, taps, 2) < 0.5
    mask[0, 0, 0], mask[2, taps - 1, 1] = True, False
    return BlockLayout(mask, B), torch.randn(3 * B, taps * 2 * B).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("taps", [1, 3])
def test_a_dirty_weight_is_copied_and_a_clean_one_is_not(taps, dtype):
    layout, weight = layout_and_weight(taps, dtype)
    before = weight.clone()
    clean = masked(weight, layout)
    assert torch.equal(weight, before) and clean.data_ptr() != weight.data_ptr()
    mask = layout.element_mask().flatten(1)
    assert torch.equal(clean, torch.where(mask, weight, torch.zeros_like(weight)))
    assert masked(clean, layout) is clean


@pytest.mark.parametrize("place", [0, -1])
def test_one_value_is_found_wherever_it_is(place):
    layout, weight = layout_and_weight(3)
    mask = layout.element_mask().flatten(1)
    clean = weight * mask
    row, column = (~mask).nonzero()[place]
    clean[row, column] = 1e-30
    assert masked(clean, layout)[row, column] == 0


def test_rows_with_a_stride():
    layout, weight = layout_and_weight(1)
    wide = torch.cat([weight, torch.ones_like(weight)], 1)[:, : weight.shape[1]]
    assert torch.equal(masked(wide, layout), masked(weight, layout))


def test_a_full_mask_costs_nothing():
    layout = BlockLayout(torch.ones(3, 1, 2, dtype=torch.bool), B)
    weight = torch.full((3 * B, 2 * B), float("nan"))
    assert masked(weight, layout) is weight


@pytest.mark.parametrize("memory", ["kernel's", "torch's"])
def test_zeroing_in_any_memory_order(memory):
    layout, matrix = layout_and_weight(3)
    weight = matrix.view(3 * B, 3, 2 * B).permute(0, 2, 1)
    weight = weight if memory == "kernel's" else weight.contiguous()
    wanted = torch.where(layout.element_mask().permute(0, 2, 1), weight, 0.0)
    matrix[0, 0] = wanted[0, 0, 0] = float("inf")  # active: stays
    weight = torch.nn.Parameter(matrix.view(3 * B, 3, 2 * B).permute(0, 2, 1))
    if memory == "torch's":
        weight = torch.nn.Parameter(weight.detach().contiguous())
    zero_pruned_(weight, layout)
    assert torch.equal(weight, wanted)


def test_nan_in_a_pruned_block_is_zeroed():
    layout, weight = layout_and_weight(1)
    weight[~layout.element_mask().flatten(1)] = float("nan")
    zero_pruned_(weight, layout)
    assert weight.isfinite().all()


@pytest.mark.parametrize("taps", [1, 3])
def test_a_copy_of_the_active_blocks_alone(taps):
    layout, matrix = layout_and_weight(taps)
    weight = matrix.view(3 * B, taps, 2 * B).permute(0, 2, 1)
    mask = layout.element_mask().permute(0, 2, 1)
    copy = only_active(weight, layout)
    assert torch.equal(copy, torch.where(mask, weight, 0.0)) and copy.stride() == weight.stride()
    assert only_active(weight, BlockLayout(torch.ones(3, taps, 2, dtype=torch.bool), B)) is weight
