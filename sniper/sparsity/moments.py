# SPDX-License-Identifier: Apache-2.0
"""What an optimizer remembers of weights whose masks change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Adam's running means of squared gradients, by the names that torch gives them.
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


def as_list(optimizer: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    """None, one or several optimizers as a list, without what Accelerate or Lightning wrap around
    them.
    """
    if optimizer is None:
        return []
    several = [optimizer] if hasattr(optimizer, "param_groups") else list(optimizer)
    return [_innermost(o) for o in several]


def _innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer whose `step` runs hooks; wrappers keep it as `optimizer`."""
    while hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = inner
    return optimizer


def moved_with(optimizers: list[Optimizer], p: nn.Parameter) -> list[Tensor]:
    """The gradient and the moments of `p`, which would move weights that are pruned now."""
    states = [v for o in optimizers for v in o.state.get(p, {}).values()]
    moments = [v for v in states if isinstance(v, Tensor) and v.shape == p.shape]
    return moments if p.grad is None else [p.grad, *moments]


def prime(
    optimizers: list[Optimizer],
    p: nn.Parameter,
    active: Tensor,
    newly: Tensor,
    times: float = 1.0,
) -> None:
    """Gives newly active weights the mean second moment of those that were active before, so many
    times.

    Adam corrects the bias of young moments by the age of the parameter, not of the weight. A weight
    whose moments start at 0 late in training makes first steps of `0.1 / sqrt(0.001)`, 3.2 times
    the learning rate, all at once with thousands of others. Moments of 16 times the mean make first
    steps of a quarter of the others', which grow over 1 / (1 - beta2) updates as Adam forgets them.

    Args:
        optimizers: those without such state are left alone.
        p: the parameter.
        active, newly: bool of its shape.
        times: above 0.
    """
    for optimizer in optimizers:
        state = optimizer.state.get(p, {})
        for name in _SECOND_MOMENTS:
            value = state.get(name)
            if isinstance(value, Tensor) and value.shape == p.shape:
                mean = times * (value * active).sum() / active.sum().clamp(min=1)
                value.copy_(torch.where(newly, mean.to(value.dtype), value))


def match_memory(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> None:
    """Lays state out as its parameter is: fused optimizers walk both as flat memory."""
    for p in params:
        state = optimizer.state.get(p, {})
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.shape != p.shape:
                continue
            if value.stride() != p.stride():
                state[key] = torch.empty_like(p, dtype=value.dtype).copy_(value)
