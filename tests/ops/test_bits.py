# SPDX-License-Identifier: Apache-2.0
"""Masks as bits, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sniper.ops.bits import pack_bits, unpack_bits

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def test_the_first_value_is_the_lowest_bit():
    assert pack_bits(torch.tensor([True, False, False, True])).tolist() == [9]
    ninth = torch.tensor([False] * 8 + [True])
    assert pack_bits(ninth).tolist() == [0, 1]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_equals_numpy(n, device):
    mask = torch.rand(n) > 0.5
    bits = pack_bits(mask.to(device))
    assert bits.dtype == torch.uint8
    assert bits.tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    assert torch.equal(unpack_bits(bits, (n,)).cpu(), mask)


def test_every_byte(device):
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    mask = unpack_bits(bits, (2048,))
    assert (
        mask.tolist() == np.unpackbits(bits.cpu().numpy(), bitorder="little").astype(bool).tolist()
    )
    assert torch.equal(pack_bits(mask), bits)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 4))
def test_round_trip(values, columns):
    values = values[: len(values) // columns * columns]
    mask = torch.tensor(values, dtype=torch.bool).reshape(-1, columns)
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)


def test_non_contiguous():
    mask = (torch.rand(6, 10) > 0.5).t()[::2]
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)
    bits = pack_bits(mask)
    spread = torch.zeros(2 * len(bits), dtype=torch.uint8)
    spread[::2] = bits
    assert torch.equal(unpack_bits(spread[::2], mask.shape), mask)


def test_scalar():
    assert unpack_bits(pack_bits(torch.tensor(True)), ()).item() is True


def test_refused():
    with pytest.raises(ValueError, match="mask: expected bool, got torch.uint8"):
        pack_bits(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[2\] for shape \(3, 3\), got torch.uint8 \[1\]"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), (3, 3))
    with pytest.raises(ValueError, match="got torch.int32"):
        unpack_bits(torch.zeros(2, dtype=torch.int32), (3, 3))
    with pytest.raises(ValueError, match=r"got torch.uint8 \[2, 1\]"):
        unpack_bits(torch.zeros(2, 1, dtype=torch.uint8), (3, 3))
    with pytest.raises(ValueError, match="pack_bits: expected a tensor on cpu.*got meta"):
        pack_bits(torch.zeros(3, dtype=torch.bool, device="meta"))
