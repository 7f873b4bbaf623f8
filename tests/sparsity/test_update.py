# SPDX-License-Identifier: Apache-2.0
"""The extension against plain torch, to the bit; ties, single blocks and nonsense included."""

from __future__ import annotations

import copy
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sniper import _C, BlockSparseConv1d, BlockSparseLinear, NewWeights, Sniper, masks
from sniper.layers import BlockLayout
from sniper.sparsity import update
from sniper.sparsity.update import Change

T, F = True, False
CSRC = Path(__file__).parents[2] / "csrc"
SPARSITIES = (1.0, 0.9, 0.75, 0.4, 0.4 + 1e-12, 0.1, 0.0)
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
NO_GPU = pytest.mark.skipif(
    not (torch.cuda.is_available() and _C.with_cuda), reason="no GPU, or built without CUDA"
)
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, NO_GPU))]
pytestmark = pytest.mark.usefixtures("nan_filled_empty")


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


def assert_same_plan(got: update.Plan, expected: update.Plan) -> None:
    assert list(got.masks) == list(expected.masks)
    assert got.counts == expected.counts
    for sparsity, stage in expected.masks.items():
        assert list(got.masks[sparsity]) == list(stage)
        for name, mask in stage.items():
            found = got.masks[sparsity][name]
            assert found.dtype == torch.bool
            assert torch.equal(found.cpu(), mask), (sparsity, name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("cap", [1.0, 0.95, 0.75, 0.3, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_plan_is_the_reference(kind, cap, nested, device):
    values = scores(kind)
    expected = update.plan_reference(values, SPARSITIES, cap, nested)
    moved = {name: v.to(device) for name, v in values.items()}
    assert_same_plan(update.plan(moved, SPARSITIES, cap, nested), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_plan_of_many_single_weights(threads, device):
    torch.set_num_threads(threads)
    # More than one thread's stretch of 2^16 values in a layer, and many equal to the threshold.
    values = {
        "big": torch.rand(300, 700).mul(50).round(),
        "strided": torch.rand(100, 90, 9).mul(50).round().permute(0, 2, 1),
        "bias": torch.rand(7),
        "empty": torch.zeros(0, 3),
        "equal": torch.full((70_000,), 1.0),
    }
    expected = update.plan_reference(values, SPARSITIES, 0.75, True)
    moved = {name: v.to(device) for name, v in values.items()}
    assert_same_plan(update.plan(moved, SPARSITIES, 0.75), expected)


def test_a_plan_is_what_masks_makes():
    values = scores("random")
    plan = update.plan(values, [0.6], 0.8)
    for name, mask in masks(values, 0.6, 0.8).items():
        assert torch.equal(plan.masks[0.6][name], mask)
        assert plan.counts[0.6][name] == int(mask.sum())


def test_strictly_above_the_kth_smallest_by_hand():
    values = {"w": torch.tensor([5.0, 1, 4, 2, 3]), "v": torch.tensor([2.0, 2, 0])}
    plan = update.plan(values, [0.0, 0.5, 1.0])  # of 0 1 2 2 2 3 4 5 the fourth is 2
    assert list(plan.masks) == [1.0, 0.5, 0.0]
    assert plan.masks[0.5]["w"].tolist() == [T, F, T, F, T]
    assert plan.masks[0.5]["v"].tolist() == [F, F, F]
    assert plan.counts == {
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
        assert update.fixed_choice(n, pruned).tolist() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, -1e-45])
def test_values_that_are_no_saliency_are_named(value):
    values = {"good": torch.rand(70_000), "bad": torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match="in bad"):
        update.plan(values, [0.5, 0.0])


@pytest.mark.parametrize(
    ("values", "arguments", "words"),
    [
        ({}, ([0.5],), "at least one value"),
        ({"w": torch.zeros(0)}, ([0.5],), "at least one value"),
        ({"w": torch.ones(2)}, ([40],), "write 0.4"),
        ({"w": torch.ones(2)}, ([0.5], 75), "max_param_sparsity.*0.75"),
        ({"w": torch.ones(2), "v": torch.ones(2, device="meta")}, ([0.5],), "one device"),
        ({"w": torch.ones(1).expand(2**31)}, ([0.5],), "fewer than 2.31 values, got 2,147,483,648"),
    ],
)
def test_plans_that_are_refused(values, arguments, words):
    with pytest.raises(ValueError, match=words):
        update.plan(values, *arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_take_the_reference(dtype):
    values = {"w": torch.rand(40, 3).to(dtype), "v": torch.rand(9).to(dtype)}
    expected = update.plan_reference(values, [0.5, 0.0], 0.75, True)
    assert_same_plan(update.plan(values, [0.5, 0.0], 0.75), expected)


def as_kernels_have_it(weight: Tensor) -> Tensor:
    """The same numbers as `[N, taps, C]` in memory."""
    return weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("b", [1, 2, 16, 24, 32, 48, 64])
@pytest.mark.parametrize("taps", [0, 1, 3])
def test_pool_is_the_reference(b, taps, device):
    shape = (2 * b, 3 * b, taps) if taps else (2 * b, 3 * b)
    w, g = torch.randn(shape), torch.randn(shape)
    expected = update.pool_reference(w.double(), g.double(), b)
    orders = (
        [lambda x: x, as_kernels_have_it] if taps else [lambda x: x, lambda x: x.t().clone().t()]
    )
    found = [
        update.pool(order(w.to(device)), other(g.to(device)), b).cpu()
        for order in orders
        for other in orders
    ]
    assert found[0].shape == expected.shape
    torch.testing.assert_close(found[0].double(), expected, rtol=3e-7 * b, atol=0)
    # The order of additions is fixed, whatever the memory.
    assert all(torch.equal(found[0], f) for f in found[1:])


def test_pool_by_hand():
    w = torch.tensor([[1.0, -2, 3, 0], [1, 1, 0, -1], [2, 0, 0, 0], [0, 0, 0, 5]])
    g = torch.tensor([[1.0, 1, 1, 9], [-1, 2, 9, 1], [2, 9, 9, 9], [9, 9, 9, -2]])
    assert update.pool(w, g, 2).tolist() == [[6, 4], [4, 10]]
    conv = torch.stack([w, 10 * w], 2)
    assert update.pool(conv, g[..., None].expand(4, 4, 2), 2).tolist() == [
        [[6, 4], [60, 40]],
        [[4, 10], [40, 100]],
    ]


def test_pool_does_not_depend_on_threads():
    w, g = torch.randn(192, 128, 5), torch.randn(192, 128, 5)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(update.pool(w, g, 64))
    assert all(torch.equal(found[0], f) for f in found)


def test_pool_carries_nan_and_infinity_to_their_block():
    w, g = torch.ones(4, 4), torch.ones(4, 4)
    g[0, 3], g[2, 0] = float("nan"), float("inf")
    assert update.pool(w, g, 2).isfinite().tolist() == [[T, F], [F, T]]


@pytest.mark.parametrize(
    ("weight", "gradient", "words"),
    [
        (torch.ones(4, 4), torch.ones(4, 2), r"expected shape \(4, 4\), got \(4, 2\)"),
        (torch.ones(4, 6), torch.ones(4, 6), r"a divisor of \(4, 6\), got 4"),
        (torch.ones(4), torch.ones(4), "divides both dimensions"),
    ],
)
def test_pools_that_are_refused(weight, gradient, words):
    with pytest.raises(ValueError, match=words):
        update.pool(weight, gradient, 4)


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


def changes(model: nn.ModuleList, new: list[Tensor], init: list[Tensor | None]) -> list[Change]:
    return [Change(x, m, int(m.sum()), i) for x, m, i in zip(model, new, init, strict=True)]


def assert_same_layers(got: nn.ModuleList, expected: nn.ModuleList) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.weight.cpu(), b.weight.cpu())
        assert a.weight.stride() == b.weight.stride()
        assert a.layout.nnz == b.layout.nnz
        for x, y in zip(a.layout.written(), b.layout.written(), strict=True):
            assert torch.equal(x.cpu(), y.cpu())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("b", [1, 3, 16])
def test_rebuild_is_the_reference(b, dtype, device):
    ours = layers(b, dtype, device)
    theirs = copy.deepcopy(ours).cpu()
    init = [torch.randn_like(x.weight) for x in theirs]
    init[2] = None
    # Densities go up and down: masks need not be nested.
    for density in (0.3, 0.3, 0.7, 0.0, 0.5, 1.0, 0.1):
        new = random_masks(theirs, density)
        versions = [0 if x.layout is None else x.layout.version for x in ours]
        update.rebuild(
            changes(
                ours, [m.to(device) for m in new], [i if i is None else i.to(device) for i in init]
            )
        )
        update.rebuild_reference(changes(theirs, new, init))
        assert_same_layers(ours, theirs)
        assert [x.layout.version for x in ours] == [v + 1 for v in versions]
        for layer in ours:  # the optimizer moves what is active
            trained = torch.randn_like(layer.weight).masked_fill(layer.weight == 0, 0)
            layer.weight.data.copy_(trained)
        for layer, other in zip(ours, theirs, strict=True):
            other.weight.data.copy_(layer.weight)


def test_ties_in_row_lengths_keep_the_lower_row_first():
    layer = BlockSparseLinear(6, 8, block_size=2)
    mask = torch.tensor([[T, F, T], [F, T, T], [T, T, T], [F, F, F]])
    update.rebuild([Change(layer, mask, 7)])
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


def test_only_blocks_that_change_are_touched():
    layer = BlockSparseLinear(6, 4, block_size=2)
    first = torch.tensor([[T, F, F], [T, T, F]])
    update.rebuild([Change(layer, first, 3)])
    layer.weight.data.fill_(7)  # also where blocks are pruned: nobody may look there
    init = torch.full_like(layer.weight, float("nan"))
    init[0:2, 2:4] = 5
    update.rebuild([Change(layer, torch.tensor([[T, T, F], [F, T, F]]), 3, init)])
    assert layer.weight.tolist() == [[7, 7, 5, 5, 7, 7]] * 2 + [[0, 0, 7, 7, 7, 7]] * 2


def test_layouts_keep_their_memory_and_autograd_hears_of_it():
    model = layers(2, torch.float32)
    update.rebuild(changes(model, random_masks(model, 0.3), [None] * 5))
    pointers = [t.data_ptr() for x in model for t in (x.weight, *x.layout.written())]
    handles = [x.layout.handle for x in model]
    before = [x.weight._version for x in model]
    update.rebuild(changes(model, random_masks(model, 0.8), [None] * 5))
    assert [t.data_ptr() for x in model for t in (x.weight, *x.layout.written())] == pointers
    assert [x.layout.handle for x in model] == handles
    assert all(x.weight._version > v for x, v in zip(model, before, strict=True))


def test_initial_values_of_another_dtype_and_memory_order():
    layer = BlockSparseConv1d(4, 2, 3, block_size=2, dtype=torch.float64)
    init = torch.randn(2, 4, 3)
    update.rebuild([Change(layer, torch.zeros(1, 3, 2, dtype=torch.bool), 0, init)])
    assert not layer.weight.any()
    update.rebuild([Change(layer, torch.ones(1, 3, 2, dtype=torch.bool), 6, init)])
    assert torch.equal(layer.weight, init.double())


@pytest.mark.parametrize("block_size", [8, None])
def test_sniper_does_the_same_without_the_extension(block_size, monkeypatch):
    models = []
    for reach in (True, False):
        if not reach:
            monkeypatch.setattr(update, "_in_reach", lambda tensors: False)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 16, 1))
        sniper = Sniper(model, {0: 0.8, 1: 0.4, 2: 0.1}, block_size=block_size)
        sniper.score([torch.randn(2, 16, 9)], lambda m, x: (m(x) - x).square().sum())
        optimizer = torch.optim.Adam(sniper.param_groups(1e-2))
        for epoch in range(3):
            sniper.step(epoch, optimizer)
            model(torch.ones(2, 16, 9)).sum().backward()
            optimizer.step()
        models.append(model)
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q)
        assert torch.equal(p == 0, q == 0)


