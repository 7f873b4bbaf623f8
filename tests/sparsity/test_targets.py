# SPDX-License-Identifier: Apache-2.0
"""What masks are put on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sniper import BlockSparseConv1d, BlockSparseLinear, NewWeights, Sniper
from sniper.ops.rebuild import rebuild_reference
from sniper.sparsity.blocks import pool_reference
from sniper.sparsity.masking import nested_masks_reference
from sniper.sparsity.targets import BlockTargets, ElementTargets

T, F = True, False


def blocks() -> tuple[nn.Module, BlockTargets]:
    model = nn.Sequential(
        BlockSparseLinear(4, 4, block_size=2),
        BlockSparseConv1d(4, 2, 3, block_size=2),
        nn.Linear(4, 4),
    )
    return model, BlockTargets(model, dict(model.named_parameters()))


def elements(mask_gradients: bool) -> tuple[nn.Linear, ElementTargets]:
    model = nn.Linear(2, 2)
    return model, ElementTargets(model, dict(model.named_parameters()), mask_gradients)


MASK = torch.tensor([[T, F], [F, T]])


def test_blocks_are_the_weights_of_block_sparse_layers():
    model, targets = blocks()
    assert list(targets.parameters) == ["0.weight", "1.weight"]
    assert targets.parameters["0.weight"] is model[0].weight
    assert targets.get_mask("0.weight") is None
    assert targets.density("0.weight") == 1.0


def test_block_mask_zeroes_and_expands():
    model, targets = blocks()
    targets.set_mask("0.weight", MASK)
    expanded = targets.expand("0.weight", MASK)
    assert torch.equal(model[0].weight != 0, expanded)
    assert targets.get_mask("0.weight").tolist() == MASK.tolist()
    assert targets.density("0.weight") == 0.5
    conv = torch.tensor([[[T, F], [F, F], [T, T]]])
    targets.set_mask("1.weight", conv)
    assert torch.equal(model[1].weight != 0, targets.expand("1.weight", conv))


def test_a_shared_layer_is_one_target():
    layer = BlockSparseLinear(4, 4, block_size=2)
    model = nn.Sequential(layer, layer)
    assert list(BlockTargets(model, dict(model.named_parameters())).layers) == ["0.weight"]


def test_no_block_sparse_layer_to_prune():
    model, _ = blocks()
    with pytest.raises(ValueError, match="at least one block-sparse layer"):
        BlockTargets(model, {"2.weight": model[2].weight})


def test_element_mask_and_its_gradients():
    model, targets = elements(mask_gradients=True)
    targets.set_mask("weight", MASK)
    assert torch.equal(model.weight != 0, MASK)
    assert targets.density("weight") == 0.5
    assert targets.density("bias") == 1.0
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight.grad != 0, MASK)
    assert model.bias.grad.tolist() == [1, 1]


def test_an_infinite_gradient_of_a_pruned_weight_becomes_zero():
    model, targets = elements(mask_gradients=True)
    targets.set_mask("weight", torch.tensor([[T, F], [T, F]]))
    (model.weight * torch.tensor([1.0, float("inf")])).sum().backward()
    assert model.weight.grad.tolist() == [[1, 0], [1, 0]]


def test_a_full_mask_leaves_gradients_untouched():
    model, targets = elements(mask_gradients=True)
    targets.set_mask("weight", MASK)
    targets.set_mask("weight", torch.ones(2, 2, dtype=torch.bool))
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad.tolist() == [[1, 1], [1, 1]]
    assert targets.density("weight") == 1.0
    targets.set_mask("weight", MASK)
    model.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight.grad != 0, MASK)


def test_unmasked_gradients_and_zeroing_before_the_forward():
    model, targets = elements(mask_gradients=False)
    targets.set_mask("weight", MASK)
    with torch.no_grad():
        model.weight.add_(1)
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight != 0, MASK)
    assert model.weight.grad.tolist() == [[1, 1], [1, 1]]


def test_a_moved_model_takes_its_masks_along():
    model, targets = elements(mask_gradients=True)
    targets.set_mask("weight", MASK)
    model.to("meta")
    targets.parameters = dict(model.named_parameters())
    assert targets.get_mask("weight").device.type == "meta"


def test_a_copied_model_is_plain():
    model, targets = elements(mask_gradients=True)
    targets.set_mask("weight", MASK)
    twin = copy.deepcopy(model)
    twin(torch.ones(1, 2)).sum().backward()
    assert twin.weight.grad.tolist() == [[1, 1], [1, 1]]
    assert model.weight.grad is None


def test_a_change_that_fails_leaves_dense_layers_dense():
    model, targets = blocks()
    wrong = {"0.weight": MASK, "1.weight": torch.ones(1, 2, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"mask: expected bool \(1, 3, 2\)"):
        targets.change_masks(wrong, dict.fromkeys(wrong, 2), {})
    assert model[0].layout is None and model[0].weight.all()


@pytest.mark.parametrize("block_size", [8, None])
def test_sniper_does_the_same_without_the_extension(block_size, monkeypatch):
    models = []
    for extension in (True, False):
        if not extension:
            monkeypatch.setattr("sniper.sparsity.targets.rebuild", rebuild_reference)
            monkeypatch.setattr("sniper.sparsity.sniper.pool", pool_reference)
            monkeypatch.setattr("sniper.sparsity.sniper.nested_masks", nested_masks_reference)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 16, 1))
        sniper = Sniper(model, {0: 0.8, 1: 0.4, 2: 0.1}, block_size=block_size)
        sniper.score([torch.randn(2, 16, 9)], lambda m, x: (m(x) - x).square().sum())
        optimizer = torch.optim.Adam(sniper.param_groups(1e-2))
        for epoch in range(3):
            sniper.step(epoch, optimizer)
            model(torch.ones(2, 16, 9)).sum().backward()
            optimizer.step()
        models.append(model)
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q)
        assert torch.equal(p == 0, q == 0)


def test_initial_values_take_the_weights_memory_order_once():
    model = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1))
    restored = NewWeights(restore_init=True)
    sniper = Sniper(model, {0: 0.8, 1: 0.4, 2: 0.0}, block_size=8, new_weights=restored)
    sniper.score([torch.randn(2, 16, 9)], lambda m, x: m(x).square().sum())
    sniper.step(0)
    assert sniper._init["0.weight"].stride() == model[0].weight.stride() == (48, 1, 16)
    pointer = sniper._init["0.weight"].data_ptr()
    sniper.step(1)
    assert sniper._init["0.weight"].data_ptr() == pointer


class ReadsItsWeight(nn.Module):
    """As attention functions do that take projection weights."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return nn.functional.linear(self.called(x), self.read.weight)


