# SPDX-License-Identifier: Apache-2.0
"""Which kernels run dropout and ReLU for a tensor; a CPU tensor plays one on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from sniper.ops.backends import elementwise
from sniper.ops.backends.triton.products import TRITON
from sniper.ops.geometry import Epilogue


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.fixture(params=[True, False], ids=["trusted", "not trusted"])
def gpu(request, monkeypatch):
    """A GPU whose kernels are trusted, or not; the CPU's are out of reach. What ours were given."""
    calls = []

    def refuse(*args):
        raise AssertionError("a CPU kernel for a tensor on a GPU")

    def dropout(x, p, seed, relu):
        calls.append((p, seed, relu))
        return x.relu() if relu else x

    monkeypatch.setattr(elementwise.cpu, "dropout", refuse)
    monkeypatch.setattr(elementwise.cpu, "relu_dropout_backward", refuse)
    monkeypatch.setattr(elementwise, "takes_on_cpu", lambda x: not x.is_cuda)
    monkeypatch.setattr(elementwise.triton, "dropout", dropout)
    monkeypatch.setattr(type(TRITON), "serves", lambda self, x: request.param)
    return request.param, calls


@pytest.mark.parametrize(("relu", "p"), [*itertools.product([False, True], [0.0, 0.5])])
def test_the_end_of_a_product_on_a_gpu(gpu, relu, p):
    trusted, calls = gpu
    x = torch.randn(64, 64)
    y = elementwise.apply_epilogue(x.clone().as_subclass(OnGPU), Epilogue(relu, p, 7))
    kept = x.relu() if relu else x
    assert calls == ([(p, 7, relu)] if trusted and p else [])
    if p and not trusted:
        zeroed = (y == 0) & (kept != 0)
        assert 0.4 < float(zeroed.sum() / (kept != 0).sum()) < 0.6
        kept = torch.where(zeroed, 0, kept / (1 - p))
    torch.testing.assert_close(torch.Tensor(y), kept)


def test_a_gradient_where_no_kernel_is_trusted(gpu, monkeypatch):
    trusted, _ = gpu
    monkeypatch.setattr(elementwise.triton, "relu_dropout_backward", lambda dy, y, p: "ours")
    dy, y = torch.randn(5, 3), torch.randn(5, 3)
    dz = elementwise.relu_dropout_backward(dy.as_subclass(OnGPU), y, 0.5)
    if trusted:
        assert dz == "ours"
    else:
        torch.testing.assert_close(torch.Tensor(dz), torch.where(y > 0, dy * 2, 0))


@pytest.mark.parametrize("relu", [False, True])
def test_on_a_cpu_the_seed_rules(relu):
    x, end = torch.randn(5, 70), Epilogue(relu, 0.5, 7)
    y = elementwise.apply_epilogue(x.clone(), end)
    assert torch.equal(y, elementwise.apply_epilogue(x.clone(), end))
    kept = x.relu() if relu else x
    assert set(torch.unique(y[kept != 0] / kept[kept != 0]).tolist()) == {0.0, 2.0}
