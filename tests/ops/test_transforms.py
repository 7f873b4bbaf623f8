# SPDX-License-Identifier: Apache-2.0
"""Derivatives of every kind through a masked layer, against torch on the masked weight."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from sniper import BlockSparseConv1d, BlockSparseLinear


def layer_and_plain(conv: bool, dtype=torch.float64):
    kind = BlockSparseConv1d if conv else BlockSparseLinear
    shape = (32, 16, 3) if conv else (32, 16)
    layer = kind(*shape, block_size=16, **({"padding": 1} if conv else {})).to(dtype)
    layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    plain = (torch.nn.Conv1d if conv else torch.nn.Linear)(
        *shape, **({"padding": 1} if conv else {})
    )
    plain.to(dtype).load_state_dict(layer.state_dict())
    x = torch.randn((2, 32, 5) if conv else (2, 5, 32), dtype=dtype)
    return layer, plain, x


@pytest.mark.parametrize("conv", [False, True])
def test_second_derivatives(conv):
    layer, _, x = layer_and_plain(conv)
    names = ("weight", "bias")

    def f(x, *params):
        return functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    args = [t.detach().clone().requires_grad_() for t in (x, layer.weight, layer.bias)]
    assert torch.autograd.gradgradcheck(f, args, fast_mode=True)


@pytest.mark.parametrize("conv", [False, True])
def test_function_transforms(conv):
    layer, plain, x = layer_and_plain(conv)
    results = []
    for module in (layer, plain):
        loss = lambda x, module=module: module(x).square().sum()  # noqa: E731
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x, x.cos()))).tangent
        results.append(
            [
                grad(loss)(x),
                jvp(module, (x,), (torch.ones_like(x),))[1],
                vmap(module)(torch.stack([x, 2 * x])),
                hessian(loss)(x[:1]),
                tangent,
            ]
        )
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)
        assert wanted.any()


def test_dropout_and_attention_take_part_too():
    from sniper import ops

    x = torch.randn(2, 3, 8)
    _, tangent = jvp(lambda x: ops.relu_dropout(x, 0.5), (x,), (torch.ones_like(x),))
    assert tangent.unique().tolist() == [0.0, 2.0]
    _, tangent = jvp(lambda x: ops.dropout(x, 0.5), (x,), (torch.ones_like(x),))
    assert tangent.unique().tolist() == [0.0, 2.0]
    wanted = grad(lambda q: ops.attention(q, x, x, 2).sum())(x)
    q = x.clone().requires_grad_()
    ops.attention(q, x, x, 2).sum().backward()
    torch.testing.assert_close(wanted, q.grad)


def test_a_second_derivative_of_attention_with_dropout_names_us():
    from sniper import ops

    q = torch.randn(1, 3, 8, requires_grad=True)
    y = ops.attention(q, q, q, 2, dropout_p=0.5)
    (first,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="sniper.ops.attention: expected one derivative"):
        first.sum().backward()
