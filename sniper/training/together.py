# SPDX-License-Identifier: Apache-2.0
"""What a recorded step does for all parameters in one launch, where autograd takes one for each:
weights cast for autocast's products, gradients added to those that lie there.

At FastSpeech2's size these are a quarter of a step's kernels, none of which has anything to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sniper.layers import BlockSparseConv1d, BlockSparseLinear
from sniper.ops import gradients
from sniper.ops.layout import mark_copy

_SPARSE = (BlockSparseLinear, BlockSparseConv1d)


@contextlib.contextmanager
def weights_cast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, Linear and Conv1d layers hold copies of their float32 parameters in `dtype`, what
    autocast would make of each. Gradients reach the parameters as from there.

    Args:
        model: what runs forward inside; backward may run later.
        dtype: autocast's.
    """
    places = [(m, n, p) for m in model.modules() for n, p in _operands(m)]
    # Once, however many layers share it.
    own = {id(p): p for _, _, p in places}
    copies = dict(zip(own, _Cast.apply(dtype, *own.values()), strict=True))
    try:
        for module, name, parameter in places:
            copy = copies[id(parameter)]
            layout = module.layout if isinstance(module, _SPARSE) else None
            if layout is not None:
                gradients.stands_for(copy, parameter)
                if layout.marked(parameter):
                    mark_copy(layout, copy)
            module._parameters[name] = copy
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


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
    """Tensors in another dtype and, backward, their gradients in float32: one launch each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A weight gradient may have been added to its place already, and is None here.
        ctx.set_materialize_grads(False)
        return _copied(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_copied([g for g in grads if g is not None], torch.float32))
        return None, *(None if g is None else next(wide) for g in grads)


def _copied(tensors: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """In their memory order."""
    given = list(tensors)
    copies = [torch.empty_like(t, dtype=dtype) for t in given]
    if copies:
        torch._foreach_copy_(copies, given)  # pyright: ignore[reportPrivateImportUsage]
    return tuple(copies)


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
        if p.grad is not None and id(p) not in masked and not _watched(p)
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


def _watched(p: Tensor) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))
