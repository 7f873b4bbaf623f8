# SPDX-License-Identifier: Apache-2.0
"""Dropout whose random numbers cost next to nothing on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.linear import BlockSparseLinear
from sniper.ops import dropout


class Dropout(nn.Dropout):
    """`nn.Dropout` with a counter-based generator on the CPU: no stored mask, all threads.

    Reproducible from torch's seed, with other draws than `nn.Dropout` makes. Like torch's they go
    by memory order, which stays what it is.
    """

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
    """
    if isinstance(layer, (BlockSparseLinear, BlockSparseConv1d)):
        return layer(x, relu_dropout=dropout.p if dropout.training else 0.0)
    return dropout(F.relu(layer(x)))
