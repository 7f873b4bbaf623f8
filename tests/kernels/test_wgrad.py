# SPDX-License-Identifier: Apache-2.0
"""Weight gradient: every kernel against the reference in float64, exact zeros, equal bits."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CASES, MORE_CASES, Case, close, far_apart, make  # noqa: F401

from sniper.ops.backends import REFERENCE, TRITON
from sniper.ops.backends.triton import launch

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def expected_of(dy, x, layout, geometry):
    """In float64 on the CPU."""
    return REFERENCE.wgrad(dy.cpu().double(), x.cpu().double(), layout.to("cpu"), geometry)[0]


def test_matches_the_reference(case: Case, path, dtype, device):
    x, dy, _, _, layout, geometry = make(case, dtype, device)
    dw, db = TRITON.wgrad(dy, x, layout, geometry, with_bias=True)
    close(dw, expected_of(dy, x, layout, geometry), dtype)
    close(db.to(dy.dtype), dy.cpu().double().sum((0, 1)), dtype)
    assert not dw[~layout.element_mask().reshape(dw.shape)].any()


@pytest.mark.parametrize("block", [32, 64])
def test_splits_are_added_in_order(block, path, device, monkeypatch):
    x, dy, _, _, layout, geometry = make(Case(block, 1, 1, 0.5, 1, 230), "float16", device)
    whole = TRITON.wgrad(dy, x, layout, geometry)[0]
    for tiles in (1, 2):
        monkeypatch.setattr(launch, "split_tiles", lambda *_, tiles=tiles: tiles)
        dw = TRITON.wgrad(dy, x, layout, geometry)[0]
        close(dw, expected_of(dy, x, layout, geometry), "float16")
        close(dw, whole.double(), "float16")
        assert torch.equal(dw, TRITON.wgrad(dy, x, layout, geometry)[0])


@pytest.mark.parametrize("tiles", [1, 100])
@pytest.mark.parametrize("block", [32, 64])
def test_active_blocks_are_added_to_what_is_there(block, tiles, path, device, monkeypatch):
    """With dL/db beside it and several tiles a program: what one product of a tile reads is not to
    be overwritten for another.
    """
    x, dy, _, _, layout, geometry = make(Case(block, 3, 1, 0.5, 2, 150), "float16", device)
    monkeypatch.setattr(launch, "split_tiles", lambda *_: tiles)
    active = layout.element_mask().flatten(1)
    into = torch.randn(active.shape, device=device)
    before = into.clone()
    dw, db = TRITON.wgrad(dy, x, layout, geometry, with_bias=True, into=into)
    assert dw is into and torch.equal(into[~active], before[~active])
    close((into - before).half(), expected_of(dy, x, layout, geometry), "float16")
    close(db.half(), dy.cpu().double().sum((0, 1)), "float16")


@pytest.mark.parametrize("block", [16, 64])
def test_layouts_that_the_copy_engine_refuses(block, path, taken, device):
    x, dy, _, _, layout, geometry = make(Case(block, 1, 1, 0.5, 2, 9), taken, device)
    dw = TRITON.wgrad(dy, x, layout, geometry)[0]
    odd = [t.new_empty(t.numel() + 1)[1:].view_as(t).copy_(t) for t in (dy, x)]
    strided = [torch.stack([t, t], 2)[:, :, 0] for t in (dy, x)]
    transposed = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (dy, x)]
    for pair in (odd, strided, transposed):
        close(TRITON.wgrad(*pair, layout, geometry)[0], dw, taken)


def test_more_than_2_31_elements(path, device):
    x, dy, _, _, layout, geometry = make(Case(64, 3, 1, 0.5, 3, 7), "float16", device)
    dw = TRITON.wgrad(dy, far_apart(x), layout, geometry)[0]
    close(dw, expected_of(dy, x, layout, geometry), "float16")


def test_nothing_to_add(path, taken, device):
    x, dy, _, _, layout, geometry = make(Case(64, 3, 1, 0.5, 1, 4), taken, device)
    dw, db = TRITON.wgrad(dy[:0], x[:0], layout, geometry, with_bias=True)
    assert not dw.any() and not db.any()


def test_more_programs_than_blocks_and_the_other_way_round():
    device = torch.device("cpu")
    many = launch.multiprocessors(device) * launch.WAVES
    assert launch.split_tiles(device, 10 * many, 100) == 100  # no split
    assert launch.split_tiles(device, 1, 100 * many) == 100  # one split a program
    assert launch.split_tiles(device, 1, 3) == 3  # too little to split


@pytest.mark.parametrize("taps", [1, 3])
def test_a_dense_gradient_is_added_in_active_blocks(taps, device):
    layout = make(Case(32, taps, 1, 0.5, 1, 4), "float16", device)[4]
    active = layout.element_mask().flatten(1)
    dw = torch.randn(active.shape, device=device).half()
    into = torch.randn(active.shape, device=device)
    before = into.clone()
    assert TRITON.add_blocks(dw.masked_fill(~active, float("nan")), layout, into) is into
    assert torch.equal(into, torch.where(active, before + dw.float(), before))
    with pytest.raises(ValueError, match="into: expected contiguous float32 on"):
        TRITON.add_blocks(dw, layout, into.half())
    with pytest.raises(ValueError, match="into: expected shape"):
        TRITON.add_blocks(dw, layout, into[1:])
