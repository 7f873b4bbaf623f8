# SPDX-License-Identifier: Apache-2.0
"""New masks into layouts and weights: the extension against plain torch, to the bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sniper import _C, BlockSparseConv1d, BlockSparseLinear
from sniper.ops import rebuild as module
from sniper.ops.layout import BlockLayout
from sniper.ops.rebuild import LAYER_UPDATE, Change, rebuild, rebuild_reference

T, F = True, False
pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def layers(b: int, dtype: torch.dtype, device: str = "cpu") -> nn.ModuleList:
    """Rectangular, convolutional, a single block, and one row of blocks."""
    torch.manual_seed(1)
    result = nn.ModuleList(
        [
            BlockSparseLinear(5 * b, 3 * b, block_size=b),
            BlockSparseConv1d(2 * b, 4 * b, 3, block_size=b),
            BlockSparseLinear(b, b, block_size=b),
            BlockSparseConv1d(40 * b, b, 9, block_size=b),
            BlockSparseLinear(b, 37 * b, block_size=b),
        ]
    )
    return result.to(device, dtype)


def random_masks(model: nn.ModuleList, density: float) -> list[Tensor]:
    device = model[0].weight.device
    return [(torch.rand(x.block_mask_shape) < density).to(device) for x in model]


def change(layer: nn.Module, mask: Tensor, init: Tensor | None = None) -> Change:
    layer._ensure_layout()
    return Change(layer.layout, layer.weight, mask, int(mask.sum()), init)


def changes(model: nn.ModuleList, new: list[Tensor], init: list[Tensor | None]) -> list[Change]:
    return [change(x, m, i) for x, m, i in zip(model, new, init, strict=True)]


def assert_same_layers(got: nn.ModuleList, expected: nn.ModuleList) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.weight.cpu(), b.weight.cpu())
        assert a.weight.stride() == b.weight.stride()
        assert a.layout.nnz == b.layout.nnz
        for x, y in zip(a.layout.written(), b.layout.written(), strict=True):
            assert torch.equal(x.cpu(), y.cpu())


# Elements of two, four and eight bytes, whose rows are multiples of no word, of some, and of all.
@pytest.mark.parametrize(
    ("b", "dtype"),
    [
        (1, torch.bfloat16),
        (1, torch.float32),
        (3, torch.bfloat16),
        (3, torch.float64),
        (16, torch.float32),
    ],
)
def test_rebuild_is_the_reference(b, dtype, device):
    ours = layers(b, dtype, device)
    theirs = copy.deepcopy(ours).cpu()
    init = [torch.randn_like(x.weight) for x in theirs]
    init[2] = None
    # Densities go up and down: masks need not be nested.
    for density in (0.3, 0.3, 0.7, 0.0, 0.5, 1.0, 0.1):
        new = random_masks(theirs, density)
        versions = [0 if x.layout is None else x.layout.version for x in ours]
        rebuild(
            changes(
                ours, [m.to(device) for m in new], [i if i is None else i.to(device) for i in init]
            )
        )
        rebuild_reference(changes(theirs, new, init))
        assert_same_layers(ours, theirs)
        assert [x.layout.version for x in ours] == [v + 1 for v in versions]
        for layer in ours:  # the optimizer moves what is active
            trained = torch.randn_like(layer.weight).masked_fill(layer.weight == 0, 0)
            layer.weight.data.copy_(trained)
        for layer, other in zip(ours, theirs, strict=True):
            other.weight.data.copy_(layer.weight)


@pytest.mark.parametrize(("rows", "columns"), [(600, 3), (3, 600)])
def test_more_block_rows_than_threads(rows, columns, device):
    """A thread block of 256 sums row lengths up in several rounds."""
    ours = nn.ModuleList([BlockSparseLinear(columns, rows, block_size=1)]).to(device)
    theirs = copy.deepcopy(ours).cpu()
    for density in (0.6, 0.3):
        new = random_masks(theirs, density)
        rebuild(changes(ours, [m.to(device) for m in new], [None]))
        rebuild_reference(changes(theirs, new, [None]))
        assert_same_layers(ours, theirs)


def test_ties_in_row_lengths_keep_the_lower_row_first(device):
    layer = BlockSparseLinear(6, 8, block_size=2, device=device)
    mask = torch.tensor([[T, F, T], [F, T, T], [T, T, T], [F, F, F]])
    rebuild([change(layer, mask.to(device))])
    layout = layer.layout
    assert layout.crow_indices.tolist() == [0, 2, 4, 7, 7]
    assert layout.col_indices[:7].tolist() == [0, 2, 1, 2, 0, 1, 2]
    assert layout.row_indices[:7].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert layout.row_order.tolist() == [2, 0, 1, 3]
    assert layout.crow_indices_t.tolist() == [0, 2, 4, 7]
    assert layout.col_indices_t[:7].tolist() == [0, 2, 1, 2, 0, 1, 2]
    assert layout.permutation_t[:7].tolist() == [0, 4, 2, 5, 1, 3, 6]
    assert layout.row_order_t.tolist() == [2, 0, 1]


def test_the_permutation_finds_each_twins_block():
    layout = BlockLayout(torch.rand(5, 3, 4) > 0.5, 2)
    for i in range(layout.nnz):
        entry = int(layout.permutation_t[i])
        tap, out = divmod(int(layout.col_indices_t[i]), 5)
        row_t = int((layout.crow_indices_t <= i).sum()) - 1
        assert int(layout.row_indices[entry]) == out
        assert int(layout.col_indices[entry]) == tap * 4 + row_t


def test_only_blocks_that_change_are_touched(device):
    layer = BlockSparseLinear(6, 4, block_size=2, device=device)
    first = torch.tensor([[T, F, F], [T, T, F]], device=device)
    rebuild([change(layer, first)])
    layer.weight.data.fill_(7)  # also where blocks are pruned: nobody may look there
    init = torch.full_like(layer.weight, float("nan"))
    init[0:2, 2:4] = 5
    rebuild([change(layer, torch.tensor([[T, T, F], [F, T, F]], device=device), init)])
    assert layer.weight.tolist() == [[7, 7, 5, 5, 7, 7]] * 2 + [[0, 0, 7, 7, 7, 7]] * 2


def test_layouts_keep_their_memory_and_autograd_hears_of_it():
    model = layers(2, torch.float32)
    rebuild(changes(model, random_masks(model, 0.3), [None] * 5))
    pointers = [t.data_ptr() for x in model for t in (x.weight, *x.layout.written())]
    handles = [x.layout.handle for x in model]
    before = [x.weight._version for x in model]
    rebuild(changes(model, random_masks(model, 0.8), [None] * 5))
    assert [t.data_ptr() for x in model for t in (x.weight, *x.layout.written())] == pointers
    assert [x.layout.handle for x in model] == handles
    assert all(x.weight._version > v for x, v in zip(model, before, strict=True))


def test_initial_values_of_another_dtype_and_memory_order():
    layer = BlockSparseConv1d(4, 2, 3, block_size=2, dtype=torch.float64)
    init = torch.randn(2, 4, 3)
    rebuild([change(layer, torch.zeros(1, 3, 2, dtype=torch.bool), init)])
    assert not layer.weight.any()
    rebuild([change(layer, torch.ones(1, 3, 2, dtype=torch.bool), init)])
    assert torch.equal(layer.weight, init.double())


def test_nothing_to_rebuild():
    rebuild([])


def case(**other: object) -> Change:
    """A change of a dense 4 x 4 weight, with something else in it."""
    layout = BlockLayout.unwritten((2, 1, 2), 2, torch.device("cpu"))
    usual = {"weight": torch.ones(4, 4), "mask": torch.ones(2, 2, dtype=torch.bool), "count": 4}
    return Change(layout, **(usual | other))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"mask": torch.ones(2, 2)}, r"mask: expected bool \(2, 2\), got torch.float32"),
        ({"mask": torch.ones(2, 3).bool()}, r"expected bool \(2, 2\).*\(2, 3\)"),
        ({"mask": torch.ones(2, 2).bool().to("meta")}, "mask: expected one on cpu, got meta"),
        ({"init": torch.ones(4)}, r"init: expected shape \(4, 4\), got \(4,\)"),
        ({"weight": torch.ones(4, 6)}, r"weight: expected shape \(4, 4\), got \(4, 6\)"),
        ({"weight": torch.ones(4, 4, 2)}, r"expected shape \(4, 4, 1\), got \(4, 4, 2\)"),
        (
            {"weight": torch.ones(4, 8)[:, ::2]},
            r"as \[N, taps, C\], got strides \(8, 2\)",
        ),
    ],
)
def test_changes_that_are_refused(other, words):
    good, bad = case(), case(**other)
    with pytest.raises(ValueError, match=words):
        rebuild([good, bad])
    assert good.layout.version == bad.layout.version == 0
    assert good.weight.all()


def test_a_layer_of_too_many_blocks():
    layout = BlockLayout.unwritten((2**16, 1, 2**15), 1, torch.device("meta"))
    weight = torch.ones(2**16, 2**15, device="meta")
    with pytest.raises(ValueError, match="fewer than 2.31 blocks, got 2,147,483,648"):
        rebuild([Change(layout, weight, weight.bool(), 0)])


def test_both_sides_of_the_extension_describe_the_same_struct(monkeypatch):
    assert LAYER_UPDATE.itemsize == _C.layer_update_bytes
    for name, offset, _ in _C.layer_update_fields():
        assert LAYER_UPDATE.fields[name][1] == offset
    with pytest.raises(ValueError, match="expected 152 bytes for each layer, got 144"):
        _C.update_layers((0, 0, 144), 1)


@pytest.mark.parametrize("changed", ["renamed", "missing"])
def test_an_extension_with_other_fields_is_refused(changed, monkeypatch):
    names = list(LAYER_UPDATE.names)
    names = ["other", *names[1:]] if changed == "renamed" else names[:-1]
    monkeypatch.setattr(module, "LAYER_UPDATE", np.dtype([(name, np.int64) for name in names]))
    with pytest.raises(RuntimeError, match="the extension and this package differ in"):
        rebuild([case()])


@pytest.mark.gpu
@pytest.mark.skipif(not _C.with_cuda, reason="built without CUDA")
def test_a_change_on_a_gpu_waits_for_nothing():
    model = layers(16, torch.float32, "cuda")
    init = [torch.randn_like(x.weight) for x in model]
    stages = [changes(model, random_masks(model, d), init) for d in (0.3, 0.6, 1.0)]
    rebuild(stages[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stage in stages[1:]:
            rebuild(stage)
    finally:
        torch.cuda.set_sync_debug_mode("default")
