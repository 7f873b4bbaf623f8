# SPDX-License-Identifier: Apache-2.0
"""Dropout whose random numbers cost next to nothing on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.linear import BlockSparseLinear
from sniper.ops import dropout
from sniper.ops import relu_dropout as relu_then_dropout
from sniper.ops.backends import TRITON
from sniper.ops.block_matmul import hands_over


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
        if not self.training:
            return dropout(input, self.p, False)
        return _in_memory_order(partial(dropout, p=self.p), input)


def relu_dropout(
    layer: nn.Module, x: Tensor, dropout: nn.Dropout, handed_over: bool = False
) -> Tensor:
    """`dropout(relu(layer(x)))`, in the layer's own kernel where it is block-sparse, else in one
    behind it on a GPU.

    Args:
        layer: a Linear or Conv1d, plain or block-sparse.
        x: what it takes.
        dropout: for its rate and mode.
        handed_over: whether `handed_over_rate` knows one for the layer and the next.

    Returns:
        What the layer gives, of the same shape.

    Raises:
        ValueError: no module, no tensor, no `nn.Dropout`.
    """
    check_kinds(layer=(layer, nn.Module), x=(x, Tensor), dropout=(dropout, nn.Dropout))
    if isinstance(layer, (BlockSparseLinear, BlockSparseConv1d)):
        return layer(x, relu_dropout=_rate(dropout), handed_over=handed_over)
    y = layer(x)
    if _fuses(y, dropout):
        return _in_memory_order(partial(relu_then_dropout, p=dropout.p), y)
    return dropout(F.relu(y))


def handed_over_rate(
    first: nn.Module, second: nn.Module, x: Tensor, dropout: nn.Dropout
) -> float | None:
    """The share p that dropout zeroes between two layers, if the gradient of ReLU and dropout can
    come from the kernel that computes the second one's input gradient, in no visit of its own.

    If so, and nothing else reads the hidden values, call them as
    `second(relu_dropout(first, x, dropout, handed_over=True), after_relu=p)`.

    Args:
        first, second: layers.
        x: what the first one takes.
        dropout: for its rate and mode.

    Returns:
        None where a layer has no mask, is somebody's subclass or has hooks, which would see the
        hidden values or their gradient; and on a CPU under autocast.
    """
    for layer in (first, second):
        if changed(layer, BlockSparseLinear, BlockSparseConv1d) or layer.layout is None:
            return None
    # Other paddings are laid down in a copy of the hidden values.
    if isinstance(second, BlockSparseConv1d) and second.padding_mode != "zeros":
        return None
    p = _rate(dropout)
    return p if hands_over(x, p) else None


def _rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def changed(module: nn.Module, *classes: type) -> bool:
    """Whether it is a subclass, or somebody watches its calls, which a fused kernel does not make.

    A parametrized module is a subclass.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    hooks += (module._backward_hooks, module._backward_pre_hooks)
    return type(module) not in classes or any(hooks)


def drop_rate(dropout: nn.Module) -> float | None:
    """What a kernel is to drop, or None where the module has to be called."""
    if not isinstance(dropout, nn.Dropout) or changed(dropout, nn.Dropout, Dropout):
        return None
    p = _rate(dropout)
    # At p = 1 the scale is infinite; torch's own dropout defines that result.
    return p if p < 1 else None


def _fuses(y: Tensor, dropout: nn.Dropout) -> bool:
    """Whether a GPU's kernel takes ReLU and dropout at once; a compiler fuses them itself."""
    if not dropout.training or not 0 < dropout.p < 1 or changed(dropout, nn.Dropout, Dropout):
        return False
    return not torch.compiler.is_compiling() and TRITON.serves(y)


def _in_memory_order(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`[B, C, T]` behind a convolution may lie channels-last: nothing is copied."""
    other = x.dim() == 3 and not x.is_contiguous() and x.transpose(1, 2).is_contiguous()
    return function(x.transpose(1, 2)).transpose(1, 2) if other else function(x)


def check_kinds(**arguments: tuple[object, type]) -> None:
    """Refuses, by its name, a value that is no instance of the class beside it."""
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
