# SPDX-License-Identifier: Apache-2.0
"""Which norms our kernel is given; for its values see `tests/kernels`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper.layers import add_norm
from sniper.ops import norm
from sniper.ops.backends.triton import norm as triton_norm


@pytest.fixture
def asked(monkeypatch):
    """A GPU whose kernel serves all that it is asked for; the dtypes it was asked for."""
    dtypes = []
    monkeypatch.setattr(triton_norm, "serves", lambda x: dtypes.append(x.dtype) or True)
    return dtypes


def test_a_trusted_kernel_takes_what_it_can(asked):
    x, h, weight = torch.randn(2, 8), torch.randn(2, 8), torch.randn(8)
    assert norm.fuses_norm(x, weight) and norm.fuses_norm(x, weight, h)
    # Verdicts go by dtype, and the branch's is what the products beside it have.
    assert norm.fuses_norm(x, weight, h.bfloat16())
    assert asked == [torch.float32, torch.float32, torch.bfloat16]
    for bad in ((x.double(), weight), (x, weight.double()), (x, weight, h.double())):
        assert not norm.fuses_norm(*bad)
    assert not norm.fuses_norm(x, weight, h[:1])  # torch would expand it
    assert not norm.fuses_norm(x, torch.randn(2, 8))  # over two dimensions
    assert not norm.fuses_norm(x, weight, h.to("meta"))
    assert len(asked) == 3


def test_parameters_of_another_dtype_are_torchs_to_refuse(asked):
    x, weight = torch.randn(2, 8).bfloat16(), torch.randn(8)
    assert not norm.fuses_norm(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm.fuses_norm(x, weight)


def test_transforms_and_the_compiler_get_torchs_functions(asked):
    layer, x = nn.LayerNorm(8), torch.randn(4, 8)

    def total(x: torch.Tensor) -> torch.Tensor:
        return add_norm(x, x, nn.Dropout(0.0), layer)[1].square().sum()

    def by_torch(x: torch.Tensor) -> torch.Tensor:
        return layer(2 * x).square().sum()

    wanted = torch.autograd.functional.jacobian(by_torch, x)
    torch.testing.assert_close(torch.func.grad(total)(x), wanted, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), by_torch(x), rtol=1e-5, atol=1e-6)
    assert asked == []


def test_not_on_a_cpu_nor_past_its_widest_row(monkeypatch):
    assert not triton_norm.serves(torch.randn(2, 8))
    monkeypatch.setattr(triton_norm, "usable", lambda x: True)
    monkeypatch.setenv("SNIPER_SELF_CHECK", "skip")
    widths = {64: True, 4096: True, 4097: False, 0: False}
    assert {w: triton_norm.serves(torch.empty(2, w)) for w in widths} == widths
    assert not triton_norm.serves(torch.tensor(1.0))
