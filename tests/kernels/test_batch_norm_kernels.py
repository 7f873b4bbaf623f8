# SPDX-License-Identifier: Apache-2.0
"""BatchNorm with tanh and dropout, and its gradient, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import close
from torch import Tensor

from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.backends.triton import batch_norm as triton

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
EPS, SEED, MOMENTUM = 1e-5, 11, 0.1
# A few rows, two chunks of which one ends inside a tile, more than one tile of columns.
SHAPES = [(5, 16), (2, 35, 75), (2, 9, 80)]


def tensors(shape: tuple[int, ...], dtype: str, device: str) -> list[Tensor]:
    """x, dy, weight, bias; x off zero, where a variance from squares would cancel."""
    x, dy = (torch.randn(shape) + 3).to(getattr(torch, dtype)), torch.randn(shape)
    weight, bias = torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1]) / 2
    return [t.to(device) for t in (x, dy.to(getattr(torch, dtype)), weight, bias)]


def running(columns: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.full((), 4, device=device)
    return torch.randn(columns, device=device), torch.rand(columns, device=device), count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tanh, p", [(True, 0.5), (False, 0.0)])
def test_forward_and_backward_are_torchs(shape, tanh, p, dtype, device):
    x, dy, weight, bias = tensors(shape, dtype, device)
    kept = running(shape[-1], device)
    moved = [t.cpu().double() for t in kept[:2]]
    mean, rstd = triton.statistics(x, EPS, kept, MOMENTUM)
    leaves = [t.cpu().double().requires_grad_() for t in (x, weight, bias)]
    rows = leaves[0].flatten(0, -2)
    wanted = F.batch_norm(rows, *moved, *leaves[1:], True, MOMENTUM, EPS).view(shape)
    wanted = wanted.tanh() if tanh else wanted
    # The mask's source is the CPU's kernel: the same seed must drop the same elements.
    wanted = wanted * cpu_elementwise.dropout(torch.ones(shape), p, SEED).double()
    close(mean, rows.mean(0).detach(), "float32")
    close(kept[0], moved[0], "float32")
    close(kept[1], moved[1], "float32")
    assert int(kept[2]) == 5
    args = (x, mean, rstd, weight, bias, tanh, p, SEED)
    y = triton.batch_norm(*args)
    close(y, wanted.detach(), dtype)
    got = triton.batch_norm_backward(dy, *args)
    right = torch.autograd.grad(wanted, leaves, dy.cpu().double())
    for g, w in zip(got, right, strict=True):
        tolerance = {"float32": 1e-4}.get(dtype, 1e-2)
        g = g.cpu().double()
        assert g.isfinite().all() and (g - w).norm() <= tolerance * w.norm()
    again = triton.batch_norm_backward(dy, *args)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_many_chunks(device):
    """More rows than one program of the second kernel takes at once."""
    x, dy, weight, bias = tensors((20 * 2, 17), "float32", device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "TILE", {"BM": 2, "BN": 16})
        patch.setattr(triton, "LEAST_ROWS", 2)
        patch.setattr(triton.configs, "NORM_SUMS", triton.configs.NORM_SUMS._replace(tokens=16))
        mean, rstd = triton.statistics(x, EPS)
        args = (x, mean, rstd, weight, bias, False, 0.0, 0)
        _, dweight, dbias = triton.batch_norm_backward(dy, *args)
    variance, average = torch.var_mean(x.double(), 0, correction=0)
    torch.testing.assert_close(mean.double(), average, rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=1e-5, atol=0)
    close(dweight, (dy.double() * (x - average) * (variance + EPS).rsqrt()).sum(0), "float32")
    close(dbias, dy.double().sum(0), "float32")


def test_strides_a_nan_and_a_channel_of_one_value(device):
    x, dy, weight, bias = tensors((5, 9, 40), "float32", device)
    x = x.transpose(0, 1)
    x[..., 3], x[2, 2, 5] = 7.0, float("nan")
    mean, rstd = triton.statistics(x, EPS)
    y = triton.batch_norm(x, mean, rstd, weight, bias, False, 0.0, 0)
    wanted = F.batch_norm(x.reshape(-1, 40), None, None, weight, bias, True, 0.0, EPS)
    assert y[..., 5].isnan().all()
    others = [i for i in range(40) if i != 5]
    got = y.reshape(-1, 40)[:, others]
    torch.testing.assert_close(got, wanted[:, others], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(y[..., 3], bias[3].expand(9, 5))


def test_refused(device):
    x, dy, weight, bias = tensors((4, 16), "float32", device)
    with pytest.raises(ValueError, match=r"x: expected at least one row, got shape \[0, 16\]"):
        triton.statistics(x[:0], EPS)
    with pytest.raises(ValueError, match=r"running mean: expected contiguous float32 on"):
        count = torch.zeros((), dtype=torch.int64, device=device)
        triton.statistics(x, EPS, (weight.double(), weight, count), 0.1)
    with pytest.raises(ValueError, match=r"bias: expected shape \[16\], got \[3\]"):
        triton.batch_norm(x, weight, weight, weight, bias[:3], True, 0.0, 0)
    with pytest.raises(ValueError, match=r"dropout: expected p in \[0, 1\), got 1"):
        triton.batch_norm(x, weight, weight, weight, bias, True, 1.0, 0)
