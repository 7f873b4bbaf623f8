# SPDX-License-Identifier: Apache-2.0
"""Add & Norm over modules: what the modules compute, and what the kernel is not given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sniper.layers import Dropout, add_norm, layer_norm, residual


def test_on_a_cpu_it_is_what_the_modules_compute():
    norm, dropout = nn.LayerNorm(24), Dropout(0.4)
    x, h = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    torch.manual_seed(1)
    s, y = add_norm(x, h, dropout, norm)
    torch.manual_seed(1)
    wanted = x + dropout(h)
    assert torch.equal(s, wanted)
    torch.testing.assert_close(y, norm(wanted))
    torch.testing.assert_close(layer_norm(x, norm, for_product=True), norm(x))
    torch.manual_seed(1)
    y = layer_norm(x, norm, relu=True, dropout=dropout)
    torch.manual_seed(1)
    torch.testing.assert_close(y, dropout(norm(x.relu())))
    with torch.no_grad():  # what a model says is torch's to the last bit
        assert torch.equal(layer_norm(x, norm), norm(x))
    assert torch.equal(add_norm(x, h, dropout.eval(), norm)[0], x + h)


@pytest.fixture
def fused(monkeypatch):
    """A kernel that takes everything; what it was asked."""
    calls = []

    def kernel(x, branch, weight, bias, eps, p, for_product, relu=False):
        calls.append((p, for_product, relu) if branch is None else (p, for_product))
        s = x if branch is None else x + branch
        return s, F.layer_norm(s, weight.shape, weight, bias, eps)

    monkeypatch.setattr(residual.ops, "fuses_norm", lambda *tensors, more=False: True)
    monkeypatch.setattr(residual.ops, "add_norm", kernel)
    return calls


@pytest.mark.parametrize("dropout", [Dropout(0.25), nn.Dropout(0.25)], ids=["ours", "torch's"])
def test_the_kernel_gets_the_rate_that_is_in_force(fused, dropout):
    norm, x = nn.LayerNorm(8), torch.randn(3, 8)
    add_norm(x, x, dropout, norm, for_product=True)
    add_norm(x, x, dropout.eval(), norm)
    layer_norm(x, norm)
    layer_norm(x, norm, relu=True, dropout=dropout.train())
    assert fused == [(0.25, True), (0.0, False), (0.0, False, False), (0.25, False, True)]


class Doubled(nn.LayerNorm):
    """Another function than its parent's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def parametrized() -> nn.Module:
    norm = nn.LayerNorm(8)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        nn.Identity(),
        Doubled(8),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm(8, elementwise_affine=False),
        parametrized(),
    ],
    ids=["identity", "subclass", "no bias", "no weight", "parametrized"],
)
def test_a_norm_that_the_kernel_does_not_know_is_called(fused, norm):
    x, h = torch.randn(3, 8), torch.randn(3, 8)
    _, y = add_norm(x, h, nn.Dropout(0.0), norm)
    assert fused == [] and torch.equal(y, norm(x + h)) and torch.equal(layer_norm(x, norm), norm(x))


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
@pytest.mark.parametrize("watched", ["norm", "dropout"])
def test_whoever_watches_a_module_sees_its_calls(fused, register, watched):
    norm, dropout, seen = nn.LayerNorm(8), Dropout(0.5), []
    module = norm if watched == "norm" else dropout
    handle = getattr(module, register)(lambda *args: seen.append(1))
    x = torch.randn(3, 8, requires_grad=True)
    add_norm(x, x, dropout, norm)[1].sum().backward()
    assert seen == [1] and fused == []
    handle.remove()
    add_norm(x, x, dropout, norm)
    assert fused == [(0.5, False)]


def test_other_dropouts_are_called(fused):
    norm, x = nn.LayerNorm(8), torch.ones(3, 8)
    assert torch.equal(add_norm(x, x, Dropout(1.0), norm)[0], x)
    assert torch.equal(add_norm(x, x, nn.Sequential(nn.ReLU()), norm)[0], 2 * x)
    assert fused == []
