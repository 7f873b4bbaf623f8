# SPDX-License-Identifier: Apache-2.0
"""Linear layers of one input as one product: their weights one under the other, their outputs side
by side. A small product takes longer to begin and to end than to compute, and each product that is
alone reads the input again and leaves a gradient of it to be added.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper import ops
from sniper.layers.linear import BlockSparseLinear
from sniper.ops import dispatch, gradients
from sniper.ops.autocast import autocast_dtype
from sniper.ops.geometry import columns_of
from sniper.ops.layout import BlockLayout, mark_copy
from sniper.ops.transforms import transformed

# Of the layouts of a stack's layers: their versions, and the layout of all of them.
_layouts: weakref.WeakKeyDictionary[BlockLayout, tuple[tuple, BlockLayout]] = (
    weakref.WeakKeyDictionary()
)


class Stack(NamedTuple):
    """The operands of several linear layers.

    Args:
        weight: `[N1 + N2 + ..., K]`.
        bias: `[N1 + N2 + ...]` or None.
        layout: of all of them; None: dense.
        sizes: N1, N2, ...
    """

    weight: Tensor
    bias: Tensor | None
    layout: BlockLayout | None
    sizes: tuple[int, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, K]` -> `[B, T, N1]`, `[B, T, N2]`, ..., views of one tensor."""
        if self.layout is None:
            y = F.linear(x, self.weight, self.bias)
        else:
            rows = x.reshape(1, -1, x.shape[-1])
            y = ops.block_matmul(rows, self.weight, self.bias, self.layout)
            y = y.view(*x.shape[:-1], len(self.weight))
        return _Columns.apply(y, self.sizes)


class _Columns(torch.autograd.Function):
    """`[..., N1 + N2 + ...]` -> `[..., N1]`, `[..., N2]`, ...: views. Backward takes gradients that
    lie like that as they are.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return y.split(sizes, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        together = columns_of(grads)
        return torch.cat(grads, -1) if together is None else together, None


class Stackable(nn.Module):
    """A module with linear layers that read one input.

    Attributes:
        stacked: their names.
        stack: one for all of them, while somebody holds their weights as one matrix.
    """

    stacked: tuple[str, ...] = ()
    stack: Stack | None = None

    def stack_for(self, x: Tensor) -> Stack | None:
        """What computes all of them for x, a part of a training step; None: they run one by one."""
        known = x.is_cpu and x.dtype == torch.float32 and autocast_dtype(x) is None
        if self.stack is not None or not known or not torch.is_grad_enabled():
            return self.stack
        if torch.compiler.is_compiling() or transformed():
            return None
        layers = self.layers_to_stack()
        weights: list[Tensor] = [m.weight for m in layers]
        biases: list[Tensor] = [m.bias for m in layers]
        own = len({id(w) for w in weights}) == len(weights) and all(map(_trained, weights))
        if not layers or not own:
            return None
        bias = None if layers[0].bias is None else torch.cat(biases)
        return stack_of(layers, torch.cat(weights), bias)

    def layers_to_stack(self) -> list[nn.Linear]:
        """Them, or nothing where they have to run one by one: of other classes, with hooks, masked
        in part, without a bias in part, not trained in part.
        """
        layers = [getattr(self, name) for name in self.stacked]
        first = type(layers[0]) if layers else None
        if first not in (nn.Linear, BlockSparseLinear) or any(type(m) is not first for m in layers):
            return []
        kinds = {_kind(m) for m in layers}
        return layers if len(kinds) == 1 and not any(_watched(m) for m in layers) else []


def stack_of(layers: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None) -> Stack:
    """The stack of these layers, from copies of their weights and biases one under the other."""
    layout = stacked_layout(layers)
    if layout is not None:
        gradients.stands_for_all(weight, [m.weight for m in layers])
        sparse = [m for m in layers if isinstance(m, BlockSparseLinear)]
        if all(m.layout and m.layout.marked(m.weight) for m in sparse):
            mark_copy(layout, weight)
    return Stack(weight, bias, layout, tuple(m.out_features for m in layers))


def stacked_layout(layers: Sequence[nn.Linear]) -> BlockLayout | None:
    """The layout of the stack of these layers, kept while theirs do not change; None: no masks."""
    layouts = [m.layout for m in layers if isinstance(m, BlockSparseLinear) and m.layout]
    if not layouts:
        return None
    versions = tuple((each.handle, each.version) for each in layouts)
    known = _layouts.get(layouts[0])
    if known is None or known[0] != versions:
        masks = torch.cat([each.block_mask for each in layouts])
        known = _layouts[layouts[0]] = versions, BlockLayout(masks, layouts[0].block_size)
        dispatch.runs_for(known[1], layouts)
    return known[1]


def _kind(layer: nn.Linear) -> tuple:
    masked = isinstance(layer, BlockSparseLinear) and layer.layout is not None
    block = layer.block_size if isinstance(layer, BlockSparseLinear) and masked else None
    parameters = (layer.weight, layer.bias)
    trained = tuple(None if p is None else (p.dtype, p.device, p.requires_grad) for p in parameters)
    return block, layer.in_features, trained


def _trained(weight: Tensor) -> bool:
    return weight.requires_grad and weight.dtype == torch.float32


def _watched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    layout = layer.layout if isinstance(layer, BlockSparseLinear) else None
    outgrown = layout is not None and layout.outgrown
    return any(hooks) or bool(layer._backward_pre_hooks) or outgrown
