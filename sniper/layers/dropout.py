# SPDX-License-Identifier: Apache-2.0
"""Dropout whose random numbers cost next to nothing on a CPU."""

from __future__ import annotations

from numbers import Real

import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.linear import BlockSparseLinear
from sniper.ops import dropout


class Dropout(nn.Dropout):
    """`nn.Dropout` with a counter-based generator on the CPU: no stored mask, all threads.

    Reproducible from torch's seed, with other draws than `nn.Dropout` makes. Like torch's they go
    by memory order, which stays what it is.

    Args:
        p: share that is zeroed, in [0, 1]; the rest is scaled by `1 / (1 - p)`.
        inplace: as for `nn.Dropout`, which then does it.

    Raises:
        ValueError: `p` is no number in [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        if isinstance(p, bool) or not isinstance(p, Real) or not 0 <= p <= 1:
            raise ValueError(f"p: expected a number in [0, 1], got {p!r}")
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        if self.inplace:
            return super().forward(input)
        # `[B, C, T]` behind a block-sparse convolution lies channels-last: nothing is copied.
        other = self.training and input.dim() == 3 and not input.is_contiguous()
        if other and input.transpose(1, 2).is_contiguous():
            return dropout(input.transpose(1, 2), self.p, self.training).transpose(1, 2)
        return dropout(input, self.p, self.training)


def relu_dropout(layer: nn.Module, x: Tensor, dropout: nn.Dropout) -> Tensor:
    """`dropout(relu(layer(x)))`, in one kernel where `layer` is block-sparse.

    Args:
        layer: a Linear or Conv1d, plain or block-sparse.
        x: what it takes.
        dropout: for its rate and mode.

    Returns:
        What the layer gives, of the same shape.

    Raises:
        ValueError: no module, no tensor, no `nn.Dropout`.
    """
    check_kinds(layer=(layer, nn.Module), x=(x, Tensor), dropout=(dropout, nn.Dropout))
    if isinstance(layer, (BlockSparseLinear, BlockSparseConv1d)):
        return layer(x, relu_dropout=dropout.p if dropout.training else 0.0)
    return dropout(F.relu(layer(x)))


def check_kinds(**arguments: tuple[object, type]) -> None:
    """Refuses, by its name, a value that is no instance of the class beside it."""
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
