# SPDX-License-Identifier: Apache-2.0
"""LayerNorm with residual and dropout, and its gradient, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import close
from torch import Tensor

from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.backends.triton import norm as triton_norm

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
# One row, no multiple of a group of random words, less than one, several tiles and chunks, none.
SHAPES = [(1, 384), (3, 7, 75), (5, 13), (2, 9, 256), (3, 1536), (0, 4)]
EPS, SEED = 1e-12, 11


def reference(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, p: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """s, the normalised rows, and what to ask gradients of: float64 on the CPU."""
    given = [t if t is None else t.cpu().double() for t in (x, branch, weight, bias)]
    leaves = [t if t is None else t.requires_grad_() for t in given]
    x, branch, weight, bias = leaves
    s = x
    if branch is not None:
        # The mask's source is the CPU's kernel: the same seed must drop the same elements.
        scale = cpu_elementwise.dropout(torch.ones(branch.shape), p, SEED).double()
        s = x + branch * scale
    y = F.layer_norm(s, weight.shape, weight, bias, EPS)
    return s, y, [t for t in leaves if t is not None]


def tensors(shape: tuple[int, ...], dtype: str, device: str, residual: str) -> list[Tensor]:
    """x, branch, weight, bias, dy, ds."""
    c = shape[-1]
    # Off zero, where a variance from squares would cancel.
    x, ds = (torch.randn(shape).to(getattr(torch, residual)) for _ in range(2))
    branch, dy = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(2))
    weight, bias = torch.rand(c) + 0.5, torch.randn(c)
    return [t.to(device) for t in (x + 3, branch, weight, bias, dy, ds)]


@pytest.mark.parametrize(
    ("shape", "p"), [*((shape, 0.2) for shape in SHAPES), ((1, 384), 0.0), ((2, 9, 256), 0.0)]
)
def test_forward_and_backward_are_torchs(shape, p, dtype, device):
    x, branch, weight, bias, dy, ds = tensors(shape, dtype, device, "float32")
    given = getattr(torch, dtype)
    s, y, mean, rstd = triton_norm.add_norm(x, branch, weight, bias, EPS, p, SEED, given)
    wanted_s, wanted_y, leaves = reference(x, branch, weight, bias, p)
    close(s, wanted_s.detach(), "float32")
    close(y, wanted_y.detach(), dtype)
    # Two chunks, so that a program has several tiles.
    backward = (dy, ds, s, mean, rstd, weight, x.dtype, given, p, SEED, 2)
    got = triton_norm.add_norm_backward(*backward)
    grads = torch.autograd.grad(
        (wanted_s, wanted_y), leaves, (ds.cpu().double(), dy.cpu().double())
    )
    for g, wanted, name in zip(got, grads, ("float32", dtype, "float32", "float32"), strict=True):
        close(g, wanted, name)
    again = triton_norm.add_norm_backward(*backward)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("residual", ["float32", "float16"])
@pytest.mark.parametrize("out", ["float32", "float16"])
def test_without_a_branch_it_is_a_layer_norm(residual, out, device):
    x, _, weight, bias, dy, _ = tensors((2, 9, 75), out, device, residual)
    s, y, mean, rstd = triton_norm.add_norm(x, None, weight, bias, EPS, 0.0, 0, getattr(torch, out))
    assert s is None
    _, wanted, leaves = reference(x, None, weight, bias, 0.0)
    close(y, wanted.detach(), out)
    grads = torch.autograd.grad(wanted, leaves, dy.cpu().double())
    args = (dy, None, x, mean, rstd, weight, x.dtype, None)
    dx, dbranch, dweight, dbias = triton_norm.add_norm_backward(*args)
    assert dbranch is None
    for got, expected, name in zip(
        (dx, dweight, dbias), grads, (residual, "float32", "float32"), strict=True
    ):
        close(got, expected, name)


@pytest.mark.parametrize("p, relu", [(0.4, True), (0.4, False), (0.0, True)])
def test_relu_before_and_dropout_behind(p, relu, dtype, device):
    """As a variance predictor has them."""
    x, _, weight, bias, dy, _ = tensors((3, 7, 75), dtype, device, dtype)
    x = x - 3  # on both sides of zero
    given = getattr(torch, dtype)
    _, y, mean, rstd = triton_norm.add_norm(x, None, weight, bias, EPS, p, SEED, given, relu)
    leaves = [t.cpu().double().requires_grad_() for t in (x, weight, bias)]
    scale = cpu_elementwise.dropout(torch.ones(x.shape), p, SEED).double()
    normed = F.layer_norm(leaves[0].relu() if relu else leaves[0], [75], *leaves[1:], EPS)
    close(y, (normed * scale).detach(), dtype)
    args = (dy, None, x, mean, rstd, weight, given, None, p, SEED, 2, relu)
    dx, dbranch, *got = triton_norm.add_norm_backward(*args)
    wanted = torch.autograd.grad(normed * scale, leaves, dy.cpu().double())
    assert dbranch is None
    for g, w, name in zip((dx, *got), wanted, (dtype, "float32", "float32"), strict=True):
        close(g, w, name)


def test_the_widest_rows(device):
    x, branch, weight, bias, dy, ds = tensors((2, 2050), "float32", device, "float32")
    s, y, *_ = triton_norm.add_norm(x, branch, weight, bias, EPS, 0.5, SEED, torch.float32)
    wanted_s, wanted_y, _ = reference(x, branch, weight, bias, 0.5)
    close(s, wanted_s.detach(), "float32")
    close(y, wanted_y.detach(), "float32")


def test_strides_and_the_wider_sum(device):
    """Inputs in any memory order; a short residual and a longer branch give a long sum."""
    x, branch, weight, bias, dy, ds = tensors((6, 9, 40), "float32", device, "float16")
    x, branch = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, branch))
    s, y, mean, rstd = triton_norm.add_norm(x, branch, weight, bias, EPS, 0.2, 7, torch.float32)
    assert s.dtype == torch.float32 and s.is_contiguous()
    scale = cpu_elementwise.dropout(torch.ones(6, 9, 40), 0.2, 7).to(device)
    torch.testing.assert_close(s, x + branch * scale)
    torch.testing.assert_close(y, F.layer_norm(s, [40], weight, bias, EPS), rtol=1e-4, atol=1e-5)


def test_a_row_of_one_value_and_a_nan_stay_in_their_rows(device):
    x = torch.randn(40, 64, device=device)
    x[3], x[7, 5] = 2.0, float("nan")
    weight, bias = torch.ones(64, device=device), torch.zeros(64, device=device)
    _, y, mean, rstd = triton_norm.add_norm(x, None, weight, bias, 1e-5, 0.0, 0, x.dtype)
    assert y[3].eq(0).all() and y[7].isnan().all()
    others = [i for i in range(40) if i != 7]
    wanted = F.layer_norm(x, [64], weight, bias, 1e-5)
    torch.testing.assert_close(y[others], wanted[others], rtol=1e-4, atol=1e-5)
    dx = triton_norm.add_norm_backward(x, None, x, mean, rstd, weight, x.dtype, None)[0]
    assert dx[7].isnan().all() and dx[others].isfinite().all()


def test_refused(device):
    x, weight = torch.randn(2, 5000, device=device), torch.randn(5000, device=device)
    with pytest.raises(ValueError, match=r"x: expected rows of 1 to 4096 columns, got shape"):
        triton_norm.add_norm(x, None, weight, weight, EPS, 0.0, 0, x.dtype)
    x, weight = torch.randn(2, 64, device=device), torch.randn(64, device=device)
    with pytest.raises(ValueError, match=r"branch: expected shape \[2, 64\], got \[1, 64\]"):
        triton_norm.add_norm(x, x[:1], weight, weight, EPS, 0.0, 0, x.dtype)
    with pytest.raises(ValueError, match=r"bias: expected shape \[64\], got \[3\]"):
        triton_norm.add_norm(x, None, weight, weight[:3], EPS, 0.0, 0, x.dtype)
    with pytest.raises(ValueError, match=r"dropout: expected p in \[0, 1\), got 1"):
        triton_norm.add_norm(x, x, weight, weight, EPS, 1.0, 0, x.dtype)
