# SPDX-License-Identifier: Apache-2.0
"""Attention on the CPU: both products, key mask, softmax and dropout in one kernel each way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, dropout_arguments, empty, rows_of


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, heads: int, p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """`dropout(softmax(q k^T / sqrt(C / heads))) v`, head by head; 0 where all keys are hidden.

    Args:
        q: float32 `[B, T, C]`.
        k, v: `[B, S, C]`.
        key_mask: bool `[B, S]`, true where a key counts; None: all count.
        p, seed: dropout zeroes what `elementwise.dropout` zeroes in a tensor `[heads, B, T, S]` in
            which the keys of a sequence that count come first.

    Returns:
        y `[B, T, C]`; and of each row of scores the highest, and 1 over the sum of exponentials
        below it, `[heads, B, T, 2]`, for backward.

    Raises:
        ValueError: not float32 on the CPU, shapes that do not fit, or `p` outside [0, 1).
    """
    q, k, v = _check(q, k, v, key_mask, heads)
    y = empty(torch.float32, *q.shape)
    normal = torch.empty(heads, q.shape[0], q.shape[1], 2)
    mask, address = _mask(key_mask)
    _C.cpu.attention(
        _shape(q, k, heads),
        rows_of(q),
        rows_of(k),
        rows_of(v),
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
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv for dy `[B, T, C]`; the rest as `attention` took and gave it.

    Args:
        into: dq, dk and dv, of q's and k's shapes, channels contiguous: columns of one tensor, say.
            They are written, and returned.

    Raises:
        ValueError: as there, or `into` of other shapes or strides.
    """
    heads = normal.shape[0]
    q, k, v = _check(q, k, v, key_mask, heads)
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
    mask, address = _mask(key_mask)
    _C.cpu.attention_backward(
        _shape(q, k, heads),
        rows_of(q),
        rows_of(k),
        rows_of(v),
        rows_of(dy),
        address,
        _scale(q, heads),
        dropout_arguments(p, seed),
        normal.data_ptr(),
        rows_of(dq),
        rows_of(dk),
        rows_of(dv),
        torch.get_num_threads(),
    )
    del mask
    return dq, dk, dv


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
