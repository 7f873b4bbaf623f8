# SPDX-License-Identifier: Apache-2.0
"""What a backend is: one way to compute a layer's three passes over its active blocks.

All backends compute the same function of weight and mask, whatever lies in the pruned places; they
differ in speed and in the last bits. `sniper.ops.dispatch` chooses among them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sniper.ops.geometry import NO_EPILOGUE, Epilogue, Geometry, check_geometry
from sniper.ops.layout import BlockLayout


class Backend(Protocol):
    """Computes on detached tensors; every argument is checked, every result is a fresh tensor.

    Attributes:
        name: what `sniper.ops.use_backend` calls it.
        fuses_epilogue: whether `fwd` applies ReLU and dropout on its way, not in a visit after it.
        fuses_bias_grad: whether `wgrad` sums dy on its way.
    """

    @property
    def name(self) -> str: ...

    @property
    def fuses_epilogue(self) -> bool: ...

    @property
    def fuses_bias_grad(self) -> bool: ...

    def takes(self, which: str, x: Tensor, layout: BlockLayout) -> bool:
        """Whether it can run a pass (`fwd`, `dgrad`, `wgrad`) on tensors of this dtype, on this
        device, with blocks of this size.
        """
        ...

    def fwd(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: BlockLayout,
        geometry: Geometry,
        epilogue: Epilogue = NO_EPILOGUE,
    ) -> Tensor:
        """`y = epilogue(x * W^T + b)` over the active blocks and taps.

        Args:
            x: `[B, T, C]`, any strides.
            weight: `[N, taps * C]`; pruned blocks count as zero.
            bias: `[N]` or None; on a GPU it may be float32 beside half-precision x.
            layout: the weight's active blocks, on the same device.
            geometry: taps, dilation and padding.
            epilogue: ReLU and dropout on the result.

        Returns:
            `[B, T_out, N]`, contiguous.

        Raises:
            ValueError: a dtype, device, shape or layout that does not fit.
        """
        ...

    def dgrad(
        self, dy: Tensor, weight: Tensor, layout: BlockLayout, geometry: Geometry, length: int
    ) -> Tensor:
        """dL/dx `[B, length, C]`, contiguous, for dy `[B, T_out, N]`; the rest as in `fwd`."""
        ...

    def wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        with_bias: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dW `[N, taps * C]`, exactly 0 in pruned blocks, and dL/db `[N]`, of `sum_dtype(dy)`,
        if asked for.
        """
        ...


def sum_dtype(dy: Tensor) -> torch.dtype:
    """Of dL/db: a GPU adds in float32, and there the bias is float32 too under autocast."""
    half = dy.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and dy.is_cuda else dy.dtype


def out_length(geometry: Geometry, length: int) -> int:
    """Rows of y for `length` rows of x.

    Raises:
        ValueError: a geometry that is no convolution, or fewer rows than its taps span.
    """
    check_geometry(geometry)
    out = geometry.out_length(length)
    if out < 0 or length < 0:
        raise ValueError(
            f"x: expected at least {length - out} rows for {geometry}, got {length}: pad more"
        )
    return out


def check_shape(name: str, t: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuses another shape; None stands for any size.

    Raises:
        ValueError: names expected and got.
    """
    got = t.shape
    if got == shape:
        return
    # The rank first, since a strict zip raises an error of its own.
    if len(shape) == len(got):
        # A loop, which takes half as long as `all` of a generator, some 800 times a step.
        for wanted, size in zip(shape, got, strict=True):
            if wanted is not None and wanted != size:
                break
        else:
            return
    sizes = ", ".join("any" if s is None else str(s) for s in shape)
    raise ValueError(f"{name}: expected shape [{sizes}], got {list(got)}")
