# SPDX-License-Identifier: Apache-2.0
"""BatchNorm, tanh and dropout as a postnet puts them together, in few visits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sniper.layers.dropout import changed, check_kinds, drop_rate
from sniper.ops import batch_norm as ops


def batch_norm(x: Tensor, norm: nn.Module, dropout: nn.Module, tanh: bool) -> Tensor:
    """`dropout(tanh(norm(x)))`, the tanh if asked.

    What our kernels do not know is called as it is: another class of norm or dropout, modules with
    hooks, a norm in evaluation or without statistics to move, other dtypes and devices.

    Args:
        x: `[B, C, T]`; nothing is copied where memory is channels-last.
        norm: an `nn.BatchNorm1d` over C, or any module.
        dropout: an `nn.Dropout` for its rate and mode, or any module.
        tanh: whether there is one.

    Returns:
        A tensor of x's shape.

    Raises:
        ValueError: no tensor, no modules.
    """
    check_kinds(x=(x, Tensor), norm=(norm, nn.Module), dropout=(dropout, nn.Module))
    p, known = drop_rate(dropout), _known(norm, x)
    if p is not None and known is not None and ops.fuses_batch_norm(x.mT, known.weight):
        running = known.running_mean, known.running_var, known.num_batches_tracked
        rates = known.momentum, known.eps
        return ops.batch_norm(x.mT, known.weight, known.bias, running, *rates, tanh, p).mT  # pyright: ignore[reportArgumentType]
    # As [B, C, T] and not as rows: of those torch's CPU kernel adds up statistics by thread, and
    # bits would depend on how many there are.
    y = norm(x)
    return dropout(torch.tanh(y) if tanh else y)


def _known(norm: nn.Module, x: Tensor) -> nn.BatchNorm1d | None:
    """Itself where it is a BatchNorm as the kernels compute it: over a batch, with all parts."""
    if not isinstance(norm, nn.BatchNorm1d) or changed(norm, nn.BatchNorm1d) or x.dim() != 3:
        return None
    # torch refuses statistics of one value a channel, with an error of its own.
    if not norm.training or x.shape[0] * x.shape[2] < 2:
        return None
    kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    if not norm.affine or norm.momentum is None or any(t is None for t in kept):
        return None
    return norm if all(t.dtype == torch.float32 for t in kept[:2] if t is not None) else None
