# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that the executors share."""

from __future__ import annotations

from torch import Tensor

from sniper.ops.geometry import Geometry


def out_length(geometry: Geometry, length: int) -> int:
    """Rows of y for `length` rows of x.

    Raises:
        ValueError: a geometry that is no convolution, or fewer rows than its taps span.
    """
    if min(geometry.pad_left, geometry.pad_right) < 0 or min(geometry.taps, geometry.dilation) < 1:
        raise ValueError(
            f"geometry: expected taps and dilation >= 1 and padding >= 0, got {geometry}"
        )
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
    fits = len(shape) == t.dim() and all(
        w is None or w == g for w, g in zip(shape, t.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(t.shape)}")
