# SPDX-License-Identifier: Apache-2.0
"""Dropout, the gradient of ReLU and dropout, and sums of rows, against the CPU kernels."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import close

from sniper.ops.backend import sum_dtype
from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.backends.triton import elementwise as triton_elementwise

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
SHAPES = [(5,), (3, 64), (2, 7, 100), (1, 300, 16), (0, 4)]


@pytest.mark.parametrize(
    ("shape", "p"), [*((shape, 0.2) for shape in SHAPES), ((5,), 0.0), ((2, 7, 100), 0.9)]
)
def test_dropout_is_the_cpus(shape, p, device):
    x = torch.randn(shape)
    for seed in (-7, 2**63 + 5):
        y = triton_elementwise.dropout(x.to(device), p, seed)
        assert torch.equal(y.cpu(), cpu_elementwise.dropout(x, p, seed))
        y = triton_elementwise.dropout(x.to(device), p, seed, relu=True)
        assert torch.equal(y.cpu(), cpu_elementwise.dropout(x.relu(), p, seed))


def test_dropout_of_strided_and_short_values(dtype, device):
    x = torch.randn(9, 40).to(getattr(torch, dtype)).t()
    y = triton_elementwise.dropout(x.to(device), 0.5, 3)
    expected = cpu_elementwise.dropout(x.float().contiguous(), 0.5, 3)
    assert torch.equal(y.cpu().float(), expected)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradient_and_its_sums(shape, p, device):
    y = cpu_elementwise.dropout(torch.randn(shape).relu(), p, 11)
    dy = torch.randn(shape)
    expected = cpu_elementwise.relu_dropout_backward(dy, y, p)
    dz, db = triton_elementwise.relu_dropout_backward_bias(dy.to(device), y.to(device), p)
    assert torch.equal(dz.cpu(), expected)
    torch.testing.assert_close(db.cpu(), expected.flatten(0, -2).sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(triton_elementwise.relu_dropout_backward(dy.to(device), y.to(device), p), dz)


def test_an_infinite_gradient_of_a_dropped_element_is_zero(device):
    dz = triton_elementwise.relu_dropout_backward(
        torch.full((2, 16), float("inf"), device=device), torch.zeros(2, 16, device=device), 0.5
    )
    assert torch.equal(dz, torch.zeros_like(dz))


@pytest.mark.parametrize("rows", [0, 1, 255, 1000])
def test_column_sums(rows, dtype, device):
    x = torch.randn(rows, 70).to(getattr(torch, dtype)).to(device)
    sums = triton_elementwise.column_sums(x)
    assert sums.dtype == sum_dtype(x)
    close(sums.to(x.dtype), x.cpu().double().sum(0), dtype)
    assert torch.equal(sums, triton_elementwise.column_sums(x))
