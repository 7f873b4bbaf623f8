# SPDX-License-Identifier: Apache-2.0
"""A convolution with one filter a channel on the CPU, and its gradients.

Sums have an order that the shape alone decides: the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sniper import _C
from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, empty


def takes(*tensors: Tensor) -> bool:
    """Whether these kernels take such tensors: float32 on the CPU, not empty."""
    known = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return known and all(t.numel() > 0 for t in tensors)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    """As `sniper.ops.depthwise.depthwise`.

    Raises:
        ValueError: not float32 on the CPU, shapes that do not fit, or shorter than the filter.
    """
    shape = _shape(x, weight, left, right)
    x, w = x.contiguous(), weight.contiguous()
    b = None
    if bias is not None:
        check_tensor("bias", bias, 1, torch.float32)
        check_shape("bias", bias, weight.shape[:1])
        b = bias.contiguous()
    y = empty(torch.float32, shape[0], shape[1], shape[3])
    address = 0 if b is None else b.data_ptr()
    _C.cpu.depthwise(
        shape, x.data_ptr(), w.data_ptr(), address, y.data_ptr(), torch.get_num_threads()
    )
    return y


def depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, left: int, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from `dy`, the gradient of y; those that `needs` names, else
    an empty tensor.

    Raises:
        ValueError: as `depthwise`.
    """
    check_tensor("dy", dy, 3, torch.float32)
    right = dy.shape[2] + weight.shape[2] - 1 - x.shape[2] - left
    shape = _shape(x, weight, left, right)
    check_shape("dy", dy, (shape[0], shape[1], shape[3]))
    dy, x, w = dy.contiguous(), x.contiguous(), weight.contiguous()
    shapes = (x.shape, weight.shape, weight.shape[:1])
    dx, dw, db = (
        empty(torch.float32, *s) if n else x.new_empty(0)
        for s, n in zip(shapes, needs, strict=True)
    )
    places = [t.data_ptr() if n else 0 for t, n in zip((dx, dw, db), needs, strict=True)]
    addresses = (dy.data_ptr(), x.data_ptr(), w.data_ptr(), *places)
    _C.cpu.depthwise_backward(shape, *addresses, torch.get_num_threads())
    return dx, dw, db


def _shape(x: Tensor, weight: Tensor, left: int, right: int) -> tuple[int, ...]:
    """As the extension takes it: batch, channels, lengths, taps, padding."""
    check_tensor("x", x, 3, torch.float32)
    check_tensor("weight", weight, 3, torch.float32)
    batch, channels, length = x.shape
    check_shape("weight", weight, (channels, 1, weight.shape[2]))
    after = length + left + right - weight.shape[2] + 1
    if after < 1:
        raise ValueError(
            f"x: expected at least {weight.shape[2]} frames with padding, which the filter takes, "
            f"got {length + left + right}"
        )
    return batch, channels, length, after, weight.shape[2], left
