# SPDX-License-Identifier: Apache-2.0
"""The custom ops: every backend against the reference, gradients, registrations, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sniper.layers import BlockLayout
from sniper.ops import Geometry, block_matmul, use_backend
from sniper.ops.backends.dense import mask_blocks_
from sniper.ops.block_matmul import _dgrad, _fwd
from sniper.ops.dispatch import BACKENDS

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
B = 16
GEOMETRIES = [Geometry(), Geometry(3, 1, 1, 1), Geometry(4, 2, 3, 3)]


def setup(geometry: Geometry, density: float = 0.5, dtype=torch.float32):
    """A layout, its weight `[N, K]` or `[N, C, taps]` and a bias."""
    mask = torch.rand(3, geometry.taps, 2) < density
    if 0 < density < 1:
        mask[0] = False
        mask[1] = True
    layout = BlockLayout(mask, B)
    matrix = torch.randn(3 * B, geometry.taps * 2 * B, dtype=dtype)
    weight = mask_blocks_(matrix, layout)
    if geometry.taps > 1:
        weight = weight.view(3 * B, geometry.taps, 2 * B).permute(0, 2, 1)
    return layout, weight.requires_grad_(), torch.randn(3 * B, dtype=dtype, requires_grad=True)


def run(name: str, x: Tensor, dy: Tensor, layout, weight, bias, geometry) -> list[Tensor]:
    """y, dx, dw, db."""
    x = x.detach().requires_grad_()
    with use_backend(name):
        y = block_matmul(x, weight, bias, layout, geometry)
        return [y, *torch.autograd.grad(y, (x, weight, bias), dy)]


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"triton", "reference"}))
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 11), (0, 5)])
def test_backends_match_the_reference(name, geometry, density, shape):
    layout, weight, bias = setup(geometry, density)
    x = torch.randn(*shape, 2 * B)
    dy = torch.randn(shape[0], geometry.out_length(shape[1]), 3 * B)
    args = (x, dy, layout, weight, bias, geometry)
    got, expected = run(name, *args), run("reference", *args)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert got[2].shape == weight.shape
    assert not got[2][weight == 0].any()


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"triton"}))
def test_non_contiguous(name):
    geometry = GEOMETRIES[1]
    layout, weight, bias = setup(geometry)
    x = torch.randn(2 * B, 7, 6).permute(2, 1, 0)[::2]
    dy = torch.randn(3 * B).expand(3, 7, 3 * B)
    got = run(name, x, dy, layout, weight, bias, geometry)
    expected = run("reference", x.contiguous(), dy.contiguous(), layout, weight, bias, geometry)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradcheck(geometry):
    layout, weight, bias = setup(geometry, dtype=torch.float64)
    x = torch.randn(1, 5, 2 * B, dtype=torch.float64, requires_grad=True)
    masked = [weight.detach().requires_grad_()]

    def f(x: Tensor, bias: Tensor) -> Tensor:
        return block_matmul(x, masked[0], bias, layout, geometry)

    assert torch.autograd.gradcheck(f, (x, bias), fast_mode=True)


class Recorder(TorchDispatchMode):
    """Our custom ops as they are called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sniper":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_registrations(geometry):
    """Schema, fake, autograd and dynamic shapes of each pass, by torch's own checker."""
    layout, weight, bias = setup(geometry)
    x = torch.randn(2, 9, 2 * B, requires_grad=True)
    with Recorder() as recorder:
        block_matmul(x, weight, bias, layout, geometry).sum().backward()
    names = [func.name() for func, _, _ in recorder.calls]
    assert names == ["sniper::block_fwd", "sniper::block_dgrad", "sniper::block_wgrad"]
    for func, args, kwargs in recorder.calls:
        args = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
        if func.name() == "sniper::block_fwd":
            args = (x, weight, bias, *args[3:])
        torch.library.opcheck(func, args, kwargs)


