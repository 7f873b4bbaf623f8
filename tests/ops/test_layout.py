# SPDX-License-Identifier: Apache-2.0
"""Index arrays, written out by hand."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

from sniper.layers import BlockLayout
from sniper.ops.layout import find_layout, mark_copy

T, F = True, False
pytestmark = pytest.mark.usefixtures("nan_filled_empty")

MASK = torch.tensor(
    [
        [T, F, T],
        [F, F, F],
        [T, T, T],
        [F, T, F],
    ]
)


def test_linear():
    layout = BlockLayout(MASK, 2)
    assert layout.shape == (4, 1, 3)
    assert layout.nnz == 6
    assert layout.density == 0.5
    assert layout.crow_indices.tolist() == [0, 2, 2, 5, 6]
    assert layout.col_indices[:6].tolist() == [0, 2, 0, 1, 2, 1]
    assert layout.row_indices[:6].tolist() == [0, 0, 2, 2, 2, 3]
    assert layout.crow_indices_t.tolist() == [0, 2, 4, 6]
    assert layout.col_indices_t[:6].tolist() == [0, 2, 2, 3, 0, 2]
    assert layout.row_order.tolist() == [2, 0, 3, 1]
    assert layout.row_order_t.tolist() == [0, 1, 2]
    assert len(layout.col_indices) == len(layout.col_indices_t) == len(layout.row_indices) == 12
    dtypes = {getattr(layout, n).dtype for n in layout._TENSORS if n != "block_mask"}
    assert dtypes == {torch.int32}


def test_conv_columns_count_taps_then_channels():
    mask = torch.tensor(
        [[[T, F], [F, T], [T, T]], [[F, F], [T, F], [F, F]]]
    )  # [2 out, 3 taps, 2 in]
    layout = BlockLayout(mask, 2)
    assert layout.crow_indices.tolist() == [0, 4, 5]
    assert layout.col_indices[:5].tolist() == [0, 3, 4, 5, 2]  # tap * 2 + in-block
    assert layout.crow_indices_t.tolist() == [0, 3, 5]
    assert layout.col_indices_t[:5].tolist() == [0, 3, 4, 2, 4]  # tap * 2 + out-block
    assert layout.row_order.tolist() == [0, 1]


def test_agrees_with_torch_bsr():
    mask = torch.rand(5, 7) > 0.6
    layout = BlockLayout(mask, 3)
    dense = mask.repeat_interleave(3, 0).repeat_interleave(3, 1).float()
    for matrix, crow, col in (
        (dense, layout.crow_indices, layout.col_indices),
        (dense.t().contiguous(), layout.crow_indices_t, layout.col_indices_t),
    ):
        bsr = matrix.to_sparse_bsr((3, 3))
        assert crow.tolist() == bsr.crow_indices().tolist()
        assert col[: layout.nnz].tolist() == bsr.col_indices().tolist()


def test_element_mask():
    layout = BlockLayout(torch.tensor([[[T], [F]]]), 2)
    assert layout.element_mask().tolist() == [[[T, T], [F, F]], [[T, T], [F, F]]]


@pytest.mark.parametrize("value", [True, False])
def test_full_and_empty(value):
    layout = BlockLayout(torch.full((2, 3), value), 4)
    assert layout.nnz == 6 * value
    assert layout.density == float(value)
    assert layout.crow_indices.tolist() == ([0, 3, 6] if value else [0, 0, 0])
    assert layout.row_order.tolist() == [0, 1]


def test_ties_keep_the_lower_row_first():
    mask = torch.zeros(200, 2, dtype=torch.bool)
    mask[50:150, 0] = True
    order = BlockLayout(mask, 1).row_order.tolist()
    assert order == [*range(50, 150), *range(50), *range(150, 200)]


def test_update_keeps_memory_and_counts():
    layout = BlockLayout(MASK, 2)
    assert layout.version == 1
    pointers = [getattr(layout, n).data_ptr() for n in layout._TENSORS]
    handle = layout.handle
    layout.update(~MASK)
    fresh = BlockLayout(~MASK, 2)
    assert layout.version == 2
    assert layout.handle == handle
    assert [getattr(layout, n).data_ptr() for n in layout._TENSORS] == pointers
    assert layout.nnz == fresh.nnz
    for name in layout._TENSORS:
        size = layout.nnz if "col" in name or name == "row_indices" else None
        assert torch.equal(getattr(layout, name)[:size], getattr(fresh, name)[:size]), name


def test_the_callers_mask_stays_the_callers():
    mask = MASK.clone()
    layout = BlockLayout(mask, 2)
    mask.fill_(True)
    assert torch.equal(layout.block_mask[:, 0], MASK)


def test_update_refuses_another_shape():
    with pytest.raises(ValueError, match=r"expected shape \(4, 1, 3\).*got \(3, 1, 4\)"):
        BlockLayout(MASK, 2).update(MASK.t())


def test_handles_die_with_their_layout():
    layout = BlockLayout(MASK, 2)
    handle = layout.handle
    assert find_layout(handle) is layout
    del layout
    gc.collect()
    with pytest.raises(ValueError, match="handle of a living layout"):
        find_layout(handle)


def test_what_is_known_of_a_mask_goes_with_it():
    layout = BlockLayout(MASK, 2)
    layout.known["longest row"], layout.runs["fwd"] = 3, "cpu"
    for twin in (copy.deepcopy(layout), pickle.loads(pickle.dumps(layout)), layout.to("meta")):
        assert not twin.known and not twin.runs and twin.shape == layout.shape
    assert layout.known["longest row"] == 3
    before = layout.known
    layout.update(~MASK)
    # A thread that found out something of the mask before may still write there.
    assert not layout.known and layout.known is not before
    assert layout.runs == {"fwd": "cpu"}


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_layouts_of_their_own(twin):
    layout = BlockLayout(MASK, 2)
    other = twin(layout)
    assert other.handle != layout.handle
    assert find_layout(other.handle) is other
    layout.update(~MASK)
    assert torch.equal(other.block_mask[:, 0], MASK)
    assert other.col_indices[:6].tolist() == [0, 2, 0, 1, 2, 1]


def test_to():
    layout = BlockLayout(MASK, 2)
    assert layout.to("cpu") is layout
    moved = layout.to("meta")
    assert moved.handle != layout.handle
    assert find_layout(moved.handle) is moved
    assert {getattr(moved, n).device.type for n in moved._TENSORS} == {"meta"}
    assert {getattr(layout, n).device.type for n in layout._TENSORS} == {"cpu"}
    assert repr(layout) == "BlockLayout((4, 1, 3), block_size=2, density=0.500)"


def test_a_deep_copy_is_outgrown_when_its_original_changes():
    layout = BlockLayout(torch.tensor([[True, False]]), 8)
    twin = copy.deepcopy(layout)
    again = copy.deepcopy(twin)
    assert not twin.outgrown
    layout.update(torch.tensor([[True, True]]))
    assert twin.outgrown and not layout.outgrown and not again.outgrown
    assert twin.nnz == 1
    assert pickle.loads(pickle.dumps(twin)).outgrown
    twin.update(torch.tensor([[False, True]]))
    assert not twin.outgrown and again.outgrown


def test_a_copy_on_another_device_learns_of_changes_too():
    layout = BlockLayout(torch.eye(2).bool(), 8)
    there = copy.deepcopy(layout).to("meta")
    assert not there.outgrown
    layout.update(torch.ones(2, 2).bool())
    assert there.outgrown and not layout.outgrown


def test_handles_are_distinct_and_weak():
    first, second = (BlockLayout(torch.ones(2, 2, dtype=torch.bool), 16) for _ in range(2))
    a, b = first.handle, second.handle
    assert a != b and find_layout(a) is first and find_layout(b) is second
    del first
    with pytest.raises(ValueError, match=f"living layout, got {a}"):
        find_layout(a)


def test_nothing_is_known_of_tensors_without_versions():
    """Those that inference mode makes, as a cast under autocast; elsewhere than on a CPU."""
    layout = BlockLayout(MASK, 2)
    weight = torch.zeros(4, 6)
    layout.mark_zeros(weight)
    with torch.inference_mode():
        copy = torch.zeros(4, 6, device="meta")
        mark_copy(layout, copy)
        assert not layout.zeros_known(copy)
