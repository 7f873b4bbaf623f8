# SPDX-License-Identifier: Apache-2.0
"""Attention on the CPU: both products, key mask, softmax and dropout in one kernel each way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, dropout_arguments, empty, rows_of

# Queries for positions and the positions themselves: `[B, T, C]` and `[2 T - 1, C]`.
Positions = tuple[Tensor, Tensor]
_NO_ROWS = (0, 0, 0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    heads: int,
    p: float,
    seed: int,
    positions: Positions | None = None,
) -> tuple[Tensor, Tensor]:
    """`dropout(softmax(q k^T / sqrt(C / heads))) v`, head by head; 0 where all keys are hidden.

    Args:
        q: float32 `[B, T, C]`.
        k, v: `[B, S, C]`.
        key_mask: bool `[B, S]`, true where a key counts; None: all count.
        p, seed: dropout zeroes what `elementwise.dropout` zeroes in a tensor `[heads, B, T, S]` in
            which the keys of a sequence that count come first.
        positions: added to the product of query t and key s is that of their query t with their row
            T - 1 - t + s; then S is T.

    Returns:
        y `[B, T, C]`; and of each row of scores the highest, and 1 over the sum of exponentials
        below it, `[heads, B, T, 2]`, for backward.

    Raises:
        ValueError: not float32 on the CPU, shapes that do not fit, or `p` outside [0, 1).
    """
    q, k, v = _check(q, k, v, key_mask, heads)
    positions = _check_positions(positions, q, k)
    y = empty(torch.float32, *q.shape)
    normal = torch.empty(heads, q.shape[0], q.shape[1], 2)
    mask, address = _mask(key_mask)
    _C.cpu.attention(
        _shape(q, k, heads),
        rows_of(q),
        rows_of(k),
        rows_of(v),
        *_rows_of_positions(positions),
        address,
        _scale(q, heads),
        dropout_arguments(p, seed),
        rows_of(y),
        normal.data_ptr(),
        torch.get_num_threads(),
    )
    del mask  # was kept for its address
    return y, normal


def attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    normal: Tensor,
    p: float,
    seed: int,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
    positions: Positions | None = None,
) -> tuple[Tensor, ...]:
    """dq, dk and dv for dy `[B, T, C]`, and where there are positions the gradients of both; the
    rest as `attention` took and gave it.

    Args:
        into: dq, dk and dv, of q's and k's shapes, channels contiguous: columns of one tensor, say.
            They are written, and returned.

    Raises:
        ValueError: as there, or `into` of other shapes or strides.
    """
    heads = normal.shape[0]
    q, k, v = _check(q, k, v, key_mask, heads)
    positions = _check_positions(positions, q, k)
    check_tensor("dy", dy, 3, torch.float32)
    check_shape("dy", dy, tuple(q.shape))
    check_tensor("normal", normal, 4, torch.float32)
    check_shape("normal", normal, (heads, q.shape[0], q.shape[1], 2))
    # The gradient of a sum comes expanded, with strides of 0.
    dy, normal = _with_contiguous_channels(dy), normal.contiguous()
    dq, dk, dv = into or [empty(torch.float32, *t.shape) for t in (q, k, v)]
    for name, t, like in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        check_tensor(name, t, 3, torch.float32)
        check_shape(name, t, tuple(like.shape))
        if t.shape[2] > 1 and t.stride(2) != 1:
            raise ValueError(f"{name}: expected contiguous channels, got strides {t.stride()}")
    of_positions = None
    if positions is not None:
        of_positions = empty(torch.float32, *q.shape), empty(torch.float32, *positions[1].shape)
    mask, address = _mask(key_mask)
    _C.cpu.attention_backward(
        _shape(q, k, heads),
        rows_of(q),
        rows_of(k),
        rows_of(v),
        *_rows_of_positions(positions),
        rows_of(dy),
        address,
        _scale(q, heads),
        dropout_arguments(p, seed),
        normal.data_ptr(),
        rows_of(dq),
        rows_of(dk),
        rows_of(dv),
        *_rows_of_positions(of_positions),
        torch.get_num_threads(),
    )
    del mask
    return dq, dk, dv, *(of_positions or ())


def _check(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, heads: int
) -> tuple[Tensor, ...]:
    """q, k and v as the kernel reads them, with contiguous channels."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, t, 3, torch.float32)
    batch, _, channels = q.shape
    check_shape("k", k, (batch, None, channels))
    check_shape("v", v, tuple(k.shape))
    if heads < 1 or channels % heads:
        raise ValueError(f"heads: expected a divisor of {channels}, got {heads}")
    if key_mask is not None and (key_mask.dtype, key_mask.shape) != (torch.bool, k.shape[:2]):
        expected = f"bool [{batch}, {k.shape[1]}]"
        raise ValueError(
            f"key_mask: expected {expected}, got {key_mask.dtype} {list(key_mask.shape)}"
        )
    return tuple(_with_contiguous_channels(t) for t in (q, k, v))


def _check_positions(positions: Positions | None, q: Tensor, k: Tensor) -> Positions | None:
    """As the kernel reads them, with contiguous channels."""
    if positions is None:
        return None
    position_q, places = positions
    check_tensor("position_q", position_q, 3, torch.float32)
    check_tensor("positions", places, 2, torch.float32)
    check_shape("k", k, tuple(q.shape))
    check_shape("position_q", position_q, tuple(q.shape))
    check_shape("positions", places, (max(2 * q.shape[1] - 1, 0), q.shape[2]))
    return _with_contiguous_channels(position_q), _with_contiguous_channels(places)


def _rows_of_positions(positions: Positions | None) -> tuple[tuple[int, int, int], ...]:
    if positions is None:
        return _NO_ROWS, _NO_ROWS
    return rows_of(positions[0]), (positions[1].data_ptr(), 0, positions[1].stride(0))


def _with_contiguous_channels(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _shape(q: Tensor, k: Tensor, heads: int) -> tuple[int, int, int, int, int]:
    return q.shape[0], heads, q.shape[1], k.shape[1], q.shape[2] // heads


def _mask(key_mask: Tensor | None) -> tuple[Tensor | None, int]:
    """A contiguous mask, to be kept while its address is in use."""
    if key_mask is None:
        return None, 0
    mask = key_mask.contiguous()
    return mask, mask.data_ptr()


def _scale(q: Tensor, heads: int) -> float:
    return 1 / math.sqrt(max(q.shape[2] // heads, 1))
