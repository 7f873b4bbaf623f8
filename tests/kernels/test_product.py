# SPDX-License-Identifier: Apache-2.0
"""Forward pass and input gradient: every kernel against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import INTERPRETED
from kernel_cases import CASES, MORE_CASES, Case, close, far_apart, make  # noqa: F401

from sniper.ops import timings
from sniper.ops.backends import CPU, REFERENCE, TRITON
from sniper.ops.backends.triton import tuning
from sniper.ops.geometry import Epilogue, Geometry
from sniper.ops.layout import BlockLayout

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def test_matches_the_reference(case: Case, path, dtype, device):
    x, dy, w, bias, layout, geometry = make(case, dtype, device)
    y = TRITON.fwd(x, w, bias, layout, geometry)
    dx = TRITON.dgrad(dy, w, layout, geometry, x.shape[1])
    host, args = layout.to("cpu"), [t.cpu().double() for t in (x, dy, w, bias)]
    close(y, REFERENCE.fwd(args[0], args[2], args[3], host, geometry), dtype)
    close(dx, REFERENCE.dgrad(args[1], args[2], host, geometry, x.shape[1]), dtype)


# Where the product is written: by tokens or by channels, one sequence or all, tiles of two pieces.
GATED = [
    Case(16, 5, 1, 0.0, 1, 6),
    Case(32, 3, 2, 0.25, 2, 19),
    Case(64, 3, 2, 0.25, 1, 150),
    Case(128, 1, 1, 0.25, 2, 19),
]


@pytest.mark.cases(*GATED)
def test_an_input_gradient_behind_relu_and_dropout(case: Case, path, dtype, device):
    """The gate says what ReLU and dropout let through; what it holds back counts for nothing."""
    x, dy, w, _, layout, geometry = make(case, dtype, device)
    gate = x.relu().transpose(1, 2).contiguous().transpose(1, 2)
    dz = TRITON.dgrad(dy, w, layout, geometry, x.shape[1], gate, 0.2)
    args = (dy.cpu().double(), w.cpu().double(), layout.to("cpu"), geometry, x.shape[1])
    close(dz, REFERENCE.dgrad(*args) * (gate > 0).cpu() / 0.8, dtype)
    infinite = torch.full_like(dy, float("inf"))
    dz = TRITON.dgrad(infinite, w, layout, geometry, x.shape[1], gate)
    assert torch.equal(dz[gate == 0], torch.zeros_like(dz[gate == 0]))


def test_a_gate_that_does_not_fit(device):
    x, dy, w, _, layout, geometry = make(Case(64, 1, 1, 0.5, 2, 7), "float32", device)
    args = (dy, w, layout, geometry, 7)
    with pytest.raises(ValueError, match=r"gate: expected shape \[2, 7, 128\], got \[2, 6, 128\]"):
        TRITON.dgrad(*args, x[:, 1:])
    with pytest.raises(ValueError, match="gate: expected torch.float32 .* got torch.float16"):
        TRITON.dgrad(*args, x.half())
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\)"):
        TRITON.dgrad(*args, x, 1.0)


def test_pruned_weights_are_not_read(path, taken, device):
    x, dy, w, bias, layout, geometry = make(Case(64, 1, 1, 0.5, 2, 7), taken, device)
    pruned = ~layout.element_mask().reshape(w.shape)
    dirty = w.masked_fill(pruned, float("nan"))
    assert torch.equal(
        TRITON.fwd(x, dirty, bias, layout, geometry), TRITON.fwd(x, w, bias, layout, geometry)
    )
    dx = TRITON.dgrad(dy, dirty, layout, geometry, 7)
    assert torch.equal(dx, TRITON.dgrad(dy, w, layout, geometry, 7))


def test_entries_of_an_older_mask_are_not_read(path, taken, device):
    """Index arrays keep their size; what lies past the last row is of the mask before."""
    x, _, w, bias, layout, geometry = make(Case(64, 3, 1, 1.0, 1, 9), taken, device)
    mask = torch.zeros(layout.shape, dtype=torch.bool)
    mask[1, 2, 0] = True
    layout.update(mask)
    expected = REFERENCE.fwd(*(t.cpu().double() for t in (x, w, bias)), layout.to("cpu"), geometry)
    close(TRITON.fwd(x, w, bias, layout, geometry), expected, taken)


@pytest.mark.parametrize("block", [16, 64])
def test_layouts_that_the_copy_engine_refuses(block, path, taken, device):
    """Strided rows and channels, odd addresses: the same bits."""
    x, dy, w, bias, layout, geometry = make(Case(block, 1, 1, 0.5, 2, 9), taken, device)
    y = TRITON.fwd(x, w, bias, layout, geometry)
    odd = x.new_empty(x.numel() + 1)[1:].view_as(x).copy_(x)
    strided = torch.stack([x, x], 2)[:, :, 0]
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (odd, strided, transposed):
        close(TRITON.fwd(other, w, bias, layout, geometry), y, taken)
    wide = torch.stack([w, w], 1)[:, 0]
    assert wide.stride(0) == 2 * w.shape[1]
    close(TRITON.fwd(x, wide, bias, layout, geometry), y, taken)
    dx = TRITON.dgrad(dy, w, layout, geometry, 9)
    odd = dy.new_empty(dy.numel() + 1)[1:].view_as(dy).copy_(dy)
    close(TRITON.dgrad(odd, w, layout, geometry, 9), dx, taken)


def test_more_than_2_31_elements(path, device):
    x, dy, w, bias, layout, geometry = make(Case(64, 3, 1, 0.5, 3, 7), "float16", device)
    y = TRITON.fwd(x, w, bias, layout, geometry)
    assert torch.equal(TRITON.fwd(far_apart(x), w, bias, layout, geometry), y)
    dx = TRITON.dgrad(dy, w, layout, geometry, 7)
    assert torch.equal(TRITON.dgrad(far_apart(dy), w, layout, geometry, 7), dx)


def test_an_expanded_gradient(path, taken, device):
    _, _, w, _, layout, geometry = make(Case(64, 3, 1, 0.5, 2, 9), taken, device)
    dy = torch.randn((), device=device).to(w.dtype).expand(2, 9, w.shape[0])
    expected = TRITON.dgrad(dy.contiguous(), w, layout, geometry, 9)
    assert torch.equal(TRITON.dgrad(dy, w, layout, geometry, 9), expected)


# Without dropout one block size of each way to write a tile.
@pytest.mark.parametrize(
    ("block", "p"), [(16, 0.3), (32, 0.3), (64, 0.3), (128, 0.3), (16, 0.0), (64, 0.0)]
)
def test_relu_and_dropout_zero_what_the_cpu_zeroes(block, p, path, taken, device):
    x, _, w, bias, layout, geometry = make(Case(block, 1, 1, 0.6, 2, 13), taken, device)
    seed = torch.tensor(2**62 - 12345, device=device)
    y = TRITON.fwd(x, w, bias, layout, geometry, Epilogue(True, p, seed))
    args = (t.cpu().float() for t in (x, w, bias))
    expected = CPU.fwd(*args, layout.to("cpu"), geometry, Epilogue(True, p, int(seed)))
    close(y, expected, taken)
    assert (y == 0).float().mean() > 0.5 * (1 + p) - 0.05
    assert torch.equal(y, TRITON.fwd(x, w, bias, layout, geometry, Epilogue(True, p, int(seed))))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_do(shape, path, taken, device):
    x, _, w, bias, layout, _ = make(Case(64, 3, 1, 0.5, 1, 1), taken, device)
    geometry = Geometry(3, 1, 1, 2)
    empty = x.new_zeros(*shape, x.shape[2])
    y = TRITON.fwd(empty, w, bias, layout, geometry)
    args = (t.cpu().double() for t in (empty, w, bias))
    expected = REFERENCE.fwd(*args, layout.to("cpu"), geometry)
    close(y, expected, taken)


def test_uneven_padding_and_a_sequence_that_outlasts_its_tile(path, device):
    x, dy, w, bias, layout, _ = make(Case(64, 3, 2, 0.5, 1, 300), "float16", device)
    geometry = Geometry(3, 2, 5, 0)
    dy = torch.randn(1, geometry.out_length(300), dy.shape[2], device=device).half()
    host, args = layout.to("cpu"), [t.cpu().double() for t in (x, dy, w, bias)]
    y = TRITON.fwd(x, w, bias, layout, geometry)
    close(y, REFERENCE.fwd(args[0], args[2], args[3], host, geometry), "float16")
    dx = TRITON.dgrad(dy, w, layout, geometry, 300)
    close(dx, REFERENCE.dgrad(args[1], args[2], host, geometry, 300), "float16")


def test_every_configuration_gives_the_same(path, device, monkeypatch):
    """`tune` times them all, takes the fastest and remembers it."""
    # How many samples decide is not the question here.
    monkeypatch.setattr(timings, "SAMPLES", 1)
    monkeypatch.setattr(timings, "MOST_SAMPLES", 1)
    x, dy, w, bias, layout, geometry = make(Case(64, 1, 1, 0.5, 1, 10), "float16", device)
    for which, args in {"fwd": (x, w, bias), "dgrad": (dy, w, 10), "wgrad": (dy, x)}.items():
        tilings = tuning.tilings(which, layout, *args[:2])
        results = [TRITON.run_with(t, which, layout, geometry, *args) for t in tilings]
        for result in results[1:]:
            close(result, results[0].double(), "float16")
        if path == "pointer" or not INTERPRETED:  # the same calls of fewer tilings
            chosen = TRITON.tune(which, layout, geometry, *args)
            assert chosen in map(str, tilings)
        assert tuning.pick_tiling(which, layout, geometry, *args[:2]) in tilings


@pytest.mark.parametrize("path", ["tma"], indirect=True)
def test_a_product_takes_more_stages_where_a_row_has_many_blocks(path, device):
    layout = BlockLayout(torch.ones(2, 3, 4, dtype=torch.bool), 64).to(device)
    x = torch.empty(1, 560, 256, dtype=torch.float16, device=device)
    dy, weight = x[:, :, :128], x.new_empty(128, 768)
    tiles = {
        which: tuning.pick_tiling(which, layout, Geometry(3, 1, 1, 1), t, weight).config
        for which, t in (("fwd", x), ("dgrad", dy))
    }
    # Twelve blocks in a row of the weight, six in one of its transpose.
    assert {which: (c.tokens, c.stages) for which, c in tiles.items()} == {
        "fwd": (192, 3),
        "dgrad": (192, 2),
    }


@pytest.mark.parametrize("path", ["tma"], indirect=True)
def test_a_weight_gradient_takes_blocks_together_where_a_row_has_many(path, device):
    widths = {}
    for density in (0.25, 1.0):
        x, dy, _, _, layout, geometry = make(Case(64, 3, 1, density, 1, 100), "float16", device)
        widths[density] = tuning.pick_tiling("wgrad", layout, geometry, dy, x).config.width
    assert widths == {0.25: 1, 1.0: 2}