def test_registrations_of_what_is_handed_over():
    layout, weight, bias = setup(Geometry())
    args = (weight, bias, layout.handle, 1, 0, 0)
    seed = torch.tensor(3)
    x = torch.randn(2, 9, 2 * B).relu().requires_grad_()
    torch.library.opcheck(_fwd.op, (x, *args, True, 0.3, seed, True, 0.2))
    dy = torch.randn(2, 9, weight.shape[0], requires_grad=True)
    torch.library.opcheck(_dgrad.op, (dy, weight, *args[2:], 9, x.detach(), 0.2))


def test_only_what_needs_gradients_gets_them():
    layout, weight, bias = setup(Geometry())
    y = block_matmul(torch.randn(1, 3, 2 * B), weight, None, layout)
    y.sum().backward()
    assert weight.grad is not None and bias.grad is None


def test_a_layout_that_is_gone():
    layout, weight, bias = setup(Geometry())
    handle = layout.handle
    del layout
    fwd = torch.ops.sniper.block_fwd
    with pytest.raises(ValueError, match="living layout"):
        fwd(torch.randn(1, 3, 2 * B), weight, bias, handle, 1, 0, 0, False, 0.0, None)


def test_a_graph_keeps_its_layout_alive():
    layout, weight, bias = setup(Geometry())
    x = torch.randn(1, 3, 2 * B, requires_grad=True)
    y = block_matmul(x, weight, bias, layout).sum()
    wanted = weight.detach().sum(0).expand_as(x)
    del layout
    y.backward()
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("name", ["cpu", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_at_any_address(name, dtype):
    """One that is no multiple of 16 bytes, as that of a slice."""
    geometry = GEOMETRIES[1]
    layout, weight, bias = setup(geometry)
    weight, bias = weight.detach().to(dtype), bias.detach().to(dtype)
    x = torch.randn(2, 7, 2 * B).to(dtype)
    raw = torch.UntypedStorage(x.nbytes + x.element_size())
    shifted = torch.empty(0, dtype=dtype).set_(raw, 1, x.shape).copy_(x)
    assert shifted.data_ptr() % 16 == x.element_size()
    with use_backend(name):
        y, wanted = (block_matmul(t, weight, bias, layout, geometry) for t in (shifted, x))
    assert torch.equal(y, wanted)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend: expected one of .*dense.*got 'fast'"):
        with use_backend("fast"):
            raise AssertionError("not reached")


def test_a_forced_backend_ends_with_its_block():
    layout, weight, bias = setup(Geometry())
    x = torch.randn(1, 3, 2 * B)
    with pytest.raises(KeyError):
        with use_backend("reference"):
            raise KeyError
    y = block_matmul(x, weight, bias, layout)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(3, 2 * B)}, r"x: expected \[B, T, 32\], got \[3, 32\]"),
        ({"x": torch.randn(1, 3, B)}, r"x: expected \[B, T, 32\], got \[1, 3, 16\]"),
        ({"x": torch.randn(1, 3, 2 * B).double()}, "weight: expected x's dtype torch.float64"),
        ({"bias": torch.zeros(3 * B).half()}, "bias: expected x's dtype torch.float32"),
        ({"bias": torch.zeros(3 * B, device="meta")}, "bias: expected x's device cpu, got meta"),
        (
            {"weight": torch.zeros(3 * B, 2 * B, device="meta")},
            "weight: expected x's device cpu, got meta",
        ),
        (
            {"layout": BlockLayout(torch.ones(3, 2, dtype=torch.bool), B).to("meta")},
            "layout: expected x's device cpu, got meta; use layout.to",
        ),
        ({"geometry": Geometry(4, 1, 0, 0)}, r"and 1 taps, got .*taps=4"),
    ],
)
def test_refused(change, words):
    layout, weight, bias = setup(Geometry())
    args = {"x": torch.randn(1, 3, 2 * B), "weight": weight, "bias": bias, "layout": layout}
    with pytest.raises(ValueError, match=words):
        block_matmul(**{**args, **change})