def test_a_weight_that_is_read_without_a_call_is_left_dense():
    model = ReadsItsWeight()
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=16)
    with pytest.warns(UserWarning, match="read.weight is left dense: the model uses the weight"):
        scores = sniper.score([torch.randn(4, 32)], lambda m, x: m(x).square().sum())
    assert set(scores) == {"called.weight"} and type(model.read) is nn.Linear
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sniper.step(0, optimizer)
    model(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    assert sniper.densities() == {"called.weight": 0.5} and model.read.weight.all()


def test_what_was_left_dense_is_left_dense_by_whoever_takes_its_state_up():
    sniper = Sniper(ReadsItsWeight(), {0: 0.5, 1: 0.0}, block_size=16, lr_scale=None)
    with pytest.warns(UserWarning, match="read.weight is left dense"):
        sniper.score([torch.randn(4, 32)], lambda m, x: m(x).square().sum())
    sniper.step(0)
    for _ in range(2):  # it says so in its own state, too
        resumed = Sniper(ReadsItsWeight(), {0: 0.5, 1: 0.0}, block_size=16, lr_scale=None)
        with pytest.warns(UserWarning, match="read.weight is left dense"):
            resumed.load_state_dict(sniper.state_dict())
        assert resumed.densities() == sniper.densities() == {"called.weight": 0.5}
        assert type(resumed.model.read) is nn.Linear and resumed.model.read.weight.all()
        sniper = resumed
    weights = Sniper(ReadsItsWeight(), {0: 0.5, 1: 0.0}, block_size=None, lr_scale=None)
    weights.load_state_dict(sniper.state_dict())
    assert weights.densities()["called.weight"] == 0.5 and weights.densities()["read.weight"] == 1


def test_a_layer_that_no_batch_reaches_keeps_its_mask():
    model = ReadsItsWeight()
    model.forward = lambda x: model.called(x)
    sniper = Sniper(model, {0: 0.5}, block_size=16)
    sniper.score([torch.randn(4, 32)], lambda m, x: m(x).square().sum())
    assert set(sniper.densities()) == {"called.weight", "read.weight"}


@pytest.mark.parametrize("block_size", [None, 16])
@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Muon"])
def test_pruned_weights_are_zero_after_a_step_of_any_optimizer(name, block_size):
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    sniper = Sniper(model, {0: 0.5, 2: 0.0}, block_size=block_size)
    sniper.score([torch.randn(4, 32)], lambda m, x: m(x).square().sum())
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    sniper.step(0, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 32)).square().sum().backward()
        for p in model.parameters():
            p.grad.add_(torch.randn_like(p))  # noise, as for differential privacy
        optimizer.step()
        zeros = [float((p == 0).float().mean()) for p in model.parameters()]
        assert sum(zeros) / 2 == pytest.approx(0.5, abs=0.13)
    sniper.step(2, optimizer)
    optimizer.step()
    assert all(p.detach().any() for p in model.parameters())
