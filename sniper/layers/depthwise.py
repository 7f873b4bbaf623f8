# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution that takes a CPU what it computes."""

from __future__ import annotations

from torch import Tensor, nn

from sniper.ops.depthwise import depthwise, fuses_depthwise


class DepthwiseConv1d(nn.Conv1d):
    """`nn.Conv1d` with one filter a channel, by our kernel for float32 on a CPU, else torch's.

    What `sniper.sparsify(fast_depthwise=True)` makes of those of a model.
    """

    @staticmethod
    def takes(layer: nn.Conv1d) -> bool:
        """Whether such a layer is one: a filter a channel, no strides and nothing but zeros around.

        Args:
            layer: of torch's class.
        """
        each = layer.groups == layer.in_channels == layer.out_channels
        plain = layer.stride == layer.dilation == (1,) and layer.padding_mode == "zeros"
        return each and plain and "weight" in layer._parameters

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, T]` -> `[B, C, T_out]`, or both without B."""
        left = right = 0
        if self.padding == "same":
            left, right = (self.kernel_size[0] - 1) // 2, self.kernel_size[0] // 2
        elif not isinstance(self.padding, str):
            left = right = self.padding[0]
        long = input.dim() == 3 and input.shape[2] + left + right >= self.kernel_size[0]
        if not long or not fuses_depthwise(input, self.weight):
            return super().forward(input)  # with torch's own errors
        return depthwise(input, self.weight, self.bias, left, right)
