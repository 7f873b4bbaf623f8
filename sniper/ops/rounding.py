# SPDX-License-Identifier: Apache-2.0
"""How far two right ways of adding up a pass may lie apart, whatever cancels in its sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sniper.ops.geometry import Geometry


def noise(
    which: str, left: Tensor, right: Tensor, geometry: Geometry, tf32: bool, p: float = 0.0
) -> Callable[[], list[float]]:
    """A bound on the rounding of each result of a pass, for whoever compares two backends.

    A gradient may be zero but for the order in which terms were added, as that of attention's key
    biases is. Then its largest entry says nothing: the terms do. With n of them, none larger than
    a, sums in float32 err by at most `n * eps * a`, and rounding of operands or results by about
    `sqrt(n) * eps * a`.

    Args:
        which: `fwd`, `dgrad` or `wgrad`.
        left, right: the pass's two tensors: x or dy `[B, T, channels]`, and weight or x.
        geometry: its taps.
        tf32: whether float32 operands may be rounded to tf32.
        p: share that dropout zeroes, which scales the rest.

    Returns:
        A function, since it reads values (and waits for a GPU): it gives one number a result, for
        `wgrad` those of dL/dW and dL/db.
    """

    def bounds() -> list[float]:
        if not left.numel() or not right.numel():
            return [0.0, 0.0]
        largest, other = float(left.abs().max()), float(right.abs().max())
        # A weight gradient adds over rows; the other two passes add over channels and taps.
        tokens = left.shape[0] * left.shape[1]
        terms = tokens if which == "wgrad" else left.shape[-1] * geometry.taps
        eps = 2.0**-10 if tf32 else torch.finfo(left.dtype).eps
        relative = terms * torch.finfo(torch.float32).eps + 4 * math.sqrt(terms) * eps
        return [relative * largest * other / (1 - p), relative * largest]

    return bounds
