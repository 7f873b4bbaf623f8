# SPDX-License-Identifier: Apache-2.0
"""What is made of a tensor once."""

import torch

from sniper.ops import once
from sniper.ops.once import made_once


def made(t: torch.Tensor, what: str = "sum") -> list[float]:
    """Something new at each call, so that the same one tells that it was kept."""
    return made_once(t, what, lambda: [float(t.sum())])


def test_views_share_what_is_made_until_somebody_writes():
    base = torch.rand(2, 7)
    first = made(base[:, None])
    assert made(base[:, None]) is first and made(base[:, None]) is first
    assert made(base[:, None], "other") is not first
    assert made(base[:, None]) is first
    assert made(base[:, :3]) == [float(base[:, :3].sum())]
    base[0, 0] += 1
    assert made(base[:, None]) == [float(base.sum())] != first


def test_it_goes_with_its_tensor():
    base = torch.rand(2, 7)
    made(base)
    kept = len(once._made)
    del base
    assert len(once._made) == kept - 1


def test_inference_keeps_nothing():
    with torch.inference_mode():
        t = torch.rand(3)
        first = made(t)
        t += 1
        assert made(t) != first
