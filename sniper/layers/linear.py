# SPDX-License-Identifier: Apache-2.0
"""A linear layer that skips the pruned blocks of its weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper import ops
from sniper.layers.masked import BlockMaskedLayer, check_sizes
from sniper.ops.layout import weight_mask


class BlockSparseLinear(BlockMaskedLayer, nn.Linear):
    """`y = x * W^T + b` over the active blocks of W; without a block mask exactly `nn.Linear`.

    The weight stays the ordinary dense parameter, zero where pruned, so that state dicts,
    optimizers and gradients keep their shapes whatever the mask.

    Args:
        in_features, out_features, bias, device, dtype: as `nn.Linear`.
        block_size: edge of a block; both features must divide by it.

    Raises:
        ValueError: the block size does not divide both dimensions.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block_size: int = 64,
        **kwargs: Any,
    ):
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, **kwargs)
        self._init_blocks(block_size)

    def forward(
        self,
        input: Tensor,
        relu_dropout: float | None = None,
        handed_over: bool = False,
        after_relu: float | None = None,
    ) -> Tensor:
        """`[..., K]` -> `[..., N]`; with `relu_dropout=p`, `dropout(relu(y), p)` in one kernel.

        `handed_over` and `after_relu`: of `ops.block_matmul`, for two layers with a mask.
        """
        if self._layout is None:
            y = super().forward(input)
            return y if relu_dropout is None else ops.relu_dropout(y, relu_dropout)
        if isinstance(input, Tensor) and (input.is_nested or input.layout != torch.strided):
            # No rows at one stride, which kernels walk: torch's own product of what the mask keeps.
            weight = self.weight
            if not self._layout.outgrown:
                weight = torch.where(weight_mask(self._layout, 2), weight, 0)
            y = F.linear(input, weight, self.bias)
            return y if relu_dropout is None else ops.relu_dropout(y, relu_dropout)
        if not isinstance(input, Tensor) or input.shape[-1:] != (self.in_features,):
            got = list(input.shape) if isinstance(input, Tensor) else f"{input!r:.80}"
            raise ValueError(f"input: expected a tensor [..., {self.in_features}], got {got}")
        # One long sequence: a linear layer treats every row alike, and one launch serves them all.
        # Of sequences that lie end to end kernels see that themselves, without two views.
        there = input.dim() == 3 and input.is_contiguous()
        rows = input if there else input.reshape(1, -1, self.in_features)
        y = ops.block_matmul(
            rows,
            self.weight,
            self.bias,
            self._layout,
            relu_dropout=relu_dropout,
            handed_over=handed_over,
            after_relu=after_relu,
        )
        return y if there else y.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._blocks_repr()}"
