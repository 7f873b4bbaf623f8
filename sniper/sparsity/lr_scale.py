# SPDX-License-Identifier: Apache-2.0
"""A factor on each parameter's learning rate that no scheduler sees and no scheduler undoes."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer


class LrScale:
    """Multiplies learning rates by a factor a parameter, during `optimizer.step()` only.

    Just before a step each param group is split by factor, and put back just after. So any grouping
    and any scheduler (multiplicative, absolute, on plateau) works, and what they read and write is
    the rate without the factor. Optimizer state is kept by parameter and does not notice.
    """

    def __init__(self) -> None:
        self._factors: dict[nn.Parameter, float] = {}
        self._hooks: WeakKeyDictionary[Optimizer, tuple[Any, Any]] = WeakKeyDictionary()
        self._whole: WeakKeyDictionary[Optimizer, list[dict]] = WeakKeyDictionary()

    def set(self, factors: dict[nn.Parameter, float]) -> None:
        """Replaces all factors; parameters not named have 1."""
        self._factors = {p: f for p, f in factors.items() if f != 1.0}

    def attach(self, optimizer: Optimizer) -> None:
        """Hooks into `optimizer`, once."""
        if optimizer not in self._hooks:
            self._hooks[optimizer] = (
                optimizer.register_step_pre_hook(self._split),
                optimizer.register_step_post_hook(self._join),
            )

    def detach(self) -> None:
        """Leaves every optimizer as it was found."""
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
        self._hooks.clear()

    def _split(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._join(optimizer, args, kwargs)  # a step that raised has left its groups split
        if not self._factors:
            return
        self._whole[optimizer] = optimizer.param_groups
        optimizer.param_groups = [
            part for group in optimizer.param_groups for part in self._parts(group)
        ]

    def _parts(self, group: dict) -> list[dict]:
        by_factor: dict[float, list] = {}
        for p in group["params"]:
            by_factor.setdefault(self._factors.get(p, 1.0), []).append(p)
        if set(by_factor) <= {1.0}:
            return [group]
        return [
            {**group, "params": params, "lr": group["lr"] * factor, "_whole": group}
            for factor, params in by_factor.items()
        ]

    def _join(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        whole = self._whole.pop(optimizer, None)
        if whole is None:
            return
        for part in optimizer.param_groups:
            group = part.get("_whole")
            if group is not None:  # an optimizer may count steps in its groups
                group.update({k: v for k, v in part.items() if k not in ("params", "lr", "_whole")})
        optimizer.param_groups = whole
