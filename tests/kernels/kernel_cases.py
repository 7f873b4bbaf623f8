# SPDX-License-Identifier: Apache-2.0
"""The shapes that kernels are held against the reference on."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout

# Relative Frobenius error; on a GPU float32 is true float32 unless tf32 is allowed.
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 6e-3}


class Case(NamedTuple):
    """A weight of 3 x 2 blocks and what it is applied to; 'same' padding."""

    block: int
    taps: int
    dilation: int
    density: float
    batch: int
    length: int

    def __str__(self) -> str:
        taps = f"{self.taps}taps/{self.dilation}"
        return f"b{self.block}-{taps}-d{self.density}-{self.batch}x{self.length}"


# A linear layer, one row, dilation, more taps than rows, nothing active, everything active.
CASES = [
    *(Case(block, 1, 1, 0.25, 2, 19) for block in (16, 32, 64, 128)),
    *(Case(block, 3, 2, 0.25, 2, 19) for block in (16, 32, 64, 128)),
    *(Case(block, 1, 1, 1.0, 1, 1) for block in (16, 64)),
    *(Case(block, 9, 1, 0.25, 2, 3) for block in (32, 64)),
    *(Case(block, 5, 1, 0.0, 1, 6) for block in (16, 128)),
    Case(16, 5, 1, 1.0, 1, 21),
    Case(64, 3, 1, 1.0, 2, 21),
    Case(128, 3, 1, 0.25, 1, 5),
]
MORE_CASES = [
    Case(block, taps, dilation, density, *shape)
    for block, taps, density in itertools.product((16, 32, 64, 128), (1, 3, 5, 9), (0.0, 0.25, 1.0))
    for dilation in ((1,) if taps == 1 else (1, 3))
    for shape in ((1, 1), (3, 2), (2, 37))
]


def make(
    case: Case, dtype: str, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, BlockLayout, Geometry]:
    """x, dy, weight, bias, layout, geometry; the first block row is empty unless all is active."""
    block, taps = case.block, case.taps
    mask = torch.rand(3, taps, 2) < case.density
    if 0 < case.density < 1:
        mask[0] = False
        mask[1, taps // 2, 1] = True
    layout = BlockLayout(mask, block).to(device)
    pad = case.dilation * (taps - 1) // 2
    n, c = 3 * block, 2 * block

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(getattr(torch, dtype)).to(device)

    weight = random(n, taps * c) * layout.element_mask().reshape(n, taps * c)
    x, dy = random(case.batch, case.length, c), random(case.batch, case.length, n)
    return x, dy, weight, random(n), layout, Geometry(taps, case.dilation, pad, pad)


def close(got: Tensor, expected: Tensor, dtype: str) -> None:
    """Equal up to the rounding of `dtype`, relative to the whole; NaN nowhere."""
    assert got.shape == expected.shape and got.dtype == getattr(torch, dtype)
    got, expected = got.cpu().double(), expected.cpu().double()
    assert got.isfinite().all()
    assert (got - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def far_apart(t: Tensor) -> Tensor:
    """The values of `[3, T, C]` with the last sequence more than 2^31 elements behind the first,
    in memory of which most is never touched. The stride itself has 32 bits.
    """
    batch, rows, channels = t.shape
    assert batch == 3
    stride = 2**30 + 16
    size = t.element_size() * (2 * stride + rows * channels)
    memory = torch.empty(0, dtype=t.dtype, device=t.device)
    memory.set_(torch.UntypedStorage(size, device=t.device), 0, t.shape, (stride, channels, 1))
    return memory.copy_(t)
