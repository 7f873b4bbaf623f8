# SPDX-License-Identifier: Apache-2.0
"""Layers of one input as one product."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sniper.layers import BlockSparseLinear, sparsify
from sniper.layers.stacked import Stackable
from sniper.optim import Adam


class Three(Stackable):
    """Layers of several widths."""

    stacked = ("a", "b", "c")

    def __init__(self, bias: bool = True):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, n, bias) for n in (48, 16, 32))

    def forward(self, x: Tensor, alone: bool) -> list[Tensor]:
        stack = None if alone else self.stack_for(x)
        assert alone or stack is not None
        return [m(x) for m in (self.a, self.b, self.c)] if stack is None else list(stack(x))


def make(masked: bool, bias: bool = True) -> Three:
    torch.manual_seed(0)
    model = Three(bias)
    if masked:
        sparsify(model, block_size=16)
        for i, name in enumerate(model.stacked):
            layer = getattr(model, name)
            torch.manual_seed(i)
            layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.6)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_stack_is_its_layers(masked: bool, bias: bool):
    models = [make(masked, bias) for _ in range(2)]
    x = torch.randn(2, 7, 32)
    weights = [torch.randn(2, 7, n) for n in (48, 16, 32)]
    results = []
    for model, alone in zip(models, (True, False), strict=True):
        Adam(model.parameters())  # gradients may be added to their places
        given = x.clone().requires_grad_()
        for _ in range(2):  # the second is added
            ys = model(given, alone)
            torch.stack([(y * w).sum() for y, w in zip(ys, weights, strict=True)]).sum().backward()
        results.append([*ys, given.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if masked:
        layers = [getattr(models[1], name) for name in Three.stacked]
        for m in layers:
            assert not m.weight.grad[~m.layout.element_mask().view_as(m.weight)].any()
        # They lie together, and no new memory is taken for the next.
        places = [m.weight.grad.data_ptr() for m in layers]
        sizes = [m.weight.grad.nbytes for m in layers]
        assert places[1:] == [p + n for p, n in zip(places, sizes, strict=True)][:-1]


def test_gradients_of_gradients_and_of_a_part():
    one, other = make(True), make(True)
    x = torch.randn(1, 5, 32)
    seconds = []
    for model, alone in ((one, True), (other, False)):
        given = x.clone().requires_grad_()
        a, _, _ = model(given, alone)
        (first,) = torch.autograd.grad(a.square().sum(), given, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), [given, model.a.weight]))
    for ours, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_where_layers_run_one_by_one():
    x = torch.randn(1, 3, 32)
    model = make(True)
    assert model.stack_for(x) is not None
    assert model.stack_for(x.double()) is None
    with torch.no_grad():
        assert model.stack_for(x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert model.stack_for(x) is None
    tied = make(True)
    tied.b = copy.deepcopy(tied.a)
    tied.b.weight = tied.a.weight
    assert tied.stack_for(x) is None
    part = make(True)
    part.a.set_block_mask(None)
    assert part.stack_for(x) is None
    frozen = make(False)
    for p in frozen.parameters():
        p.requires_grad_(False)
    assert frozen.stack_for(x) is None
    hooked = make(True)
    hooked.c.register_full_backward_hook(lambda *args: None)
    assert hooked.stack_for(x) is None


def test_a_mask_that_changes_changes_the_stack():
    model = make(True)
    before = model.stack_for(torch.randn(1, 3, 32))
    assert isinstance(model.b, BlockSparseLinear) and before is not None and before.layout
    assert before.layout is model.stack_for(torch.randn(1, 3, 32)).layout  # pyright: ignore
    model.b.set_block_mask(torch.zeros(1, 2, dtype=torch.bool))
    after = model.stack_for(torch.randn(1, 3, 32))
    assert after is not None and after.layout is not None
    assert not after.layout.block_mask[3].any() and after.layout.block_mask[:3].any()
