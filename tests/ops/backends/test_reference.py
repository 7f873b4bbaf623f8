# SPDX-License-Identifier: Apache-2.0
"""The reference itself: by hand, against torch in double, and as its own adjoint."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sniper.layers import BlockLayout
from sniper.ops.backends import REFERENCE
from sniper.ops.geometry import Geometry

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def test_by_hand():
    layout = BlockLayout(
        torch.tensor([[[True], [False], [True]]]), 1
    )  # one out, three taps, one in
    weight = torch.tensor([[2.0, 100.0, 3.0]])  # the middle tap is pruned, whatever it holds
    x = torch.tensor([[[1.0], [10.0], [100.0]]])
    geometry = Geometry(3, 1, 1, 1)
    y = REFERENCE.fwd(x, weight, torch.tensor([0.5]), layout, geometry)
    assert y.flatten().tolist() == [30.5, 302.5, 20.5]
    dy = torch.tensor([[[1.0], [10.0], [100.0]]])
    assert REFERENCE.dgrad(dy, weight, layout, geometry, 3).flatten().tolist() == [20, 203, 30]
    assert REFERENCE.wgrad(dy, x, layout, geometry)[0].tolist() == [[10 + 1000, 0, 10 + 1000]]


@pytest.mark.parametrize(
    "geometry", [Geometry(), Geometry(3, 1, 1, 1), Geometry(4, 2, 3, 0), Geometry(2, 1, 0, 5)]
)
def test_against_torch_in_double(geometry):
    mask = torch.rand(3, geometry.taps, 2) < 0.5
    mask[0] = False
    layout = BlockLayout(mask, 4)
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, geometry.taps * 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64)
    element = mask.repeat_interleave(4, 0).repeat_interleave(4, 2)
    masked = (weight.view(12, geometry.taps, 8) * element).permute(0, 2, 1)
    padded = F.pad(x, (0, 0, geometry.pad_left, geometry.pad_right)).transpose(1, 2)
    expected = F.conv1d(padded, masked, bias, dilation=geometry.dilation).transpose(1, 2)
    dy = torch.randn_like(expected)
    dx, dw = torch.autograd.grad(expected, (x, weight), dy)
    args = (layout, geometry)
    torch.testing.assert_close(REFERENCE.fwd(x, weight, bias, *args), expected)
    torch.testing.assert_close(REFERENCE.dgrad(dy, weight, *args, 9), dx)
    torch.testing.assert_close(REFERENCE.wgrad(dy, x, *args)[0], dw)
