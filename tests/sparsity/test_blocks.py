# SPDX-License-Identifier: Apache-2.0
"""Weights in blocks, written out by hand; pooling in the extension against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sniper.sparsity.blocks import expand_blocks, is_eligible, pool, pool_reference

T, F = True, False
pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def test_expand_blocks():
    mask = torch.tensor([[T, F], [F, T]])
    assert expand_blocks(mask, 2, torch.Size((4, 4))).tolist() == [
        [T, T, F, F],
        [T, T, F, F],
        [F, F, T, T],
        [F, F, T, T],
    ]
    conv = torch.tensor([[[T], [F], [T]]])
    assert expand_blocks(conv, 2, torch.Size((2, 2, 3))).tolist() == [[[T, F, T]] * 2] * 2


def test_eligible_shapes():
    yes = [((64, 128), 64), ((64, 64, 9), 32), ((1, 1), 1)]
    no = [((64,), 64), ((64, 65), 64), ((63, 64, 3), 64), ((64, 64, 3, 3), 64), ((0, 64), 64)]
    assert all(is_eligible(torch.Size(shape), b) for shape, b in yes)
    assert not any(is_eligible(torch.Size(shape), b) for shape, b in no)


def as_kernels_have_it(weight: Tensor) -> Tensor:
    """The same numbers as `[N, taps, C]` in memory."""
    return weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


@pytest.mark.parametrize("b", [1, 2, 16, 24, 32, 48, 64])
@pytest.mark.parametrize("taps", [0, 1, 3])
def test_pool_is_the_reference(b, taps, device):
    shape = (2 * b, 3 * b, taps) if taps else (2 * b, 3 * b)
    w, g = torch.randn(shape), torch.randn(shape)
    expected = pool_reference(w.double(), g.double(), b)
    orders = (
        [lambda x: x, as_kernels_have_it] if taps else [lambda x: x, lambda x: x.t().clone().t()]
    )
    found = [
        pool(order(w.to(device)), other(g.to(device)), b).cpu()
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
    assert pool(w, g, 2).tolist() == [[6, 4], [4, 10]]
    conv = torch.stack([w, 10 * w], 2)
    assert pool(conv, g[..., None].expand(4, 4, 2), 2).tolist() == [
        [[6, 4], [60, 40]],
        [[4, 10], [40, 100]],
    ]


def test_pool_does_not_depend_on_threads():
    w, g = torch.randn(192, 128, 5), torch.randn(192, 128, 5)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(pool(w, g, 64))
    assert all(torch.equal(found[0], f) for f in found)


def test_pool_carries_nan_and_infinity_to_their_block():
    w, g = torch.ones(4, 4), torch.ones(4, 4)
    g[0, 3], g[2, 0] = float("nan"), float("inf")
    assert pool(w, g, 2).isfinite().tolist() == [[T, F], [F, T]]


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
        pool(weight, gradient, 4)
