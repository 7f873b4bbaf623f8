# SPDX-License-Identifier: Apache-2.0
"""Weight gradients that are added to `.grad` where blocks are active, and touch nothing else.

Autograd adds a gradient to `.grad` as a whole, pruned blocks and all. Whoever keeps the `.grad` of
a weight allocated (`sniper.optim`) has it adopted here; then the weight gradient adds to it itself,
and autograd has nothing left to add. Whatever may want to see the gradient on its way there, a hook
say, gets it as from any other layer.

A loss may read a masked weight besides calling its layer: a decoder that is tied to it, a penalty
on its distance from somewhere. What comes from there fills pruned blocks too, and is masked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from sniper.ops.geometry import as_matrix, is_matrix
from sniper.ops.layout import BlockLayout, weight_mask
from sniper.ops.memory import untouched_zeros_like
from sniper.ops.transforms import has_memory

# By identity, since tensors compare by value; weak, so that a deleted model's weights do not stay.
_adopted = WeakTensorKeyDictionary()
# Weights whose gradients no DDP takes on their way.
_without_ddp = WeakTensorKeyDictionary()
# Weights by their copies in another dtype.
_sources = WeakTensorKeyDictionary()
# What masks the gradients of weights that are masked themselves.
_masks = WeakTensorKeyDictionary()
_looking = True  # for all threads: a GPU's backward pass runs on one of its own


def adopt(weight: Tensor) -> None:
    """From now on gradients may be added straight to `weight.grad`. Copies of the weight are not
    adopted with it.
    """
    _adopted[weight] = True


class _GradientMask:
    """A hook that zeroes the pruned blocks of a gradient, once somebody was seen to fill them.

    Our backward leaves zeros there, so nearly always there is nothing to do, and to look costs a
    visit. It looks at the first gradient that arrives under a mask, and again after 2, 4, 8, ... of
    them, which costs nothing in the end. What our backward adds to `.grad` itself does not arrive.
    """

    # Copies of the weight go without it; torch need not warn of that.
    __torch_unserializable__ = True

    def __init__(self) -> None:
        self.layout: BlockLayout | None = None
        self._seen, self._found = 0, False

    def follow(self, layout: BlockLayout) -> None:
        """Masks by `layout` from now on, whatever is written into that later."""
        self.layout, self._seen = layout, 0

    def __call__(self, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        self._seen += 1
        if not self._found and self._seen & (self._seen - 1):
            return None
        layout = self.layout
        if layout is None or layout.is_full or layout.outgrown:
            return None
        looks = not self._found and has_memory(grad)
        if looks:
            recorded = grad.is_cuda and torch.cuda.is_current_stream_capturing()
            if recorded or not _looking:
                return None  # looking would wait
        mask = weight_mask(layout, grad.dim())
        if looks:
            self._found = bool(grad.detach().masked_select(~mask).any())
            if not self._found:
                return None
        # Not a product: an infinite gradient of a pruned weight must not become NaN.
        return torch.where(mask, grad, 0)


def mask_gradient(weight: Tensor, layout: BlockLayout | None) -> None:
    """From now on what others than its layer add to the gradient of a weight is masked, also of one
    that is frozen and trained later; one that is computed of others is left alone.

    Args:
        weight: `[N, K]` or `[N, C, taps]`.
        layout: its active blocks; what is written into it later counts. None: no mask any more.
    """
    known = _masks.get(weight)
    if known is not None:
        hook, handle = known
        if layout is not None and handle.id in (weight._backward_hooks or ()):
            hook.follow(layout)
            return
        handle.remove()
        del _masks[weight]
    # Nothing can be trained that has no fractions, or was made in inference mode.
    trainable = weight.is_leaf and weight.is_floating_point() and not weight.is_inference()
    if layout is not None and trainable:
        hook = _GradientMask()
        hook.follow(layout)
        _masks[weight] = hook, hook_gradient(weight, hook)


def hook_gradient(p: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """`p.register_hook`, also of a leaf that is frozen: nobody says when it is trained again.

    Args:
        p: a leaf.
        hook: of its gradient.

    Returns:
        What removes it.
    """
    trained = p.requires_grad
    p.requires_grad_(True)
    try:
        return p.register_hook(hook)
    finally:
        p.requires_grad_(trained)


@contextlib.contextmanager
def unlooked() -> Iterator[None]:
    """Inside, nobody looks whether others than a layer give to its weight's pruned blocks: around a
    recorded pass, in which looking would wait, of a model whose weights only layers read.
    """
    global _looking
    before, _looking = _looking, False
    try:
        yield
    finally:
        _looking = before


def is_watched(p: Tensor) -> bool:
    """Whether somebody sees the gradients of a parameter arrive; its own mask does not count."""
    hooks = p._backward_hooks or {}
    others = any(not isinstance(hook, _GradientMask) for hook in hooks.values())
    return others or bool(getattr(p, "_post_accumulate_grad_hooks", None))


def without_ddp(weight: Tensor) -> None:
    """Whoever adds up gradients over processes behind the backward pass says so, for each weight:
    then they are added in place as in one process.
    """
    _without_ddp[weight] = True


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight.to(dtype)`, whose gradient may be added to that of the weight all the same: autograd
    would first write it in `dtype`, then once more in the weight's.
    """
    copy = weight.to(dtype)
    if copy is not weight and not torch.compiler.is_compiling():
        stands_for(copy, weight)
    return copy


