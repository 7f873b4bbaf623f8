# SPDX-License-Identifier: Apache-2.0
"""What a recorded step does for all parameters in one launch, where autograd takes one for each:
weights cast for autocast's products, and stacked where several layers read one input, gradients
added to those that lie there.

At FastSpeech2's size these are a quarter of a step's kernels, none of which has anything to do.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sniper.layers import BlockSparseConv1d, BlockSparseLinear
from sniper.layers.stacked import Stack, Stackable, stack_of, stacked_layout
from sniper.ops import aside, gradients
from sniper.ops.layout import mark_copy

_SPARSE = (BlockSparseLinear, BlockSparseConv1d)


@contextlib.contextmanager
def weights_cast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, Linear and Conv1d layers hold copies of their float32 parameters in `dtype`, what
    autocast would make of each, and layers of one input are stacked. Gradients reach the parameters
    as from there.

    Args:
        model: what runs forward inside; backward may run later.
        dtype: autocast's.
    """
    stackable = _stackable(model)
    stacked = {id(layer) for _, layers in stackable for layer in layers}
    places = [(m, n, p) for m in model.modules() if id(m) not in stacked for n, p in _operands(m)]
    # Once, however many layers share it.
    own = {id(p): p for _, _, p in places}
    kinds = [(dtype, 1)] * len(own)
    tensors = list(own.values())
    for _, layers in stackable:
        # The bias of a block-sparse product is added in float32.
        masked = stacked_layout(layers) is not None
        tensors += [layer.weight for layer in layers]
        kinds.append((dtype, len(layers)))
        if layers[0].bias is not None:
            tensors += [layer.bias for layer in layers]
            kinds.append((torch.float32 if masked else dtype, len(layers)))
    results = _Cast.apply(tuple(kinds), *tensors)
    made = iter(results)
    copies = {key: next(made) for key in own}
    try:
        for module, name, parameter in places:
            copy = copies[id(parameter)]
            layout = module.layout if isinstance(module, _SPARSE) else None
            if layout is not None:
                gradients.stands_for(copy, parameter)
                if layout.marked(parameter):
                    mark_copy(layout, copy)
            module._parameters[name] = copy
        for module, layers in stackable:
            module.stack = _stack(layers, next(made), made)
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
        for module, _ in stackable:
            module.stack = None


def _stack(layers: list[nn.Linear], weight: Tensor, rest: Iterator[Tensor]) -> Stack:
    """Of layers whose weights are stacked in `weight`; the next of `rest` are their biases."""
    bias = None if layers[0].bias is None else next(rest)
    if bias is not None and _wide(bias):
        aside.unread(bias)  # it is cut, and not read
    return stack_of(layers, weight, bias)


def _stackable(model: nn.Module) -> list[tuple[Stackable, list[nn.Linear]]]:
    """Modules and their layers that are stacked: of parameters that no one else has."""
    counts = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    found = []
    for module in model.modules():
        layers = module.layers_to_stack() if isinstance(module, Stackable) else []
        own = [p for layer in layers for p in layer.parameters()]
        if own and all(p.requires_grad and _wide(p) and counts[id(p)] == 1 for p in own):
            found.append((module, layers))
    return found


def gradients_laid(model: nn.Module) -> None:
    """Gradients for all parameters, zero where there are none: a graph adds to gradients where they
    lie. Those of layers that are stacked lie together, for one kernel to add to.
    """
    without = [p for p in model.parameters() if p.grad is None and p.requires_grad]
    if not without:
        return
    for _, layers in _stackable(model):
        gradients.lie_together([layer.weight for layer in layers])
    for p in without:
        if p.grad is None:
            p.grad = torch.zeros_like(p)


def _operands(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that autocast would cast for this layer, by name."""
    if not isinstance(module, nn.Linear | nn.Conv1d):
        return []
    # The bias of a block-sparse product is added in float32.
    masked = isinstance(module, _SPARSE) and module.layout is not None
    found = [
        (n, module._parameters.get(n)) for n in (("weight",) if masked else ("weight", "bias"))
    ]
    return [(n, p) for n, p in found if p is not None and p.requires_grad and _wide(p)]


def _wide(p: Tensor) -> bool:
    return p.dtype == torch.float32


class _Cast(torch.autograd.Function):
    """Tensors in other dtypes, some of them stacked, and backward their gradients in float32: a
    launch a dtype.

    Takes dtype and number of tensors of each result.
    """

    @staticmethod
    def forward(ctx: Any, kinds: tuple[tuple[torch.dtype, int], ...], *tensors: Tensor):
        # A weight gradient may have been added to its place already, and is None here.
        ctx.set_materialize_grads(False)
        given, results = iter(tensors), []
        ctx.sizes = []
        copies: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for dtype, count in kinds:
            sources = [next(given) for _ in range(count)]
            sizes = [t.shape[0] for t in sources] if count > 1 else []
            if count == 1:
                made = torch.empty_like(sources[0], dtype=dtype)
            else:
                made = sources[0].new_empty(sum(sizes), *sources[0].shape[1:], dtype=dtype)
            into, of = copies.setdefault(dtype, ([], []))
            into += made.split(sizes) if count > 1 else [made]
            of += sources
            results.append(made)
            ctx.sizes.append(sizes)
        for into, of in copies.values():
            torch._foreach_copy_(into, of)  # pyright: ignore[reportPrivateImportUsage]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_widened([g for g in grads if g is not None]))
        parts: list[Tensor | None] = [None]
        for grad, sizes in zip(grads, ctx.sizes, strict=True):
            if grad is None:
                parts += [None] * (len(sizes) or 1)
            else:
                parts += next(wide).split(sizes) if sizes else [next(wide)]
        return tuple(parts)


def _widened(tensors: list[Tensor]) -> list[Tensor]:
    """In float32, in their memory order."""
    wide = [t if _wide(t) else torch.empty_like(t, dtype=torch.float32) for t in tensors]
    narrow = [(into, t) for into, t in zip(wide, tensors, strict=True) if into is not t]
    if narrow:
        into, of = (list(each) for each in zip(*narrow, strict=True))
        torch._foreach_copy_(into, of)  # pyright: ignore[reportPrivateImportUsage]
    return wide


@contextlib.contextmanager
def gradients_added(model: nn.Module) -> Iterator[None]:
    """Inside runs backward; its gradients are added to those that lie in `.grad` at the end, all at
    once. A gradient that a block-sparse layer adds to its place itself, or that somebody watches,
    goes there as ever.
    """
    masked = {
        id(m.weight) for m in model.modules() if isinstance(m, _SPARSE) and m.layout is not None
    }
    kept = {
        p: p.grad
        for p in model.parameters()
        if p.grad is not None and id(p) not in masked and not gradients.is_watched(p)
    }
    for p in kept:
        p.grad = None  # so that autograd leaves what it has, and adds nothing
    try:
        yield
        pairs = [(old, p.grad) for p, old in kept.items() if p.grad is not None]
        if pairs:
            old, new = (list(each) for each in zip(*pairs, strict=True))
            torch._foreach_add_(old, new)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        for p, grad in kept.items():
            p.grad = grad


def watched(model: nn.Module) -> bool:
    """Whether somebody sees gradients of a model's parameters arrive."""
    return any(gradients.is_watched(p) for p in model.parameters())
