# SPDX-License-Identifier: Apache-2.0
"""The length regulator and its gradient against torch's own functions."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import close
from torch import Tensor

from sniper.ops import regulator as ops
from sniper.ops.backends.triton import regulator as triton
from sniper.tts.model.variance import regulate_length

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def make(B: int, L: int, T: int, C: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, durations, dy on the CPU: one sequence is all silence, one has a single long token."""
    x, dy = (torch.randn(B, n, C).to(getattr(torch, dtype)) for n in (L, T))
    durations = torch.randint(0, 4, (B, L))
    durations[0], durations[-1] = 0, 0
    durations[-1, L // 2] = T + 3
    return x, durations, dy


# Tokens past what a program adds up at once, several tiles of channels; one of each.
@pytest.mark.parametrize("B, L, T, C", [(3, 40, 60, 24), (4, 7, 21, 300), (2, 1, 1, 1)])
def test_frames_and_gradients_are_torchs(B, L, T, C, dtype, device, monkeypatch):
    for tile in ("TILE", "TILE_BACKWARD"):  # fewer than ship: the check of a GPU has those
        monkeypatch.setattr(triton, tile, getattr(triton, tile) | {"BL": 16})
    x, durations, dy = make(B, L, T, C, dtype)
    exact = x.double().requires_grad_()  # which is torch's
    wanted = regulate_length(exact, durations, T)
    (right,) = torch.autograd.grad(wanted, exact, dy.double())
    there = durations.to(device)
    y = triton.repeat_tokens(x.to(device), there, T)
    assert torch.equal(y.cpu().double(), wanted.detach())
    dx = triton.repeat_tokens_backward(dy.to(device), there)
    assert dx.dtype == x.dtype
    close(dx, right, dtype)
    assert torch.equal(dx, triton.repeat_tokens_backward(dy.to(device), there))


def test_a_model_asks_them_and_gradients_have_gradients(device, monkeypatch):
    x, durations, dy = (t.to(device) for t in make(3, 5, 9, 6, "float32"))
    # As a transposed convolution leaves it, and a gradient that is one number everywhere.
    x = x.mT.contiguous().mT

    def run(served: bool) -> tuple[Tensor, ...]:
        monkeypatch.setattr(triton, "serves", lambda x: served)
        leaf = x.detach().requires_grad_()
        y = regulate_length(leaf, durations, 9)
        assert (type(y.grad_fn).__name__ == "sniper_repeat_tokensBackward") == served
        (plain,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
        (dx,) = torch.autograd.grad((y.square() * dy).sum(), leaf, create_graph=True)
        return y, plain, dx, *torch.autograd.grad(dx.square().sum(), leaf)

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)


def test_registrations(device):
    x, durations, dy = (t.to(device) for t in make(2, 5, 9, 6, "float32"))
    torch.library.opcheck(ops.repeat_tokens.op, (x.requires_grad_(), durations, 9))
    torch.library.opcheck(ops._sums.op, (dy.requires_grad_(), durations))


def test_refused(device):
    x, durations, dy = (t.to(device) for t in make(2, 5, 9, 6, "float32"))
    with pytest.raises(ValueError, match=r"durations: expected int64 on .*, got torch.int32 on"):
        triton.repeat_tokens(x, durations.int(), 9)
    with pytest.raises(ValueError, match=r"durations: expected shape \[1, any\], got \[2, 5\]"):
        triton.repeat_tokens_backward(dy[:1], durations)
    with pytest.raises(ValueError, match=r"x: expected shape \[any, any, any\], got \[2, 5\]"):
        triton.repeat_tokens(x[..., 0], durations, 9)
