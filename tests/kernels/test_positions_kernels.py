# SPDX-License-Identifier: Apache-2.0
"""Positions added with dropout, and the gradients of x and alpha, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import close
from torch import Tensor

from sniper.ops import positions as ops
from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.backends.triton import elementwise as triton_elementwise
from sniper.ops.backends.triton import positions as triton
from sniper.ops.dropout import draw_seed
from sniper.tts.model.transformer import PositionEmbed

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
SEED = 11


# One row; sequences that end within a tile, of more columns than one.
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 37, 100)])
@pytest.mark.parametrize("scaled, p", [(True, 0.3), (False, 0.0)])
@pytest.mark.parametrize("autocast", [True, False])
def test_forward_and_backward_are_torchs(shape, scaled, p, autocast, dtype, device):
    rounded = getattr(torch, dtype)
    wide = torch.float32 if autocast else rounded
    x, dy = torch.randn(shape).to(rounded), torch.randn(shape).to(wide)
    encoding, alpha = torch.randn(shape[1:]).to(wide), torch.tensor(0.75, dtype=wide)
    keep = cpu_elementwise.dropout(torch.ones(shape), p, SEED).double()
    leaves = [x.double().requires_grad_(), alpha.double().requires_grad_()]
    wanted = (1.5 * leaves[0] + (leaves[1] if scaled else 1) * encoding.double()) * keep
    known = encoding.to(device), alpha.to(device) if scaled else None
    y = triton.add_positions(x.to(device), *known, 1.5, p, SEED)
    assert y.dtype == wide
    close(y, wanted.detach(), str(wide).removeprefix("torch."))
    args = (dy.to(device), known[0], rounded, scaled, 1.5, p, SEED)
    dx, dalpha = triton.add_positions_backward(*args)
    right = torch.autograd.grad(wanted, leaves if scaled else leaves[:1], dy.double())
    assert dx.dtype == rounded
    close(dx, right[0], dtype)
    assert (dalpha is not None) == scaled
    if dalpha is not None:
        # The sum cancels: as far off as its terms may be rounded.
        terms = (dy.double() * keep * encoding.double()).abs().sum()
        assert (dalpha.cpu().double() - right[1]).abs() <= 1e-6 * terms
        again = triton.add_positions_backward(*args)
        assert torch.equal(again[0], dx) and torch.equal(again[1], dalpha)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("scaled", [True, False])
def test_a_model_asks_them_and_gradients_have_gradients(scaled, device, monkeypatch):
    embed = PositionEmbed(24, 0.3, scaled, max_length=16).to(device)
    x, dy = (torch.randn(2, 9, 24, device=device) for _ in range(2))

    def run(served: bool) -> tuple[Tensor, ...]:
        monkeypatch.setattr(triton, "serves", lambda x: served)
        leaf = x.detach().requires_grad_()
        known = [leaf, embed.alpha] if scaled else [leaf]
        torch.manual_seed(3)
        if served:
            y = embed(leaf)
            assert type(y.grad_fn).__name__ == "sniper_add_positionsBackward"
        else:
            kept = triton_elementwise.dropout(torch.ones_like(x), 0.3, draw_seed(device))
            encoding = embed.encoding[:9]
            known_sum = leaf + embed.alpha * encoding if scaled else leaf * math.sqrt(24) + encoding
            y = known_sum * kept
        plain = torch.autograd.grad(y, known, dy, retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), known, create_graph=True)
        return y, *plain, *torch.autograd.grad(sum(g.square().sum() for g in first), known)

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_without_dropout_nothing_is_drawn(device, monkeypatch):
    monkeypatch.setattr(triton, "serves", lambda x: True)
    embed, x = PositionEmbed(24, 0.3).to(device).eval(), torch.randn(2, 9, 24, device=device)
    torch.manual_seed(3)
    wanted = torch.rand(1, device=device)
    torch.manual_seed(3)
    torch.testing.assert_close(embed(x), x + embed.encoding[:9])
    assert torch.equal(torch.rand(1, device=device), wanted)


def test_registrations(device):
    x, dy = (torch.randn(2, 9, 24, device=device) for _ in range(2))
    encoding, alpha = torch.randn(9, 24, device=device), torch.ones((), device=device)
    seed = torch.tensor(7, device=device)
    for a in (alpha.requires_grad_(), None):
        args = (x.clone().requires_grad_(), encoding, a, 1.0, 0.25, seed)
        torch.library.opcheck(ops._added.op, args)
        ends = (torch.float32, a is not None, 1.0, 0.25, seed)
        torch.library.opcheck(ops._gradients.op, (dy, encoding, *ends))


def test_refused(device):
    x, encoding = torch.randn(2, 9, 24, device=device), torch.randn(9, 24, device=device)
    assert not ops.fuses_positions(x, encoding.double(), None)
    with pytest.raises(ValueError, match=r"encoding: expected shape \[9, 24\], got \[8, 24\]"):
        triton.add_positions(x, encoding[:8], None, 1.0, 0.0, 0)
    with pytest.raises(ValueError, match=r"encoding: expected torch.float32 or float32 on .*, got"):
        triton.add_positions(x, encoding.half(), None, 1.0, 0.0, 0)
    with pytest.raises(ValueError, match=r"dropout: expected p in \[0, 1\), got 1"):
        triton.add_positions(x, encoding, None, 1.0, 1.0, 0)
