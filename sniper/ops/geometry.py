# SPDX-License-Identifier: Apache-2.0
"""What a pass must know besides its tensors: a convolution's shape, and how a forward pass ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """A stride-1 convolution over `[B, T, C]`; the defaults are a linear layer. Whoever takes one
    refuses values that are no convolution.

    Args:
        taps: kernel size.
        dilation: distance of taps in rows.
        pad_left, pad_right: rows of zeros before and after each sequence.
    """

    taps: int = 1
    dilation: int = 1
    pad_left: int = 0
    pad_right: int = 0

    def out_length(self, t: int) -> int:
        """Rows of y for `t` rows of x.

        Args:
            t: rows of one sequence.

        Returns:
            A number below 0 where x is shorter than the taps span.
        """
        return t + self.pad_left + self.pad_right - self.dilation * (self.taps - 1)

    @property
    def is_linear(self) -> bool:
        """Whether every row of y comes from the row of x in its place alone."""
        return self.taps == 1 and not self.pad_left and not self.pad_right


LINEAR = Geometry()


class Epilogue(NamedTuple):
    """What a forward pass does to its result: `y = dropout(relu(y))`.

    Args:
        relu: whether to clamp at 0; without it there is no dropout either.
        p: share that dropout zeroes, to the nearest of 2**16; the rest is scaled by `1 / (1 - p)`.
        seed: decides what is zeroed; an int64 scalar on the device of a GPU.
    """

    relu: bool = False
    p: float = 0.0
    seed: int | Tensor = 0


NO_EPILOGUE = Epilogue()


def dropout_words(p: float) -> tuple[int, float]:
    """The least of 2**16 random words that keeps its element, and what is kept is multiplied by.

    Raises:
        ValueError: p outside [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: expected p in [0, 1), got {p}")
    # Compared as whole numbers, so that every device and instruction set drops the same elements.
    return min(round(p * 2**16), 2**16 - 1), 1 / (1 - p)


def as_matrix(weight: Tensor) -> Tensor:
    """`[N, K]` as it is; `[N, C, taps]` as `[N, taps * C]`, a view when its memory is `[N, taps,
    C]`.
    """
    # reshape, not view: a weight that nobody has masked yet still lies as torch made it.
    return weight if weight.dim() == 2 else weight.permute(0, 2, 1).reshape(weight.shape[0], -1)


def is_matrix(weight: Tensor) -> bool:
    """Whether `as_matrix` is a contiguous view, which may be written to."""
    return (weight if weight.dim() == 2 else weight.permute(0, 2, 1)).is_contiguous()


def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """`[N, taps * C]` in the shape of `weight`, a view."""
    if weight.dim() == 2:
        return matrix
    n, c, taps = weight.shape
    return matrix.view(n, taps, c).permute(0, 2, 1)


def columns_of(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose columns these are, in this order; None if they are of several."""
    if any(type(part) is not Tensor for part in parts):
        return None  # what a compiler traces has no memory
    first, columns = parts[0], sum(part.shape[-1] for part in parts)
    strides, offset = [columns, 1], first.storage_offset()
    for size in reversed(first.shape[1:-1]):
        strides.insert(0, strides[0] * size)
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        same = same and part.shape[:-1] == first.shape[:-1]
        if not same or part.storage_offset() != offset or list(part.stride()) != strides:
            return None
        offset += part.shape[-1]
    return first.as_strided((*first.shape[:-1], columns), strides)


def check_tensor(name: str, value: object) -> None:
    """Refuses what is no tensor.

    Raises:
        ValueError: names expected and got.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {value!r:.80}")


def check_floating(name: str, value: Tensor) -> None:
    """Refuses whole, boolean and complex numbers.

    Raises:
        ValueError: names expected and got.
    """
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {value.dtype}")


def check_share(name: str, value: object, below_one: bool = False) -> None:
    """Refuses what is no number in [0, 1], or [0, 1).

    Raises:
        ValueError: names expected and got.
    """
    # True would pass as a share of 1.
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < 1 or (value == 1 and not below_one):
            return
    raise ValueError(f"{name}: expected p in [0, 1{')' if below_one else ']'}, got {value!r}")


def check_geometry(geometry: object) -> None:
    """Refuses what is no convolution.

    Raises:
        ValueError: names expected and got.
    """
    # Without a loop or a generator, which take longer than all else here: each pass asks.
    if isinstance(geometry, Geometry):
        taps, dilation, left, right = geometry
        whole = isinstance(taps, int) and isinstance(dilation, int)
        if whole and isinstance(left, int) and isinstance(right, int):
            if taps >= 1 and dilation >= 1 and left >= 0 and right >= 0:
                return
    raise ValueError(
        f"geometry: expected taps and dilation >= 1 and padding >= 0, got {geometry!r}"
    )
