# SPDX-License-Identifier: Apache-2.0
import importlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sniper import BlockSparseConv1d, BlockSparseLinear
from sniper.layers import Dropout, relu_dropout
from sniper.layers.dropout import handed_over_rate
from sniper.ops import use_backend
from sniper.ops.backends import TRITON


def test_share_scale_and_gradient_are_those_of_dropout():
    layer, x = Dropout(0.3), torch.ones(200, 500, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert abs((y == 0).float().mean().item() - 0.3) < 0.01
    torch.testing.assert_close(y.max().item(), 1 / 0.7)
    assert torch.equal(x.grad, y)  # for ones, the same mask and scale


def test_seed_rules_the_draws_and_every_call_draws_anew():
    layer, x = Dropout(0.5), torch.ones(50, 50)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_memory_order_stays():
    layer, rows = Dropout(0.5), torch.ones(3, 40, 20)
    torch.manual_seed(1)
    expected = layer(rows)
    x = rows.transpose(1, 2).requires_grad_()  # [B, C, T], channels last
    torch.manual_seed(1)
    y = layer(x)
    assert y.shape == (3, 20, 40) and y.stride() == x.stride()
    assert torch.equal(y, expected.transpose(1, 2))
    y.backward(torch.ones(3, 20, 40))  # a gradient of another order
    assert torch.equal(x.grad, y)
    assert (layer(torch.ones(4, 6, 8)[:, ::2, ::3]) != 0).any()


def test_evaluation_and_zero_rate_give_the_input_itself():
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


def test_rate_one_and_other_dtypes_are_torch_dropout():
    assert (Dropout(1.0)(torch.ones(9)) == 0).all()
    y = Dropout(0.5)(torch.ones(4000, dtype=torch.float64))
    assert y.dtype == torch.float64 and 0.4 < (y == 0).double().mean() < 0.6


@pytest.mark.parametrize("kind", ["plain", "sparse", "masked"])
@pytest.mark.parametrize("layer_type", ["linear", "conv1d"])
def test_relu_dropout_of_a_layer(kind, layer_type):
    if layer_type == "linear":
        make = nn.Linear if kind == "plain" else lambda *a: BlockSparseLinear(*a, block_size=16)
        layer, x = make(32, 64), torch.randn(2, 7, 32)
    else:
        make = nn.Conv1d
        if kind != "plain":
            make = lambda *a, **k: BlockSparseConv1d(*a, **k, block_size=16)  # noqa: E731
        layer, x = make(32, 64, 3, padding=1), torch.randn(2, 32, 7)
    if kind == "masked":
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    dropout = Dropout(0.4)
    wanted = torch.relu(layer(x))
    y = relu_dropout(layer, x, dropout)
    kept = y != 0
    torch.testing.assert_close(y[kept], wanted[kept] / 0.6, rtol=1e-5, atol=1e-6)
    assert 0.3 < (kept & (wanted > 0)).sum() / (wanted > 0).sum() < 0.9
    y = relu_dropout(layer, x, dropout.eval())
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_plain_layers_relu_and_dropout_are_one_kernel_on_a_gpu(channels_last, monkeypatch):
    """Played by the CPU, whose kernels draw the same mask by one way and the other."""
    layer, dropout = nn.Conv1d(16, 16, 1), Dropout(0.4)
    if channels_last:
        inner = layer.forward
        layer.forward = lambda x: inner(x).mT.contiguous().mT
    x = torch.randn(2, 16, 9, requires_grad=True)
    calls, module = [], importlib.import_module("sniper.layers.dropout")
    inner_op = module.relu_then_dropout
    monkeypatch.setattr(
        module,
        "relu_then_dropout",
        lambda *args, **named: calls.append(1) or inner_op(*args, **named),
    )

    def by(serves: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(type(TRITON), "serves", lambda self, x: serves)
        torch.manual_seed(3)
        y = relu_dropout(layer, x, dropout)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    theirs, ours = by(False), by(True)
    assert calls == [1]
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    watched = Dropout(0.4)
    watched.register_forward_hook(lambda *args: None)
    for other in (watched, Dropout(0.4).eval(), Dropout(1.0)):
        relu_dropout(layer, x, other)
    assert calls == [1]


def test_gradient_goes_where_relu_and_dropout_let_it():
    layer = BlockSparseLinear(32, 32, block_size=16)
    layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    x = torch.randn(20, 32, requires_grad=True)
    y = relu_dropout(layer, x, Dropout(0.5))
    y.sum().backward()
    dz = (y > 0) * 2.0
    torch.testing.assert_close(x.grad, (dz @ layer.weight).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, dz.sum(0), rtol=1e-5, atol=1e-5)


def test_a_bad_rate_is_named():
    layer = BlockSparseLinear(16, 16, block_size=16)
    layer.set_block_mask(torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\], got 1.5"):
        layer(torch.ones(1, 16), relu_dropout=1.5)


class TestHandedOver:
    """ReLU's and dropout's gradient in the kernel of the layer behind them."""

    @staticmethod
    def layers(kind):
        """Two layers with masks, one empty row of blocks each, and an input."""
        if kind == "linear":
            first, second = (BlockSparseLinear(*n, block_size=16) for n in ((32, 64), (64, 48)))
            masks, x = ((4, 2), (3, 4)), torch.randn(2, 7, 32)
        else:
            first = BlockSparseConv1d(32, 64, 3, padding=1, block_size=16)
            second = BlockSparseConv1d(64, 48, 5, padding=2, block_size=16)
            masks, x = ((4, 3, 2), (3, 5, 4)), torch.randn(2, 7, 32).transpose(1, 2)
        for layer, shape in zip((first, second), masks, strict=True):
            mask = torch.rand(shape) < 0.5
            mask[1] = False
            layer.set_block_mask(mask)
        return first, second, x

    @staticmethod
    def gradients(first, second, x, dropout, over, twice=False):
        torch.manual_seed(5)
        x = x.detach().clone().requires_grad_()
        after = {"after_relu": dropout.p if dropout.training else 0.0} if over else {}
        y = second(relu_dropout(first, x, dropout, over), **after)
        leaves = (x, *first.parameters(), *second.parameters())
        grads = torch.autograd.grad(y.cos().sum(), leaves, create_graph=twice)
        if not twice:
            return grads
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    @pytest.mark.parametrize("kind", ["linear", "conv1d"])
    @pytest.mark.parametrize("p", [0.0, 0.4])
    @pytest.mark.parametrize("backend", ["cpu", "dense"])
    def test_gradients_are_the_same_bits(self, kind, p, backend):
        first, second, x = self.layers(kind)
        dropout = Dropout(p)
        assert handed_over_rate(first, second, x, dropout) == p
        with use_backend(backend):
            apart = self.gradients(first, second, x, dropout, False)
            together = self.gradients(first, second, x, dropout, True)
        assert all(map(torch.equal, apart, together)) and apart[0].any()

    @pytest.mark.parametrize("kind", ["linear", "conv1d"])
    def test_second_derivatives(self, kind):
        args = (*self.layers(kind), Dropout(0.4))
        apart = self.gradients(*args, False, twice=True)
        together = self.gradients(*args, True, twice=True)
        assert apart[1].any()
        for a, b in zip(apart, together, strict=True):
            # What all but cancels in one element has the rounding of its terms.
            torch.testing.assert_close(a, b, rtol=0, atol=5e-7 * b.abs().max().item())

    def test_dropout_in_evaluation_zeroes_nothing(self):
        first, second, x = self.layers("linear")
        assert handed_over_rate(first, second, x, Dropout(0.4).eval()) == 0.0

    def test_not_where_something_else_would_see_it(self):
        first, second, x = self.layers("conv1d")
        dropout, plain = Dropout(0.4), nn.Conv1d(64, 48, 5, padding=2)
        assert handed_over_rate(first, second, x, dropout) is not None
        assert handed_over_rate(first, plain, x, dropout) is None
        assert handed_over_rate(plain, second, x, dropout) is None
        assert handed_over_rate(first, second, x, Dropout(1.0)) is None
        assert handed_over_rate(first, second, x.double(), dropout) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert handed_over_rate(first, second, x, dropout) is None
        # On a GPU, whose kernels take three dtypes.
        with FakeTensorMode():
            there = torch.empty(2, 32, 7, device="cuda")
        assert handed_over_rate(first, second, there, dropout) == 0.4
        assert handed_over_rate(first, second, there.bfloat16(), dropout) == 0.4
        assert handed_over_rate(first, second, there.double(), dropout) is None
        assert handed_over_rate(first, second, there, Dropout(1.0)) is None
        handle = second.register_full_backward_hook(lambda *_: None)
        assert handed_over_rate(first, second, x, dropout) is None
        handle.remove()
        second.padding_mode = "reflect"
        assert handed_over_rate(first, second, x, dropout) is None
