# SPDX-License-Identifier: Apache-2.0
"""Dropout and ReLU by our kernels, on whichever device a tensor lies."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backends.cpu import elementwise as cpu
from sniper.ops.backends.cpu.launch import DTYPES as CPU_DTYPES
from sniper.ops.backends.triton import elementwise as triton
from sniper.ops.backends.triton.products import TRITON
from sniper.ops.geometry import Epilogue


def serves(x: Tensor) -> bool:
    """Whether these kernels take a tensor of this dtype on this device."""
    return serves_on_cpu(x) or TRITON.serves(x)


def serves_on_cpu(x: Tensor) -> bool:
    """Whether a CPU kernel takes this tensor."""
    return x.device.type == "cpu" and x.dtype in CPU_DTYPES


def relu_dropout(x: Tensor, p: float, seed: int | Tensor) -> Tensor:
    """`dropout(relu(x), p)`: zeroes what `seed` says, the same on every device."""
    if x.is_cuda:
        return triton.dropout(x, p, seed, relu=True)
    return cpu.dropout(F.relu(x), p, int(seed))


def relu_dropout_backward(dy: Tensor, y: Tensor, p: float) -> Tensor:
    """dL/dz of `y = dropout(relu(z))`."""
    return (triton if dy.is_cuda else cpu).relu_dropout_backward(dy, y, p)


def apply_epilogue(y: Tensor, epilogue: Epilogue) -> Tensor:
    """What a backend that fuses nothing does to its result; may overwrite `y`."""
    if epilogue.relu and epilogue.p and y.is_cuda:
        return triton.dropout(y, epilogue.p, epilogue.seed, relu=True)
    if epilogue.relu:
        y = y.relu_()
    return cpu.dropout(y, epilogue.p, int(epilogue.seed)) if epilogue.p else y
