# SPDX-License-Identifier: Apache-2.0
"""Pruned weights are zero after every optimizer's step, whatever the optimizer did.

A gradient of zero does not keep a weight at zero: momentum from before the mask, noise on gradients
or an optimizer that mixes a matrix's entries moves it. So whoever masks weights registers here, and
one hook behind `step()` of all of torch's optimizers puts the zeros back.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sniper.ops.layout import BlockLayout, count_change
from sniper.ops.sharded import sharding_of


class MaskedWeights(Protocol):
    """Somebody whose pruned weights must stay zero."""

    def masked_parameters(self) -> Sequence[Tensor]:
        """The parameters of which something is pruned now."""
        ...

    def zero_pruned(self, parameter: Any) -> None:
        """Zeroes what is pruned of one of them."""
        ...

    def check_whole(self, sharded: Sequence[Tensor]) -> None:
        """Refuses, by a ValueError, masked weights that are in these, each a part of something."""
        ...


# Weak: a model that is gone needs no zeros.
_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_zeros(owner: MaskedWeights) -> None:
    """From now on, and as long as `owner` lives, its pruned weights are zero after each step."""
    _owners.add(owner)
    count_change()
    _install()


def release(owner: object) -> None:
    """`owner` masks nothing any more: a layer that is of its plain class again."""
    _owners.discard(owner)
    count_change()


@functools.cache
def _install() -> None:
    # Around all optimizers at once: the layers do not know which one the user will make, or when.
    # A step that is compiled would take what they see at first for what is so always. This way the
    # compiler, which takes seconds to load, is not loaded before an optimizer is there.
    never_compiled = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    register_optimizer_step_pre_hook(never_compiled(_before_step))
    register_optimizer_step_post_hook(never_compiled(_after_step))


def _before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Lays gradients and moments of convolutions out as the weight is: fused optimizers walk them
    as flat memory. A mask lays the weight out anew, a state dict or `.data` may do so, too.
    """
    # One that visits active blocks alone lays out what it visits itself.
    if _owners and not hasattr(optimizer, "kept_zeros"):
        for group in optimizer.param_groups:
            lay_alike(group["params"], optimizer.state, group.get("fused", False))


def lay_alike(params: Sequence[Tensor], states: Mapping[Any, dict[str, Any]], fused: bool) -> None:
    """Lays moments of convolutions out as the weight is, and gradients for a fused optimizer; for
    others there may be a reason to keep the gradient where it is.
    """
    for p in params:
        if p.dim() != 3:
            continue
        if fused and p.grad is not None and p.grad.stride() != p.stride():
            p.grad = laid_as(p, p.grad)
        state = states.get(p, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[key] = laid_as(p, value)


def laid_as(p: Tensor, t: Tensor) -> Tensor:
    """A gradient or moment `t` of `p` in its memory order: itself if it is, else a copy."""
    if t.stride() == p.stride():
        return t
    return torch.empty_like(p, dtype=t.dtype, requires_grad=False).copy_(t.detach())


def _after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    if not _owners:
        return
    # Only what this optimizer owns: a second one (a discriminator's, say) must not cost a visit.
    params = [p for group in optimizer.param_groups for p in group["params"]]
    stepped = {id(p) for p in params}
    # Where a model was sharded after its masks were put on, its weights may be no parameters any
    # more, and no mask would be found for what has stepped.
    sharded = [p for p in params if sharding_of(p)]
    # An optimizer that never writes to pruned blocks says of which weights.
    kept = getattr(optimizer, "kept_zeros", ())
    for owner in list(_owners):
        if sharded:
            owner.check_whole(sharded)
        for p in owner.masked_parameters():
            if id(p) in stepped and id(p) not in kept:
                owner.zero_pruned(p)


def layouts_of_weights() -> dict[int, BlockLayout]:
    """The layout of every weight that has pruned blocks, by the weight's id; without those that
    several owners mask.
    """
    found: dict[int, BlockLayout] = {}
    several = set()
    for owner in list(_owners):
        for p in owner.masked_parameters():
            layout = getattr(owner, "layout", None)
            if id(p) in found or layout is None:
                several.add(id(p))
            else:
                found[id(p)] = layout
    return {key: layout for key, layout in found.items() if key not in several}
