# SPDX-License-Identifier: Apache-2.0
"""Residual, dropout and LayerNorm on the CPU against torch in float64; on a GPU `tests/kernels`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers import Dropout, add_norm, layer_norm
from sniper.ops import norm
from sniper.ops.backends.cpu import elementwise
from sniper.ops.backends.cpu import norm as kernels

EPS, SEED = 1e-12, 11


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.usefixtures("isa", "nan_filled_empty")
class TestKernel:
    # One row, no multiple of a vector or of a group of random words, one column, several tasks
    # whose sums are added, none.
    @pytest.mark.parametrize("shape", [(1, 384), (3, 7, 75), (5, 13), (4, 1), (300, 256), (0, 4)])
    @pytest.mark.parametrize("p", [0.0, 0.2])
    @pytest.mark.parametrize("kind", ["branch", "branch alone read", "norm alone"])
    def test_forward_and_backward(self, shape, p, kind):
        x, branch, dy, ds = (torch.randn(shape) for _ in range(4))
        x += 3  # off zero, where a variance from squares would cancel
        weight, bias = torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1])
        exact = [t.double().requires_grad_() for t in (x, branch, weight, bias)]
        keep = elementwise.dropout(torch.ones(shape), p, SEED).double()
        wanted_s = exact[0] if kind == "norm alone" else exact[0] + exact[1] * keep
        wanted = F.layer_norm(wanted_s, shape[-1:], exact[2], exact[3], EPS)
        given = None if kind == "norm alone" else branch
        used = ds if kind == "branch" else None
        s, y, mean, rstd = kernels.add_norm(x, given, weight, bias, EPS, p, SEED)
        assert (s is None) == (given is None)
        if s is not None:
            close(s, wanted_s)
        if shape[-1] > 1:  # with one column the norm is rounding over rounding
            close(y, wanted)
        total = (wanted * dy.double()).sum()
        if used is not None:
            total = total + (wanted_s * used.double()).sum()
        if given is None:
            del exact[1]
        grads = torch.autograd.grad(total, exact)
        args = (dy, used, x if s is None else s, mean, rstd, weight, given is not None, p, SEED)
        got = [t for t in kernels.add_norm_backward(*args) if t is not None]
        for ours, theirs in zip(got, grads, strict=True):
            if shape[-1] > 1:
                close(ours, theirs)
        torch.set_num_threads(1)
        again = [t for t in kernels.add_norm_backward(*args) if t is not None]
        assert all(map(torch.equal, got, again))

    def test_what_lies_under_dropout_does_not_count(self):
        x, branch = torch.zeros(4, 20), torch.full((4, 20), torch.inf)
        keep = elementwise.dropout(torch.ones(4, 20), 0.5, SEED) > 0
        s, *_ = kernels.add_norm(x, branch, torch.ones(20), torch.zeros(20), EPS, 0.5, SEED)
        assert torch.equal(s == 0, ~keep)


def test_modules_draw_and_learn_as_torchs_do():
    layer, dropout = nn.LayerNorm(24), Dropout(0.3)
    nn.init.normal_(layer.weight)
    x, branch = torch.randn(2, 5, 24), torch.randn(2, 5, 24).transpose(0, 1).transpose(0, 1)

    def gradients(fused: bool) -> tuple[Tensor, ...]:
        torch.manual_seed(2)
        leaves = [t.clone().requires_grad_() for t in (x, branch)]
        if fused:
            s, y = add_norm(layer_norm(leaves[0], layer), leaves[1], dropout, layer)
        else:
            s = layer(leaves[0]) + dropout(leaves[1])
            y = layer(s)
        return torch.autograd.grad((s.sin() * y.cos()).sum(), [*leaves, layer.weight, layer.bias])

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_where_gradients_are_wanted_in_float32_outside_autocast():
    x, weight = torch.randn(2, 8), torch.randn(8)
    assert norm.fuses_norm(x, weight, x)
    assert not norm.fuses_norm(x.bfloat16(), weight.bfloat16())
    with torch.no_grad():
        assert not norm.fuses_norm(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not norm.fuses_norm(x, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.tensor(1.0)}, "x: expected rows of at least one column"),
        ({"x": torch.randn(2, 8).double()}, "x: expected a strided float32"),
        ({"branch": torch.randn(8)}, r"branch: expected shape \[2, 8\], got \[8\]"),
        ({"bias": torch.randn(4)}, r"bias: expected shape \[8\], got \[4\]"),
        ({"p": 1.0}, r"expected p in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {n: torch.randn(2, 8) for n in ("x", "branch")} | {"p": 0.1, "seed": 1, "eps": EPS}
    good |= {n: torch.randn(8) for n in ("weight", "bias")}
    with pytest.raises(ValueError, match=message):
        kernels.add_norm(**(good | change))
