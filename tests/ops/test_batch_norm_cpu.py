# SPDX-License-Identifier: Apache-2.0
"""BatchNorm, tanh and dropout on the CPU against torch in float64; on a GPU `tests/kernels`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers import Dropout
from sniper.layers import batch_norm as layer
from sniper.ops import batch_norm as ops
from sniper.ops.backends.cpu import batch_norm as kernels
from sniper.ops.backends.cpu import elementwise

EPS, SEED = 1e-5, 11


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    # Of numbers of about 1, whose sum over one column may all but cancel.
    assert (got.double() - wanted).norm() <= 3e-6 * wanted.norm().clamp(min=0.1)


@pytest.mark.usefixtures("isa", "nan_filled_empty")
class TestKernels:
    # No multiple of a vector or of a group of random words, one column, several tasks whose sums
    # are added, the last of them short.
    @pytest.mark.parametrize("shape", [(9, 80), (3, 7, 75), (5, 1), (4, 331, 64)])
    @pytest.mark.parametrize("p", [0.0, 0.5])
    @pytest.mark.parametrize("tanh", [False, True])
    def test_forward_and_backward(self, shape, p, tanh):
        columns = shape[-1]
        # Off zero, where a variance from squares would cancel; some columns where tanh is steep.
        x, dy = torch.randn(shape) + 3, torch.randn(shape)
        weight, bias = torch.rand(columns) * 2, torch.randn(columns)
        exact = [t.double().requires_grad_() for t in (x, weight, bias)]
        rows = exact[0].view(-1, columns)
        wanted = F.batch_norm(rows, None, None, *exact[1:], training=True, eps=EPS).view(shape)
        wanted = wanted.tanh() if tanh else wanted
        wanted = wanted * elementwise.dropout(torch.ones(shape), p, SEED)
        grads = torch.autograd.grad(wanted, exact, dy.double())
        found = []
        for threads in (2, 1):
            torch.set_num_threads(threads)
            mean, rstd = kernels.statistics(x, EPS)
            args = (x, mean, rstd, weight, bias, tanh, p, SEED)
            y = kernels.batch_norm(*args)
            found.append([mean, rstd, y, *kernels.batch_norm_backward(dy, *args)])
        close(found[0][0], rows.mean(0))
        close(found[0][1], (rows.var(0, correction=0) + EPS).rsqrt())
        for ours, theirs in zip(found[0][2:], (wanted, *grads), strict=True):
            close(ours, theirs)
        assert all(map(torch.equal, *found))

    def test_a_channel_that_hardly_changes_is_no_noise(self):
        """Silence is one number, log 1e-5, of which a sum of thousands loses the digits."""
        x = torch.full((16000, 1), -11.512925)
        mean, rstd = kernels.statistics(x, EPS)
        assert mean.item() == x[0].item()
        assert rstd.item() == pytest.approx(EPS**-0.5, rel=1e-6)
        x += 0.01 * torch.randn(x.shape)
        mean, rstd = kernels.statistics(x, EPS)
        exact = x.double()
        assert (mean - exact.mean()).abs() < 1e-6
        close(rstd, (exact.var(correction=0) + EPS).rsqrt()[None])

    def test_tanh_is_good_to_the_last_digits_everywhere(self):
        x = torch.cat([torch.logspace(-30, 1.5, 4000), torch.tensor([0.0, torch.inf])])
        x = torch.cat([x, -x])
        one, zero = torch.ones(1), torch.zeros(1)
        got = kernels.batch_norm(x[:, None], zero, one, one, zero, True, 0.0, 0)[:, 0]
        torch.testing.assert_close(got.double(), x.double().tanh(), rtol=4e-7, atol=1e-38)
        nan = torch.full((1, 1), torch.nan)
        assert kernels.batch_norm(nan, zero, one, one, zero, True, 0.0, 0).isnan().all()

    def test_what_lies_under_dropout_does_not_count(self):
        x, dy = torch.randn(6, 20), torch.full((6, 20), torch.inf)
        keep = elementwise.dropout(torch.ones(6, 20), 0.5, SEED) > 0
        zero, one = torch.zeros(20), torch.ones(20)
        dz, _, _ = kernels.gradient(dy, x, zero, one, one, zero, False, 0.5, SEED)
        assert torch.equal(dz == 0, ~keep)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_layer_learns_as_torchs_modules_do(p):
    ours, theirs, dropout = nn.BatchNorm1d(24, momentum=0.3), nn.BatchNorm1d(24, momentum=0.3), None
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    dropout = Dropout(p)
    found = []
    for norm in (ours, theirs):
        torch.manual_seed(2)
        rows = torch.randn(3, 9, 24).requires_grad_()
        if norm is ours:
            y = layer(rows.mT, norm, dropout, tanh=True).mT
        else:  # the mask is that of the rows
            y = dropout(norm(rows.mT).mT.tanh().contiguous())
        grads = torch.autograd.grad(y.sin().sum(), [rows, norm.weight, norm.bias])
        found.append([y, *grads, norm.running_mean, norm.running_var, norm.num_batches_tracked])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_gradients_of_gradients(trained):
    x = torch.randn(5, 3, requires_grad=True)
    weight, bias = (torch.rand(3, requires_grad=trained) for _ in range(2))

    def second(y: Tensor) -> Tensor:
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, weight] if trained else x)[0]

    got = second(ops.batch_norm(x, weight, bias, None, 0.1, EPS, tanh=True))
    rows = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    torch.testing.assert_close(got, second(rows.tanh()), rtol=1e-3, atol=1e-4)


def test_only_where_gradients_are_wanted_in_float32_outside_autocast():
    x, weight = torch.randn(2, 3, 8), torch.ones(8)
    assert ops.fuses_batch_norm(x, weight)
    assert not ops.fuses_batch_norm(x.bfloat16(), weight)
    assert not ops.fuses_batch_norm(x[:0], weight)
    with torch.no_grad():
        assert not ops.fuses_batch_norm(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not ops.fuses_batch_norm(x, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(0, 8)}, r"x: expected at least one row, got shape \[0, 8\]"),
        ({"x": torch.randn(2, 8).double()}, "x: expected a strided float32"),
        ({"mean": torch.randn(4)}, r"mean: expected shape \[8\], got \[4\]"),
        ({"dy": torch.randn(3, 8)}, r"dy: expected shape \[2, 8\], got \[3, 8\]"),
        ({"p": 1.0}, r"expected p in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {n: torch.randn(2, 8) for n in ("dy", "x")} | {"tanh": True, "p": 0.1, "seed": 1}
    good |= {n: torch.rand(8) for n in ("mean", "rstd", "weight", "bias")}
    with pytest.raises(ValueError, match=message):
        kernels.batch_norm_backward(**(good | change))
