# SPDX-License-Identifier: Apache-2.0
"""Attention weights on the CPU: scale, key mask, softmax and dropout in one visit.

Plain functions on detached float32 tensors that the caller made, in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backends.cpu.launch import dropout_words


def softmax_dropout_(
    scores: Tensor, key_mask: Tensor | None, scale: float, p: float, seed: int
) -> Tensor:
    """Turns scores into `w = softmax(scale * scores)`, in place, and returns `dropout(w)`.

    A row whose keys are all hidden becomes 0.

    Args:
        scores: contiguous `[H, B, T, S]`.
        key_mask: bool `[B, S]`, true where a key counts; None: all count.
        p, seed: dropout zeroes what `elementwise.dropout` zeroes in a tensor of this shape.

    Raises:
        ValueError: not contiguous float32 on the CPU, or a mask that does not fit.
    """
    _check("scores", scores)
    heads, batch, queries, keys = scores.shape
    mask = None
    if key_mask is not None:
        if key_mask.shape != (batch, keys):
            raise ValueError(f"key_mask: expected [{batch}, {keys}], got {list(key_mask.shape)}")
        # One row of the mask for each batch item of each head, as the rows of the scores come.
        mask = key_mask.expand(heads, batch, keys).contiguous()
    # Memory of its own: the softmax stays in `scores`, where backward needs it without dropout.
    dropped = torch.empty_like(scores)
    _C.cpu.softmax_dropout(
        scores.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        queries,
        dropped.data_ptr(),
        heads * batch * queries,
        keys,
        scale,
        dropout_words(p, seed),
        torch.get_num_threads(),
    )
    return dropped


def softmax_dropout_backward_(
    dy: Tensor, weights: Tensor, scale: float, p: float, seed: int
) -> Tensor:
    """Turns `dy = dL/d(dropout(w))` into `dL/d(scores)`, in place, and returns it.

    Args:
        dy, weights: contiguous, of one shape; weights are what `softmax_dropout_` left in place.
        scale, p, seed: as there.

    Raises:
        ValueError: not contiguous float32 on the CPU, or of different shapes.
    """
    _check("dy", dy)
    _check("weights", weights)
    if dy.shape != weights.shape:
        raise ValueError(f"dy: expected shape {list(weights.shape)}, got {list(dy.shape)}")
    keys = dy.shape[-1]
    rows = dy.numel() // max(keys, 1)
    words = dropout_words(p, seed)
    args = (dy.data_ptr(), weights.data_ptr(), rows, keys, scale, words)
    _C.cpu.softmax_dropout_backward(*args, torch.get_num_threads())
    return dy


def _check(name: str, t: Tensor) -> None:
    if t.dtype != torch.float32 or t.device.type != "cpu" or not t.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous float32 on the CPU, got {t.dtype} on {t.device} "
            f"with strides {t.stride()}"
        )
