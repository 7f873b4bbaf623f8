# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from sniper.ops.geometry import LINEAR, Geometry
from sniper.ops.rounding import noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_that_cancel_stay_within_the_bound(dtype):
    dy = torch.randn(1, 4000, 8, dtype=torch.float64)
    dy = (dy - dy.mean(1, keepdim=True)).to(dtype)
    x = torch.ones(1, 4000, 4, dtype=dtype)
    dw, db = noise("wgrad", dy, x, LINEAR, tf32=False)()
    exact = dy.double().sum((0, 1))
    assert (dy.float().sum((0, 1)) - exact).abs().max() <= db
    ordered = dy.float().flip(1).cumsum(1)[0, -1]  # one after the other, the worst order
    assert (ordered - exact).abs().max() <= db == dw  # x is 1
    assert dw < (1e-2 if dtype == torch.float32 else 10) * dy.float().abs().max()


def test_terms_of_each_pass():
    x, w = torch.ones(2, 50, 16), torch.ones(32, 48)
    three = Geometry(3, 1, 1, 1)
    one_tap = noise("fwd", x, w[:, :16], LINEAR, False)()[0]
    assert one_tap < noise("fwd", x, w, three, False)()[0] < 3 * one_tap + 1e-9
    assert noise("fwd", x, w, three, True)()[0] > 100 * one_tap
    assert noise("fwd", 2 * x, w, three, False, p=0.5)()[0] == pytest.approx(
        4 * noise("fwd", x, w, three, False)()[0]
    )
    assert noise("fwd", x[:0], w, three, False)() == [0.0, 0.0]
