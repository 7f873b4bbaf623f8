# SPDX-License-Identifier: Apache-2.0
"""What an optimizer does with masked parameters: factors on their learning rates, and the moments
of weights that are pruned or come back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sniper.optim import Adam
from sniper.sparsity.schedule import check_sparsity, is_number

# Where wrappers keep an optimizer: Accelerate's, Lightning's and most others, and SAM's.
_WRAPPED = ("optimizer", "base_optimizer")
# What moves a weight on without a gradient, by torch's names.
_FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
# Adam's running means of squared gradients, by the names that torch gives them.
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


@dataclass(frozen=True)
class LearningRateScale:
    """Each masked parameter's learning rate is multiplied by `min(max, 1 / density)` during
    `optimizer.step()`, on top of any scheduler; by 1 where it is dense.

    Args:
        max: the most that is multiplied by, 1 or more.

    Raises:
        ValueError: no number >= 1.

    Source: arXiv 2211.07283; the authors' code has a `max` of 10.
    """

    max: float = 2.0

    def __post_init__(self) -> None:
        if not is_number(self.max) or not self.max >= 1:
            raise ValueError(f"LearningRateScale.max: expected 1 or more, got {self.max!r}")

    def factor(self, density: float) -> float:
        """`min(max, 1 / density)`; 1 for a density of 0, which leaves nothing to scale.

        Args:
            density: share of active weights, in [0, 1].

        Raises:
            ValueError: no number in [0, 1].
        """
        check_sparsity(density, "density")
        return min(self.max, 1 / density) if density else 1.0


@dataclass(frozen=True)
class NewWeights:
    """How weights start that become active when the sparsity is lowered.

    Args:
        restore_init: at their initial values, as in the paper; otherwise at 0, which changes
            nothing of what the model computes at that moment.
        prime_moments: the mean of their parameter's second moments in Adam, times this, is where
            theirs start. With 1 they make steps like the others', with 16 of a quarter of that at
            first. With 0 their moments start at 0, and their first steps are about three times too
            long.

    Raises:
        ValueError: `restore_init` is no bool, `prime_moments` no finite number >= 0.
    """

    restore_init: bool = False
    prime_moments: float = 16.0

    def __post_init__(self) -> None:
        if not isinstance(self.restore_init, bool):
            raise ValueError(f"restore_init: expected a bool, got {self.restore_init!r}")
        value = self.prime_moments
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"prime_moments: expected 0 or more, got {value!r}")


class RateFactors:
    """Multiplies learning rates by a factor a parameter, during `optimizer.step()` only.

    One model's factors; several may act on one optimizer, each on its own parameters.
    """

    def __init__(self) -> None:
        self._factors: dict[nn.Parameter, float] = {}
        self._optimizers: WeakSet[Optimizer] = WeakSet()

    @property
    def attached(self) -> bool:
        """Whether any optimizer that still exists is scaled."""
        return len(self._optimizers) > 0

    def set(self, factors: dict[nn.Parameter, float]) -> None:
        """Replaces all factors; parameters not named have 1."""
        before, self._factors = self._factors, dict(factors)
        for optimizer in self._optimizers:
            _split_of(optimizer).replace(before, self._factors)

    def attach(self, optimizer: Optimizer) -> None:
        """Acts on `optimizer` from now on."""
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            _split_of(optimizer).users.add(self)
            _split_of(optimizer).replace({}, self._factors)

    def detach(self) -> None:
        """Leaves every optimizer as it was found."""
        for optimizer in self._optimizers:
            split = _split_of(optimizer)
            split.replace(self._factors, {})
            split.users.discard(self)
            if not split.users:
                _splits.pop(optimizer).remove(optimizer)
        self._optimizers.clear()


class _Split:
    """The factors of one optimizer, whoever set them.

    An optimizer of `sniper.optim` reads them itself. For any other, just before a step each param
    group is split by factor, and put back just after. So any grouping and any scheduler
    (multiplicative, absolute, on plateau) works, and what they read and write is the rate without
    the factor. Optimizer state is kept by parameter and does not notice.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.users: WeakSet[RateFactors] = WeakSet()
        # Factors of 1 are left out, so that a dense stage splits nothing and costs nothing.
        self._factors: dict[nn.Parameter, float] = {}  # one object: an optimizer may read it
        self._unsplit: list[dict] | None = None
        self.hooks: tuple[Any, ...] = ()
        if isinstance(optimizer, Adam):
            optimizer.rate_factors = self._factors
        else:
            # A step that is compiled would keep the groups that it saw first.
            apart: Any = torch.compiler.disable
            self.hooks = (
                optimizer.register_step_pre_hook(apart(self._before_step)),
                optimizer.register_step_post_hook(apart(self._after_step)),
                # What is saved after a step that raised has whole groups.
                optimizer.register_state_dict_pre_hook(self._join),
            )

    def replace(
        self, before: Mapping[nn.Parameter, float], factors: Mapping[nn.Parameter, float]
    ) -> None:
        """Factors in place of others, which may be of other parameters."""
        for p in {**before, **factors}:
            self._factors.pop(p, None)
        self._factors.update({p: f for p, f in factors.items() if f != 1.0})

    def remove(self, optimizer: Optimizer) -> None:
        """Leaves the optimizer as it was found."""
        self._join(optimizer)
        if isinstance(optimizer, Adam):
            optimizer.rate_factors = {}
        for hook in self.hooks:
            hook.remove()

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> Any:
        # Groups must be whole before they are split, or factors would multiply.
        self._join(optimizer)  # a step that raised has left its groups split
        if not self._factors:
            return None
        self._unsplit = optimizer.param_groups
        optimizer.param_groups = [
            piece for group in optimizer.param_groups for piece in self._by_factor(group)
        ]
        # The optimizer itself is the first argument.
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._joined_if_it_fails(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            closure = self._joined_if_it_fails(optimizer, kwargs["closure"])
            return args, {**kwargs, "closure": closure}
        return None

    def _joined_if_it_fails(
        self, optimizer: Optimizer, closure: Callable[[], Any]
    ) -> Callable[[], Any]:
        def run() -> Any:
            try:
                return closure()
            except BaseException:  # nothing runs behind a step that raises
                self._join(optimizer)
                raise

        return run

    def _by_factor(self, group: dict) -> list[dict]:
        # Fused and foreach optimizers want few large groups: as many as there are factors, not as
        # many as parameters.
        by_factor: dict[float, list] = {}
        for p in group["params"]:
            by_factor.setdefault(self._factors.get(p, 1.0), []).append(p)
        if set(by_factor) <= {1.0}:
            return [group]
        return [
            {**group, "params": params, "lr": group["lr"] * factor, "_unsplit": group}
            for factor, params in by_factor.items()
        ]

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._join(optimizer)

    def _join(self, optimizer: Optimizer) -> None:
        if self._unsplit is None:
            return
        for piece in optimizer.param_groups:
            group = piece.get("_unsplit")
            if group is not None:  # an optimizer may count steps in its groups
                # All pieces of a group count alike, so whichever comes last is right.
                changed = {k: v for k, v in piece.items() if k not in ("params", "lr", "_unsplit")}
                group.update(changed)
        optimizer.param_groups, self._unsplit = self._unsplit, None


# One for each optimizer: groups that two had split would not be put back by both.
_splits: WeakKeyDictionary[Optimizer, _Split] = WeakKeyDictionary()


def _split_of(optimizer: Optimizer) -> _Split:
    split = _splits.get(optimizer)
    if split is None:
        split = _splits[optimizer] = _Split(optimizer)
    return split


def as_list(optimizer: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    """None, one or several optimizers as a list, without what others wrap around them.

    Raises:
        ValueError: anything else.
    """
    if optimizer is None:
        return []
    several: list[Any] = [optimizer]
    # An optimizer may define __iter__, and a string is the commonest mistake: both are one thing.
    one = hasattr(optimizer, "param_groups") or isinstance(optimizer, (str, bytes))
    if not one and isinstance(optimizer, Iterable):
        several = list(optimizer)
    result = [_innermost(each) for each in several]
    for each in result:
        if not hasattr(each, "param_groups") or not hasattr(each, "register_step_pre_hook"):
            raise ValueError(
                "optimizer: expected a torch.optim.Optimizer, several of them or None, "
                f"got {type(each).__name__}"
            )
    return result


def _innermost(optimizer: Any) -> Any:
    """The optimizer that updates; wrappers keep it by one of a few names. One that leaves only some
    of its parameters to another updates the others itself, and is no wrapper.
    """
    while True:
        if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
            return optimizer.optim  # of this process' share
        inner = (getattr(optimizer, name, None) for name in _WRAPPED)
        found = (i for i in inner if hasattr(i, "param_groups") and _ids(i) == _ids(optimizer))
        if (wrapped := next(found, None)) is None:
            return optimizer
        optimizer = wrapped


def _ids(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check_optimizers(optimizers: list[Optimizer], model: nn.Module, scaled: bool) -> None:
    """Refuses optimizers that masks of this model could not follow.

    Args:
        scaled: whether learning rates are scaled, which splits param groups.

    Raises:
        ValueError: an optimizer of another model, one that takes a single group, or one that sets
            its learning rate itself.
    """
    ids = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if not any(id(p) in ids for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"optimizer: expected one of the model's parameters, got {name} with none of them: "
                "make it of snip.param_groups(lr), and after the model was moved or copied"
            )
        # By name, for subclasses and for copies of it in other libraries.
        if scaled and any(kind.__name__ == "LBFGS" for kind in type(optimizer).__mro__):
            raise ValueError(
                "optimizer: expected one with a learning rate for each parameter, got "
                f"{name}, which has one for all: make the Sniper with lr_scale=None"
            )
        # Hugging Face's Adafactor says so by `relative_step`, whatever its learning rate.
        groups = optimizer.param_groups
        if scaled and any(g.get("lr") is None or g.get("relative_step") for g in groups):
            raise ValueError(
                "optimizer: expected one with a learning rate to scale, got "
                f"{name}, which sets its own: make the Sniper with lr_scale=None"
            )


def gradient_and_moments(optimizers: list[Optimizer], p: nn.Parameter) -> list[Tensor]:
    """The gradient and the moments of `p`, which would move weights that are pruned now."""
    # By shape, not by name: every optimizer calls its moments something else.
    states = [v for o in optimizers for v in o.state.get(p, {}).values()]
    moments = [v for v in states if isinstance(v, Tensor) and v.shape == p.shape]
    return moments if p.grad is None else [p.grad, *moments]


def start_anew(optimizers: list[Optimizer], p: nn.Parameter, newly: Tensor) -> None:
    """Clears the gradient and momentum of newly active weights, whatever has come there while they
    were pruned: of a loss that reads the weight, or by a hand that writes to `.grad`.

    Args:
        optimizers: those without such state are left alone.
        p: the parameter.
        newly: bool of its shape.
    """
    states = [o.state.get(p, {}).get(name) for o in optimizers for name in _FIRST_MOMENTS]
    for value in (p.grad, *states):
        if isinstance(value, Tensor) and value.shape == p.shape:
            # Through `.data`: of a gradient that was cleared the version must stay, by which
            # `sniper.optim` tells that none has arrived since.
            value.data.masked_fill_(newly, 0)


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
                # Over active weights alone; pruned ones have 0, and would pull the mean towards
                # steps that are too long.
                mean = times * (value * active).sum() / active.sum().clamp(min=1)
                # Nothing is written elsewhere: what was never written takes no memory.
                value.masked_fill_(newly, mean.to(value.dtype))
