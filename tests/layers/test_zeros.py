# SPDX-License-Identifier: Apache-2.0
"""Two backends can not disagree: whatever happens to a masked weight, all compute the same, and
after an optimizer's step what is pruned is zero.
"""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sniper.optim
from sniper import BlockSparseConv1d, BlockSparseLinear, densify, ops, sparsify

OPTIMIZERS = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.05),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.05, momentum=0.5),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2], lr=0.05),
    "ours": lambda ps: sniper.optim.Adam(ps, lr=0.05),
}


def make(conv: bool) -> BlockSparseConv1d | BlockSparseLinear:
    if conv:
        return BlockSparseConv1d(32, 48, 3, padding=1, block_size=16)
    return BlockSparseLinear(32, 48, block_size=16)


def new_mask(layer):
    layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)


def pruned(layer) -> torch.Tensor:
    mask = layer.layout.element_mask()
    mask = mask[:, 0] if layer.weight.dim() == 2 else mask.permute(0, 2, 1)
    return layer.weight.detach()[~mask]


def outcome(layer, x, backend):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with ops.use_backend(backend):
        y = layer(x)
        y.relu_()  # an output is fresh: in-place work on it is allowed
        y.square().sum().backward()
    return y.detach(), x.grad, layer.weight.grad.clone()


def agree(layer):
    x = torch.randn((2, 32, 7) if layer.weight.dim() == 3 else (7, 32))
    wanted = outcome(layer, x, "reference")
    for backend in ("cpu", "dense"):
        for got, expected in zip(outcome(layer, x, backend), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def steps(layer, optimizer):
    for _ in range(2):
        for p in layer.parameters():
            p.grad = torch.randn_like(p)  # noise everywhere, pruned places too
        optimizer.step()
    assert not pruned(layer).any()


EVENTS = {
    "new mask": lambda layer, o: new_mask(layer),
    "steps": steps,
    "reset": lambda layer, o: layer.reset_parameters(),
    "fill": lambda layer, o: torch.nn.init.normal_(layer.weight),
    "data": lambda layer, o: layer.weight.data.add_(1.0),
    "load": lambda layer, o: layer.load_state_dict(make(layer.weight.dim() == 3).state_dict()),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("conv", [False, True])
@settings(max_examples=6, deadline=None)
@given(events=st.lists(st.sampled_from(sorted(EVENTS)), min_size=1, max_size=5))
def test_backends_agree_whatever_happened(conv, optimizer, events):
    if optimizer == "muon" and conv:
        optimizer = "adam"  # it takes matrices only
    torch.manual_seed(0)
    layer = make(conv)
    chosen = OPTIMIZERS[optimizer](list(layer.parameters()))
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    chosen.step()  # moments from before the mask
    new_mask(layer)
    for event in events:
        EVENTS[event](layer, chosen)
        agree(layer)
    steps(layer, chosen)


def test_a_new_parameter_is_masked_too():
    layer = make(True)
    new_mask(layer)
    layer.weight = torch.nn.Parameter(torch.randn(48, 32, 3))
    agree(layer)
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.1))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "pickle"],
)
def test_copies_keep_their_zeros(copied):
    layer = make(False)
    new_mask(layer)
    twin = copied(layer)
    steps(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    agree(twin)


def test_an_optimizer_of_other_weights_leaves_these_alone():
    layer, other = make(False), torch.nn.Linear(3, 3)
    new_mask(layer)
    torch.nn.init.ones_(layer.weight)
    other(torch.ones(3)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert (layer.weight == 1).all()


@pytest.mark.parametrize("how", ["set_block_mask", "densify"])
def test_a_copy_of_what_has_become_dense_skips_nothing(how):
    from sniper import densify

    layer = make(False)
    new_mask(layer)
    average = copy.deepcopy(layer)
    densify(layer) if how == "densify" else layer.set_block_mask(None)
    with torch.no_grad():
        average.weight.copy_(torch.randn_like(average.weight))  # what an average does
    x = torch.randn(3, 32)
    plain = torch.nn.functional.linear(x, average.weight, average.bias)
    torch.testing.assert_close(average(x), plain)


def test_the_model_may_be_gone_before_its_backward():
    x = torch.randn(2, 32, requires_grad=True)

    def loss():
        layer = make(False)
        new_mask(layer)
        return layer(x).sum()

    loss().backward()
    assert x.grad.any()


def test_a_layer_that_is_plain_again_is_let_go():
    """Its optimizer, and every other one of the process, goes on stepping."""
    model = nn.Sequential(nn.Linear(32, 32))
    sparsify(model, 16)
    model[0].set_block_mask(torch.eye(2, dtype=torch.bool))
    optimizer = torch.optim.Adam(model.parameters())
    densify(model)
    model(torch.randn(2, 32)).sum().backward()
    optimizer.step()
    assert type(model[0]) is nn.Linear and (model[0].weight != 0).all()


def test_a_mask_does_not_load_the_compiler():
    """Which takes seconds, and a tenth of a gigabyte: torch loads it with the first optimizer."""
    program = (
        "import sys, torch; from sniper import BlockSparseLinear; "
        "BlockSparseLinear(16, 16, block_size=16).set_block_mask(torch.ones(1, 1, dtype=bool)); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
