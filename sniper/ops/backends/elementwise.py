# SPDX-License-Identifier: Apache-2.0
"""Dropout and ReLU by our kernels, on whichever device a tensor lies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backend import sum_dtype
from sniper.ops.backends.cpu import elementwise as cpu
from sniper.ops.backends.cpu.launch import DTYPES as CPU_DTYPES
from sniper.ops.backends.triton import elementwise as triton
from sniper.ops.backends.triton.launch import DTYPES as GPU_DTYPES
from sniper.ops.backends.triton.products import TRITON
from sniper.ops.geometry import Epilogue


def takes(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `relu_dropout` and its gradient run on such a tensor without a stored mask; on a GPU,
    on one of `dtype` if given.
    """
    return takes_on_cpu(x) or (x.is_cuda and (dtype or x.dtype) in GPU_DTYPES)


def takes_on_cpu(x: Tensor) -> bool:
    """Whether a CPU kernel takes this tensor."""
    return x.device.type == "cpu" and x.dtype in CPU_DTYPES


def dropout(x: Tensor, p: float, seed: int | Tensor, relu: bool = False) -> Tensor:
    """`dropout(x, p)`, of `relu(x)` if asked. Our kernels zero what `seed` says, the same on every
    device; torch, which runs where there are none that can be trusted, draws from its own
    generator.
    """
    # serves asks for the verdict of the check: a kernel that failed it never runs.
    if x.is_cuda and TRITON.serves(x):
        return triton.dropout(x, p, seed, relu)
    x = F.relu(x) if relu else x
    return cpu.dropout(x, p, int(seed)) if takes_on_cpu(x) else F.dropout(x, p)


def relu_dropout_backward(dy: Tensor, y: Tensor, p: float) -> Tensor:
    """dL/dz of `y = dropout(relu(z))`."""
    if dy.is_cuda and TRITON.serves(dy):
        return triton.relu_dropout_backward(dy, y, p)
    if takes_on_cpu(dy):
        return cpu.relu_dropout_backward(dy, y, p)
    # y is 0 both where ReLU cut and where dropout did, so the sign of y is the whole mask.
    return torch.where(y > 0, dy * (1 / (1 - p)), 0)


def column_sums(dy: Tensor) -> Tensor:
    """dL/db `[N]` of dy `[..., N]`: sums over all rows, in `sum_dtype(dy)`."""
    if dy.is_cuda and dy.numel() and TRITON.serves(dy):
        return triton.column_sums(dy)
    return dy.sum(tuple(range(dy.dim() - 1)), dtype=sum_dtype(dy))


def apply_epilogue(y: Tensor, epilogue: Epilogue) -> Tensor:
    """What a backend that fuses nothing does to its result; may overwrite `y`."""
    # In one kernel; on a CPU the ReLU in place costs less than a second code path.
    if epilogue.p and y.is_cuda:
        return dropout(y, epilogue.p, epilogue.seed, epilogue.relu)
    y = y.relu_() if epilogue.relu else y
    return dropout(y, epilogue.p, epilogue.seed) if epilogue.p else y
