# SPDX-License-Identifier: Apache-2.0
"""Dropout and the gradient of ReLU and dropout on the CPU, each in one visit on torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.backend import check_shape
from sniper.ops.backends.cpu.launch import check_tensor, dropout_arguments, empty, kernels, operand
from sniper.ops.geometry import dropout_words


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """`x * keep / (1 - p)`; `keep` depends on `seed` and the shape of x alone.

    The gradient is the same function of dy. Zeroes what `fwd(..., dropout_p=p, seed=seed)` does
    in a y of this shape.

    Raises:
        ValueError: not a float tensor on the CPU, or `p` outside [0, 1).
    """
    check_tensor("x", x, None)
    words = dropout_arguments(p, seed)
    dtype, x = x.dtype, operand(x.contiguous())
    y = empty(x.dtype, *x.shape)
    # Rows and columns, not elements alone: the mask counts as that of the products' epilogue does.
    columns = x.shape[-1] if x.dim() else 1
    # An empty tensor may have 0 columns, by which the rows would be divided.
    if x.numel():
        args = (x.data_ptr(), y.data_ptr(), x.numel() // columns, columns, words)
        kernels(x).dropout(*args, torch.get_num_threads())
    return y.to(dtype)


def relu_dropout_backward(dy: Tensor, y: Tensor, dropout_p: float = 0.0) -> Tensor:
    """dL/dz of `y = dropout(relu(z))`: `dy / (1 - dropout_p)` where y > 0, else 0; needs no mask.

    Raises:
        ValueError: dy and y differ in shape, or `dropout_p` outside [0, 1).
    """
    check_tensor("dy", dy, None)
    check_tensor("y", y, None, dy.dtype)
    check_shape("dy", dy, tuple(y.shape))
    dtype, dy, y = dy.dtype, operand(dy.contiguous()), operand(y.contiguous())
    dz = empty(dy.dtype, *dy.shape)
    # Any seed does: y itself says what was kept.
    scale = dropout_words(dropout_p)[1]
    args = (dy.data_ptr(), y.data_ptr(), dz.data_ptr(), dy.numel(), scale)
    kernels(dy).relu_backward(*args, torch.get_num_threads())
    return dz.to(dtype)
