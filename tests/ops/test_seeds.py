# SPDX-License-Identifier: Apache-2.0
"""Seeds of dropout that are drawn many at a time."""

from __future__ import annotations

import sys

import pytest
import torch

from sniper.ops.dropout import draw_seed, seeds_together

# `sniper.ops.dropout` is a function too, and that is what an import gives.
dropout = sys.modules["sniper.ops.dropout"]


def test_many_from_one_draw_and_none_left_over():
    torch.manual_seed(3)
    device, drawn = torch.device("cpu"), []
    seeds = [dropout._next_seed(drawn, device) for _ in range(dropout._SEEDS + 1)]
    assert len({int(s) for s in seeds}) == len(seeds) and all(0 <= s < 2**62 for s in seeds)
    assert all(s.dtype == torch.int64 and s.shape == () for s in seeds)
    assert all(s.data_ptr() % 16 == seeds[0].data_ptr() % 16 for s in seeds)
    torch.manual_seed(3)
    assert int(dropout._next_seed([], device)) == int(seeds[0])


def test_on_a_cpu_draws_stay_what_they_are():
    """A run that goes on from a checkpoint draws what it would have drawn."""
    torch.manual_seed(3)
    alone = [int(draw_seed()) for _ in range(3)]
    torch.manual_seed(3)
    with seeds_together():
        assert [int(draw_seed()) for _ in range(3)] == alone


def test_ends_with_the_context():
    with pytest.raises(RuntimeError), seeds_together():
        with seeds_together():
            assert dropout._drawn == []
        raise RuntimeError
    assert dropout._drawn is None
