# SPDX-License-Identifier: Apache-2.0
"""What every kernel is held against: one gather, one einsum, any dtype and device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backend import sum_dtype
from sniper.ops.backends.elementwise import apply_epilogue
from sniper.ops.geometry import NO_EPILOGUE, Epilogue, Geometry
from sniper.ops.layout import BlockLayout


@dataclass(frozen=True)
class ReferenceBackend:
    """The passes as their formulas say, slowly; see `sniper.ops.backend.Backend`."""

    name: str = "reference"
    fuses_epilogue: bool = False
    fuses_bias_grad: bool = False

    def takes(self, which: str, x: Tensor, layout: BlockLayout) -> bool:
        return True

    def fwd(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: BlockLayout,
        geometry: Geometry,
        epilogue: Epilogue = NO_EPILOGUE,
    ) -> Tensor:
        """`y[b, t, n] = bias[n] + sum over taps, c of W[n, tap, c] * x[b, t + tap * dilation -
        pad_left, c]`, then the epilogue.
        """
        # One einsum over gathered rows: nothing is shared with the code that it judges.
        y = torch.einsum("btkc,nkc->btn", _windows(x, geometry), _masked(weight, layout))
        return apply_epilogue(y if bias is None else y + bias.to(y.dtype), epilogue)

    def dgrad(
        self, dy: Tensor, weight: Tensor, layout: BlockLayout, geometry: Geometry, length: int
    ) -> Tensor:
        """The adjoint of `fwd` in x."""
        parts = torch.einsum("btn,nkc->btkc", dy, _masked(weight, layout))
        span = length + geometry.pad_left + geometry.pad_right
        dx = dy.new_zeros(dy.shape[0], span, parts.shape[-1])
        for tap in range(geometry.taps):
            start = tap * geometry.dilation
            # The adjoint of a gather is a scatter that adds: a row of x feeds as many rows of y as
            # there are taps.
            dx[:, start : start + dy.shape[1]] += parts[:, :, tap]
        return dx[:, geometry.pad_left : geometry.pad_left + length].clone()

    def wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        with_bias: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The adjoint of `fwd` in W, masked."""
        dw = torch.einsum("btn,btkc->nkc", dy, _windows(x, geometry))
        dw = _masked(dw.reshape(dw.shape[0], -1), layout).reshape(dw.shape[0], -1)
        return dw, dy.sum((0, 1), dtype=sum_dtype(dy)) if with_bias else None


REFERENCE = ReferenceBackend()


def _masked(matrix: Tensor, layout: BlockLayout) -> Tensor:
    rows, taps, cols = layout.shape
    weight = matrix.reshape(matrix.shape[0], taps, cols * layout.block_size)
    # where, not a product: an infinite value in a pruned place must not become NaN.
    return torch.where(layout.element_mask(), weight, torch.zeros_like(weight))


def _windows(x: Tensor, geometry: Geometry) -> Tensor:
    """`[B, T_out, taps, C]`."""
    padded = F.pad(x, (0, 0, geometry.pad_left, geometry.pad_right))
    out = geometry.out_length(x.shape[1])
    starts = [tap * geometry.dilation for tap in range(geometry.taps)]
    return torch.stack([padded[:, s : s + out] for s in starts], dim=2)
