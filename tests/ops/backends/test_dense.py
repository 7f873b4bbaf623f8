# SPDX-License-Identifier: Apache-2.0
"""The dense backend against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sniper.layers import BlockLayout
from sniper.ops.backends import DENSE, REFERENCE, dense
from sniper.ops.geometry import Geometry
from sniper.ops.pruned import mask_blocks_

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
B = 4
GEOMETRIES = [
    Geometry(),
    Geometry(1, 1, 2, 2),
    Geometry(3, 1, 1, 1),
    Geometry(4, 1, 1, 2),
    Geometry(3, 2, 4, 0),
    Geometry(9, 1, 4, 4),
]


@pytest.fixture(params=["as on a CPU", "as on a GPU"], autouse=True)
def played(request, monkeypatch):
    """Both ways to call a convolution, on the CPU."""
    monkeypatch.setattr(dense, "_channels_last", lambda x: request.param == "as on a GPU")
    return request.param


def setup(geometry: Geometry, density: float, dtype=torch.float64):
    mask = torch.rand(3, geometry.taps, 2) < density
    if 0 < density < 1:
        mask[0] = False
    layout = BlockLayout(mask, B)
    weight = torch.randn(3 * B, geometry.taps * 2 * B, dtype=dtype)
    return layout, mask_blocks_(weight, layout), torch.randn(3 * B, dtype=dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("t", [1, 2, 13])
@pytest.mark.parametrize("contiguous", [True, False])
def test_matches_the_reference(geometry, density, t, contiguous):
    if geometry.out_length(t) < 1:
        t = geometry.dilation * (geometry.taps - 1) + 1
    layout, weight, bias = setup(geometry, density)
    shape, out = (3, t, 2 * B), (3, geometry.out_length(t), 3 * B)
    if contiguous:
        x, dy = torch.randn(shape).double(), torch.randn(out).double()
    else:
        x = torch.randn(shape[2], shape[1], 2 * shape[0]).double().permute(2, 1, 0)[::2]
        dy = torch.randn(out[2]).double().expand(out)
    args = (layout, geometry)
    torch.testing.assert_close(
        DENSE.fwd(x, weight, bias, *args), REFERENCE.fwd(x, weight, bias, *args)
    )
    torch.testing.assert_close(
        DENSE.fwd(x, weight, None, *args), REFERENCE.fwd(x, weight, None, *args)
    )
    torch.testing.assert_close(
        DENSE.dgrad(dy, weight, *args, t), REFERENCE.dgrad(dy, weight, *args, t)
    )
    dw = DENSE.wgrad(dy, x, *args)[0]
    torch.testing.assert_close(dw, REFERENCE.wgrad(dy, x, *args)[0])
    pruned = ~layout.element_mask().reshape(dw.shape)
    assert not dw[pruned].any()


@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
def test_an_infinite_gradient_stays_out_of_pruned_blocks(geometry):
    layout, _, _ = setup(geometry, 0.0)
    x = torch.full((1, 9, 2 * B), float("inf"))
    dw = DENSE.wgrad(torch.ones(1, geometry.out_length(9), 3 * B), x, layout, geometry)[0]
    assert not dw.any()


def test_mask_blocks():
    layout = BlockLayout(torch.tensor([[True, False]]), 2)
    matrix = torch.ones(2, 4)
    assert mask_blocks_(matrix, layout) is matrix
    assert matrix.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


class Watched(TorchDispatchMode):
    """Keeps what convolutions were given and gave, and the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names, self.convolutions = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if "convolution" in self.names[-1]:
            values = (*args, *(out if isinstance(out, tuple) else (out,)))
            self.convolutions.append([t for t in values if isinstance(t, torch.Tensor)])
        return out


@pytest.mark.parametrize("geometry", [Geometry(3, 1, 1, 1), Geometry(9, 1, 4, 4)])
@pytest.mark.parametrize("t", [9, 13])
def test_nothing_is_copied_around_a_convolution_on_a_gpu(played, geometry, t):
    layout, weight, bias = setup(geometry, 1.0, torch.float32)
    x, dy = torch.randn(3, t, 2 * B), torch.randn(3, t, 3 * B)
    calls = {
        "fwd": lambda: DENSE.fwd(x, weight, bias, layout, geometry),
        "dgrad": lambda: DENSE.dgrad(dy, weight, layout, geometry, t),
        "wgrad": lambda: DENSE.wgrad(dy, x, layout, geometry)[0],
    }
    for which, call in calls.items():
        with Watched() as watched:
            result = call()
        copies = {"clone", "copy_", "_to_copy", "contiguous", "constant_pad_nd"} & {*watched.names}
        assert result.is_contiguous() and len(watched.convolutions) == 1, which
        if played == "as on a CPU":
            continue
        assert not copies, which
        assert not result._is_view(), which
        images = [i for i in watched.convolutions[0] if i.dim() == 4]
        assert len(images) >= 3
        for image in images:
            assert image.is_contiguous(memory_format=torch.channels_last), which
        assert result.data_ptr() in {image.data_ptr() for image in images}, which


def test_a_linear_layer_copies_nothing(played):
    layout, weight, bias = setup(Geometry(), 1.0, torch.float32)
    with Watched() as watched:
        y = DENSE.fwd(torch.randn(3, 5, 2 * B), weight, bias, layout, Geometry())
    assert not y._is_view() and not {"clone", "copy_"} & {*watched.names}
