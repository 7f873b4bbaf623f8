# SPDX-License-Identifier: Apache-2.0
"""When BatchNorm's kernels are asked at all."""

from __future__ import annotations

import pytest
import torch

from sniper.ops import batch_norm as ops


@pytest.mark.parametrize(
    "x, weight",
    [
        (torch.randn(2, 3, 8).double(), torch.ones(8)),
        (torch.randn(2, 3, 8), torch.ones(8).half()),
        (torch.randn(2, 3, 8), torch.ones(4)),
        (torch.randn(2, 3, 8), torch.ones(8, device="meta")),
    ],
    ids=["double", "half weight", "other shape", "other device"],
)
def test_what_the_kernels_do_not_take(x, weight, monkeypatch):
    monkeypatch.setattr(ops.triton, "serves", lambda x: True)
    assert ops.fuses_batch_norm(torch.randn(2, 3, 8), torch.ones(8))
    assert not ops.fuses_batch_norm(x, weight)
