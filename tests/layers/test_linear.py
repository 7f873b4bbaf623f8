# SPDX-License-Identifier: Apache-2.0
"""BlockSparseLinear against nn.Linear with a masked weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper import BlockSparseLinear

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
B = 16


def random_mask(layer: BlockSparseLinear, density: float) -> Tensor:
    mask = torch.rand(layer.block_mask_shape) < density
    if 0 < density < 1:
        mask[-1] = True
        mask[0] = False  # an empty block row
    return mask


def masked_twin(layer: BlockSparseLinear) -> tuple[Tensor, Tensor, Tensor | None]:
    """The expanded mask, and leaves for weight and bias."""
    mask = layer.block_mask.repeat_interleave(B, 0).repeat_interleave(B, 1)
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    return mask, layer.weight.detach().clone().requires_grad_(), bias


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("k", "n"), [(64, 64), (32, 96), (96, 16)])
@pytest.mark.parametrize("lead", [(1,), (5,), (3, 7), (2, 3, 4), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_matches_masked_dense(density, k, n, lead, bias):
    layer = BlockSparseLinear(k, n, bias, block_size=B)
    layer.set_block_mask(random_mask(layer, density))
    mask, weight, b = masked_twin(layer)
    x = torch.randn(*lead, k, requires_grad=True)
    twin_x = x.detach().clone().requires_grad_()
    y, expected = layer(x), F.linear(twin_x, weight * mask, b)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)
    assert not layer.weight.grad[~mask].any()
    if bias:
        torch.testing.assert_close(layer.bias.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["transposed", "sliced", "expanded"])
def test_non_contiguous_input_and_gradient(how):
    layer = BlockSparseLinear(32, 48, block_size=B)
    layer.set_block_mask(random_mask(layer, 0.5))
    mask, weight, b = masked_twin(layer)

    def strange(*shape: int) -> Tensor:
        if how == "transposed":
            return torch.randn(shape[1], shape[0], shape[2]).transpose(0, 1)
        if how == "sliced":
            return torch.randn(shape[0], shape[1], 2 * shape[2])[..., ::2]
        return torch.randn(1, 1, shape[2]).expand(*shape)

    x, dy = strange(3, 5, 32), strange(3, 5, 48)
    assert not x.is_contiguous() and not dy.is_contiguous()
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    y, expected = layer(ours), F.linear(theirs, weight * mask, b)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.backward(dy), expected.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)


def test_without_a_mask_it_is_its_parent_bit_for_bit():
    layer = BlockSparseLinear(32, 48, block_size=B)
    parent = nn.Linear(32, 48)
    parent.load_state_dict(layer.state_dict())
    x = torch.randn(5, 32)
    y, expected = layer(x), parent(x)
    assert torch.equal(y, expected)
    y.sum().backward(), expected.sum().backward()
    assert torch.equal(layer.weight.grad, parent.weight.grad)
    layer.set_block_mask(torch.ones(3, 2, dtype=torch.bool))
    layer.set_block_mask(None)
    assert layer.density == 1.0 and layer.block_mask is None and layer.layout is None
    assert torch.equal(layer(x), expected)


def test_same_initial_weights_as_the_parent():
    torch.manual_seed(3)
    layer = BlockSparseLinear(32, 48, block_size=B)
    torch.manual_seed(3)
    assert torch.equal(layer.weight, nn.Linear(32, 48).weight)


def test_no_rows():
    layer = BlockSparseLinear(32, 48, block_size=B)
    layer.set_block_mask(random_mask(layer, 0.5))
    x = torch.randn(2, 0, 32, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, 0, 48)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def test_frozen_weight_and_input_without_gradient():
    layer = BlockSparseLinear(32, 48, block_size=B)
    layer.set_block_mask(random_mask(layer, 0.5))
    layer(torch.randn(3, 32)).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None


@pytest.mark.parametrize("args", [(32, 40), (40, 32), (8, 8)])
def test_features_that_do_not_divide(args):
    words = f"divisor of both dimensions, got 16 for a weight of {args[1]} x {args[0]}"
    with pytest.raises(ValueError, match=words):
        BlockSparseLinear(*args, block_size=B)


def test_wrong_width_or_dtype():
    layer = BlockSparseLinear(32, 48, block_size=B)
    layer.set_block_mask(random_mask(layer, 0.5))
    with pytest.raises(ValueError, match=r"expected a tensor \[\.\.\., 32\], got \[3, 48\]"):
        layer(torch.randn(3, 48))
    with pytest.raises(ValueError, match="expected x's dtype torch.float64"):
        layer(torch.randn(3, 32, dtype=torch.float64))


def test_repr():
    layer = BlockSparseLinear(32, 48, block_size=B)
    layer.set_block_mask(torch.tensor([[True, False]] * 3))
    assert repr(layer) == (
        "BlockSparseLinear(in_features=32, out_features=48, bias=True, "
        "block_size=16, density=0.500)"
    )


def test_inputs_without_rows_in_memory_are_torchs():
    layer = BlockSparseLinear(8, 4, block_size=4)
    layer.set_block_mask(torch.tensor([[True, False]]))
    parts = [torch.randn(3, 8), torch.randn(5, 8)]
    for layout in (torch.jagged, torch.strided):
        got = layer(torch.nested.nested_tensor(parts, layout=layout))
        for y, part in zip(got.unbind(), parts, strict=True):
            torch.testing.assert_close(y, layer(part))
    torch.testing.assert_close(layer(parts[0].to_sparse()), layer(parts[0]))


def test_sequences_that_lie_end_to_end_need_no_views():
    layer = BlockSparseLinear(32, 48, block_size=16)
    layer.set_block_mask(torch.rand(3, 2) < 0.5)
    x = torch.randn(3, 5, 32)
    y = layer(x)
    assert y.grad_fn.name() == "sniper_block_fwdBackward"
    for other in (x.transpose(0, 1), x[:, :, None], x.flatten(0, 1)):
        torch.testing.assert_close(layer(other).reshape(-1).sort()[0], y.reshape(-1).sort()[0])
    # A gradient whose channels lie apart is that of its copy.
    dy = torch.randn(3, 48, 5).transpose(1, 2)
    params = list(layer.parameters())
    apart = torch.autograd.grad(y, params, dy, retain_graph=True)
    for got, wanted in zip(apart, torch.autograd.grad(y, params, dy.contiguous()), strict=True):
        assert torch.equal(got, wanted)