def stands_for(copy: Tensor, weight: Tensor) -> None:
    """Whoever has cast a weight, and passes the copy's gradient on to it, says so."""
    if weight in _adopted:
        _sources[copy] = weight


def stands_for_all(stack: Tensor, weights: Sequence[Tensor]) -> None:
    """`stands_for`, of a stack `[N1 + N2 + ..., K]` of several weights."""
    if all(weight in _adopted for weight in weights):
        _sources[stack] = tuple(weights)


def lie_together(weights: Sequence[Tensor], pruned: bool = False) -> None:
    """Sees to it that the gradients of weights `[N, K]` lie one behind the other, as those of their
    stack; they are moved if they do not, and zero where there are none.

    Args:
        weights: float32, of one width.
        pruned: as of `place_of`.
    """
    if _as_one([weight.grad for weight in weights]) is not None:
        return
    sizes = [len(weight) for weight in weights]
    together = _zeros(weights[0].detach().new_empty(sum(sizes), weights[0].shape[1]), pruned)
    for weight, place in zip(weights, together.split(sizes), strict=True):
        if weight.grad is not None:
            place.copy_(weight.grad)
        weight.grad = place


def source_of(weight: Tensor) -> Tensor | tuple[Tensor, ...]:
    """What `cast` was given to make this weight, all weights of a stack, else the weight itself."""
    # Without casts there are none, and a look takes longer than this.
    source = _sources.get(weight) if _sources.data else None
    return weight if source is None else source


def place_of(source: Tensor | tuple[Tensor, ...], pruned: bool) -> Tensor | None:
    """Where a backward pass may add the gradient of a saved weight.

    Args:
        source: as autograd saved it, or what `source_of` says.
        pruned: whether some of it is, so that its gradient stays from step to step.

    Returns:
        `.grad` as `[N, taps * C]`, or None where the gradient has to go through autograd: not
        adopted, `.grad` of another dtype or memory order, hooks on it, gradients of gradients,
        `torch.autograd.grad`, or processes that train together, which may do so by DDP: that hooks
        in where no one can look (`without_ddp`). Of a stack, where all of them may be added and lie
        together.
    """
    if not isinstance(source, tuple):
        return _place_of(source, pruned) if _is_added(source) else None
    if not all(_is_added(weight) for weight in source):
        return None
    lie_together(source, pruned)
    return _as_one([weight.grad for weight in source])


def _as_one(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Contiguous matrices as one, if they lie in one memory one behind the other."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    end = known[0].data_ptr()
    for part in known:
        if part.data_ptr() != end or not part.is_contiguous():
            return None
        end += part.nbytes
    storage = known[0].untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():
        return None  # neighbours by chance
    shape = (sum(len(part) for part in known), known[0].shape[1])
    return known[0].as_strided(shape, known[0].stride())


def _is_added(weight: Tensor) -> bool:
    if not _adopted.data or weight not in _adopted or torch.is_grad_enabled():
        return False
    if weight.dtype != torch.float32 or weight.device.type not in ("cpu", "cuda"):
        return False
    if is_watched(weight):
        return False
    if weight not in _without_ddp and _several():
        return False
    grad = weight.grad
    if grad is not None and grad.layout != torch.strided:
        return False
    if grad is not None and (grad.dtype, grad.stride()) != (weight.dtype, weight.stride()):
        return False
    return is_matrix(weight) and _is_accumulated(weight)


def _place_of(weight: Tensor, pruned: bool) -> Tensor:
    if weight.grad is None:
        # Not left to autograd, which would round the first gradient as the weight was cast: a run
        # that is resumed would not get the bits of one that goes on.
        weight.grad = _zeros(weight, pruned)
    return as_matrix(weight.grad)


def _zeros(like: Tensor, pruned: bool) -> Tensor:
    # A whole weight's gradient is dropped at each step, and new pages cost more than zeros.
    return (untouched_zeros_like if pruned else torch.zeros_like)(like)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_accumulated(weight: Tensor) -> bool:
    """Whether the running backward pass adds to `.grad` of this leaf."""
    try:
        # Only the engine knows whether this pass adds to .grad or gives the gradient to
        # torch.autograd.grad.
        node = torch.autograd.graph.get_gradient_edge(weight).node
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch.autograd.grad wants it returned
        return False
