# SPDX-License-Identifier: Apache-2.0
"""A 1-D convolution that skips the pruned blocks of its weight."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sniper import ops
from sniper.layers.masked import BlockMaskedLayer, check_sizes


class BlockSparseConv1d(BlockMaskedLayer, nn.Conv1d):
    """Cross-correlation over the active blocks (output block, tap, input block); without a mask
    exactly `nn.Conv1d`.

    Takes and gives `[B, C, T]`. Memory is channels-last inside: a caller that holds `[B, T, C]`
    passes `x.transpose(1, 2)` and transposes the result, and nothing is copied.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation, bias, padding_mode, device,
            dtype: as `nn.Conv1d`.
        stride, groups: 1, the only value that blocks support.
        block_size: edge of a block; both channel counts must divide by it.

    Raises:
        ValueError: stride or groups other than 1, or a block size that does not divide both channel
            counts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        *args: Any,
        block_size: int = 64,
        **kwargs: Any,
    ):
        # torch takes (3,) for 3.
        taps = kernel_size[0] if isinstance(kernel_size, tuple) and kernel_size else kernel_size
        check_sizes(in_channels=in_channels, out_channels=out_channels, kernel_size=taps)
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        self._init_blocks(block_size)

    def _init_blocks(self, block_size: int) -> None:
        for name, value in (("stride", self.stride[0]), ("groups", self.groups)):
            if value != 1:
                raise ValueError(f"{name}: expected 1 for a block-sparse convolution, got {value}")
        super()._init_blocks(block_size)

    def forward(
        self,
        input: Tensor,
        relu_dropout: float | None = None,
        handed_over: bool = False,
        after_relu: float | None = None,
    ) -> Tensor:
        """`[B, C, T]` -> `[B, N, T_out]`, or both without B.

        With `relu_dropout=p`, `dropout(relu(y), p)` in one kernel. `handed_over` and `after_relu`:
        of `ops.block_matmul`, for two layers with a mask.
        """
        if self._layout is None:
            y = super().forward(input)
            return y if relu_dropout is None else ops.relu_dropout(y, relu_dropout)
        if not isinstance(input, Tensor):
            raise ValueError(f"input: expected [B, {self.in_channels}, T], got {input!r:.80}")
        # nn.Conv1d takes [C, T] too.
        x = input.unsqueeze(0) if input.dim() == 2 else input
        if x.dim() != 3:
            raise ValueError(f"input: expected [B, {self.in_channels}, T], got {list(input.shape)}")
        left, right = self._padding()
        # Kernels pad with zeros by not reading; other paddings have values, so they are laid down
        # first.
        if self.padding_mode != "zeros" and (left or right):
            x = F.pad(x, (left, right), mode=self.padding_mode)
            left = right = 0
        geometry = ops.Geometry(self.kernel_size[0], self.dilation[0], left, right)
        y = ops.block_matmul(
            x.transpose(1, 2),
            self.weight,
            self.bias,
            self._layout,
            geometry,
            relu_dropout=relu_dropout,
            handed_over=handed_over,
            after_relu=after_relu,
        )
        y = y.transpose(1, 2)
        return y[0] if input.dim() == 2 else y

    def _padding(self) -> tuple[int, int]:
        """Rows before and after; 'same' puts the odd one after, as torch does."""
        if self.padding == "same":
            total = self.dilation[0] * (self.kernel_size[0] - 1)
            return total // 2, total - total // 2
        if isinstance(self.padding, str):  # "valid"
            return 0, 0
        return self.padding[0], self.padding[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._blocks_repr()}"
