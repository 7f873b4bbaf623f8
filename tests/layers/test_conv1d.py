# SPDX-License-Identifier: Apache-2.0
"""BlockSparseConv1d against nn.Conv1d with a masked weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sniper import BlockSparseConv1d

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
B = 8


def pair(
    n: int, c: int, k: int, density: float = 0.5, **kwargs
) -> tuple[BlockSparseConv1d, nn.Conv1d, Tensor]:
    """A masked layer, a plain one with the same weights, and the mask per weight."""
    layer = BlockSparseConv1d(c, n, k, block_size=B, **kwargs)
    mask = torch.rand(layer.block_mask_shape) < density
    if 0 < density < 1 and len(mask) > 1:
        mask[-1] = True
        mask[0] = False  # an empty block row
    layer.set_block_mask(mask)
    plain = nn.Conv1d(c, n, k, **kwargs)
    plain.load_state_dict(layer.state_dict())
    elements = mask.repeat_interleave(B, 0).repeat_interleave(B, 2).permute(0, 2, 1)
    return layer, plain, elements


def check(layer, plain, elements, x: Tensor, dy: Tensor | None = None, tolerance=1e-4) -> None:
    """y, dx, dw, db agree, and dw is exactly zero where pruned."""
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    y, expected = layer(ours), plain(theirs)
    assert y.shape == expected.shape and y.dtype == expected.dtype
    close = {"rtol": tolerance, "atol": tolerance / 10}
    torch.testing.assert_close(y, expected, **close)
    dy = torch.randn_like(expected) if dy is None else dy
    y.backward(dy), expected.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, **close)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad * elements, **close)
    assert not layer.weight.grad[~elements].any()
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad, **close)


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("n", "c", "k"), [(16, 16, 3), (32, 8, 5), (8, 24, 1), (24, 16, 4)])
@pytest.mark.parametrize(
    ("padding", "dilation"), [(0, 1), (2, 1), ("same", 1), ("same", 2), (3, 3)]
)
def test_matches_masked_dense(density, n, c, k, padding, dilation):
    check(*pair(n, c, k, density, padding=padding, dilation=dilation), torch.randn(3, c, 17))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
def test_padding_modes(mode, k, padding):
    check(*pair(16, 16, k, padding=padding, padding_mode=mode), torch.randn(2, 16, 9))


@pytest.mark.parametrize("t", [1, 2, 4])
@pytest.mark.parametrize("padding", ["same", 4])
def test_sequences_shorter_than_the_kernel(t, padding):
    check(*pair(16, 8, 9, padding=padding), torch.randn(2, 8, t))


@pytest.mark.parametrize("shape", [(16, 9), (1, 16, 1), (1, 16, 9), (0, 16, 9)])
def test_unbatched_one_row_and_no_batch(shape):
    check(*pair(16, 16, 3, padding=1), torch.randn(shape))


def test_without_bias():
    check(*pair(16, 16, 3, bias=False, padding=1), torch.randn(2, 16, 9))


def test_double():
    layer, plain, elements = pair(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 9, dtype=torch.float64)
    check(layer.double(), plain.double(), elements, x, tolerance=1e-10)


@pytest.mark.parametrize("how", ["channels_last", "sliced", "expanded"])
def test_non_contiguous_input_and_gradient(how):
    def strange(c: int) -> Tensor:
        if how == "channels_last":
            return torch.randn(3, 11, c).transpose(1, 2)
        if how == "sliced":
            return torch.randn(3, 2 * c, 22)[:, ::2, ::2]
        return torch.randn(c, 1).expand(3, c, 11)

    x, dy = strange(16), strange(24)
    assert not x.is_contiguous() and not dy.is_contiguous()
    check(*pair(24, 16, 3, padding=1), x, dy)


def test_channels_last_input_gives_channels_last_output():
    layer, _, _ = pair(16, 16, 3, padding=1)
    y = layer(torch.randn(3, 11, 16).transpose(1, 2))
    assert y.transpose(1, 2).is_contiguous()


def test_weight_keeps_its_shape_and_parameter_and_lies_taps_first():
    layer = BlockSparseConv1d(16, 8, 3, block_size=B)
    weight, values = layer.weight, layer.weight.detach().clone()
    layer.weight.grad = torch.randn(8, 16, 3)
    grad = layer.weight.grad.clone()
    layer.set_block_mask(torch.ones(1, 3, 2, dtype=torch.bool))
    assert layer.weight is weight
    assert layer.weight.shape == (8, 16, 3)
    assert layer.weight.permute(0, 2, 1).is_contiguous()
    assert torch.equal(layer.weight, values)
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert torch.equal(layer.weight.grad, grad)


@pytest.mark.parametrize("change", [copy.deepcopy, nn.Module.double, nn.Module.bfloat16])
def test_memory_order_survives(change):
    layer = change(pair(16, 16, 3)[0])
    assert layer.weight.permute(0, 2, 1).is_contiguous()


def test_without_a_mask_it_is_its_parent_bit_for_bit():
    layer = BlockSparseConv1d(16, 24, 3, padding=1, block_size=B)
    parent = nn.Conv1d(16, 24, 3, padding=1)
    parent.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 9)
    y, expected = layer(x), parent(x)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    y.sum().backward(), expected.sum().backward()
    assert torch.equal(layer.weight.grad, parent.weight.grad)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"stride": 2}, "stride: expected 1.*got 2"),
        ({"groups": 2}, "groups: expected 1.*got 2"),
        ({"block_size": 12}, "divisor of both dimensions, got 12"),
        ({"block_size": 0}, "whole number >= 1"),
    ],
)
def test_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        BlockSparseConv1d(16, 16, 3, **{"block_size": B, **kwargs})


def test_refused_inputs():
    layer, _, _ = pair(16, 16, 5)
    with pytest.raises(ValueError, match=r"expected \[B, 16, T\], got \[1, 1, 16, 9\]"):
        layer(torch.randn(1, 1, 16, 9))
    with pytest.raises(ValueError, match="at least 5 rows with padding, got 4"):
        layer(torch.randn(1, 16, 4))
    with pytest.raises(ValueError, match=r"expected \[B, T, 16\]"):
        layer(torch.randn(1, 8, 9))


def test_repr():
    layer = BlockSparseConv1d(16, 8, 3, block_size=B)
    assert "kernel_size=(3,)" in repr(layer) and "block_size=8, density=1.000" in repr(layer)