def test_initial_values_take_the_weights_memory_order_once():
    model = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1))
    restored = NewWeights(restore_init=True)
    sniper = Sniper(model, {0: 0.8, 1: 0.4, 2: 0.0}, block_size=8, new_weights=restored)
    sniper.score([torch.randn(2, 16, 9)], lambda m, x: m(x).square().sum())
    sniper.step(0)
    assert sniper._init["0.weight"].stride() == model[0].weight.stride() == (48, 1, 16)
    pointer = sniper._init["0.weight"].data_ptr()
    sniper.step(1)
    assert sniper._init["0.weight"].data_ptr() == pointer


def test_nothing_to_rebuild():
    update.rebuild([])


@pytest.mark.parametrize(
    ("mask", "init", "words"),
    [
        (torch.ones(2, 2), None, r"expected bool \(2, 2\), got torch.float32"),
        (torch.ones(2, 3, dtype=torch.bool), None, r"expected bool \(2, 2\).*\(2, 3\)"),
        (torch.ones(2, 2, dtype=torch.bool, device="meta"), None, "one on cpu, got meta"),
        (torch.ones(2, 2, dtype=torch.bool), torch.ones(4), r"init: expected shape \(4, 4\)"),
    ],
)
def test_changes_that_are_refused(mask, init, words):
    layer = BlockSparseLinear(4, 4, block_size=2)
    with pytest.raises(ValueError, match=words):
        update.rebuild([Change(layer, mask, 4, init)])
    assert layer.layout is None


