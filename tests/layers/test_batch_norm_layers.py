# SPDX-License-Identifier: Apache-2.0
"""BatchNorm, tanh and dropout over modules: what kernels are given, and what they are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper.layers import Dropout, batch_norm
from sniper.layers.batch_norm import ops


def test_without_gradients_it_is_what_the_modules_compute():
    norm, other, dropout = nn.BatchNorm1d(8), nn.BatchNorm1d(8), Dropout(0.5)
    x = torch.randn(2, 8, 5)
    with torch.no_grad():
        torch.manual_seed(1)
        got = batch_norm(x, norm, dropout, tanh=True)
        torch.manual_seed(1)
        assert torch.equal(got, dropout(torch.tanh(other(x))))
        assert torch.equal(norm.running_var, other.running_var)
        assert torch.equal(batch_norm(x, norm, dropout.eval(), tanh=False), other(x))


@pytest.fixture
def fused(monkeypatch) -> list[tuple]:
    """Kernels that take everything; what they were asked."""
    calls = []

    def kernel(x, weight, bias, running, momentum, eps, tanh, p):
        calls.append((tuple(x.shape), momentum, eps, tanh, p))
        return x

    monkeypatch.setattr(ops, "fuses_batch_norm", lambda *tensors: True)
    monkeypatch.setattr(ops, "batch_norm", kernel)
    return calls


def test_the_kernels_get_rows_and_what_is_in_force(fused):
    norm, x = nn.BatchNorm1d(8, eps=1e-3, momentum=0.2), torch.randn(2, 8, 5)
    assert batch_norm(x, norm, Dropout(0.25), tanh=True).shape == x.shape
    batch_norm(x, norm, nn.Dropout(0.25).eval(), tanh=False)
    assert fused == [((2, 5, 8), 0.2, 1e-3, True, 0.25), ((2, 5, 8), 0.2, 1e-3, False, 0.0)]


class Doubled(nn.BatchNorm1d):
    """Another function than its parent's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def watched() -> nn.Module:
    norm = nn.BatchNorm1d(8)
    norm.register_forward_hook(lambda *args: None)
    return norm


@pytest.mark.parametrize(
    "norm, dropout",
    [
        (Doubled(8), Dropout(0.5)),
        (watched(), Dropout(0.5)),
        (nn.BatchNorm1d(8).eval(), Dropout(0.5)),
        (nn.BatchNorm1d(8, affine=False), Dropout(0.5)),
        (nn.BatchNorm1d(8, momentum=None), Dropout(0.5)),
        (nn.BatchNorm1d(8, track_running_stats=False), Dropout(0.5)),
        (nn.BatchNorm1d(8).double(), Dropout(0.5)),
        (nn.Identity(), Dropout(0.5)),
        (nn.BatchNorm1d(8), Dropout(1.0)),
        (nn.BatchNorm1d(8), nn.AlphaDropout(0.5)),
    ],
)
def test_what_the_kernels_do_not_know_is_called(norm, dropout, fused):
    x = torch.randn(2, 8, 5)
    x = x.double() if next(iter(norm.parameters()), x).dtype == torch.float64 else x
    batch_norm(x, norm, dropout, tanh=True)
    assert fused == []


def test_a_batch_of_one_value_a_channel_is_torchs_error(fused):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        batch_norm(torch.randn(1, 8, 1), nn.BatchNorm1d(8), Dropout(0.5), tanh=True)


def test_refused():
    with pytest.raises(ValueError, match="norm: expected a Module, got int"):
        batch_norm(torch.randn(1, 8, 2), 3, Dropout(0.5), tanh=True)  # pyright: ignore[reportArgumentType]


def test_bits_do_not_depend_on_the_number_of_threads():
    x, dy = torch.randn(4, 90, 64), torch.randn(4, 90, 64)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        norm, leaf = nn.BatchNorm1d(64), x.clone().requires_grad_()
        y = batch_norm(leaf.mT, norm, nn.Dropout(0.0), tanh=True).mT
        y.backward(dy)
        found.append(
            [y.detach(), leaf.grad, *(p.grad for p in norm.parameters()), norm.running_var]
        )
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