def test_a_layer_of_too_many_blocks():
    layer = BlockSparseLinear(2**15, 2**16, block_size=1, device="meta")
    mask = torch.ones(2**16, 2**15, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="fewer than 2.31 blocks, got 2,147,483,648"):
        update.rebuild([Change(layer, mask, 0)])


def test_the_table_has_the_words_that_the_extension_reads():
    header = (CSRC / "mask_update.h").read_text()
    struct = header[header.index("struct LayerUpdate {") : header.index("static_assert")]
    code = re.sub(r"//.*", "", struct)
    assert sum(len(line.split(",")) for line in code.split(";")[:-2]) == _C.layer_words
    layer = BlockSparseLinear(4, 4, block_size=2)
    row = update._row(Change(layer, torch.ones(2, 2, dtype=torch.bool), 4), 0, [])
    assert len(row) == _C.layer_words


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
@pytest.mark.parametrize("source", sorted(p.name for p in (CSRC / "cuda").glob("mask_*.cu")))
def test_cuda_compiles_without_spilling(source, tmp_path):
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100)]
    command = [NVCC, "-std=c++17", f"-I{CSRC}", "-DSNIPER_WITH_CUDA", *archs, "-Xptxas=-v"]
    command += ["-c", str(CSRC / "cuda" / source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spills and set(spills) == {"0"}
    assert "warning" not in done.stderr


@pytest.mark.gpu
@NO_GPU
def test_a_change_on_a_gpu_waits_for_nothing():
    model = layers(16, torch.float32, "cuda")
    init = [torch.randn_like(x.weight) for x in model]
    stages = [changes(model, random_masks(model, d), init) for d in (0.3, 0.6, 1.0)]
    update.rebuild(stages[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for stage in stages[1:]:
            update.rebuild(stage)
    finally:
        torch.cuda.set_sync_debug_mode("default")
