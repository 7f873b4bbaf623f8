# SPDX-License-Identifier: Apache-2.0
"""Adam and AdamW over active blocks: what is pruned is neither read nor written.

Each is torch's own class with the same states, so that either loads what the other saved. Where our
kernels serve, for float32 on a CPU or a GPU, one visit clips, updates and clears; for whatever else
torch's functions do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam
from torch.utils.weak import TensorWeakRef

from sniper.ops.gradients import adopt
from sniper.ops.layout import BlockLayout
from sniper.optim.table import Collected, Row, Rows, torch_lists

_OURS = ("max_norm", "clear")


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` over the active blocks of block-sparse layers and all other parameters.

    Computes what torch's computes when the gradients of pruned weights are zero. A masked weight's
    `.grad` stays allocated, also through `zero_grad(set_to_none=True)`: there it becomes zero, and
    the weight is not updated until a gradient has arrived.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, capturable,
            decoupled_weight_decay: as torch's.
        max_norm: gradients are scaled in each step as `clip_grad_norm_` of all of them would; None:
            not.
        clear: gradients are gone after a step, as by `zero_grad()`, without a visit of their own.
        foreach, fused, differentiable: None, None or True, False; there is one implementation, a
            fused one.

    Attributes:
        rate_factors: by parameter, what its learning rate is multiplied by; a Sniper sets it.
        zero_in_place: whether gradients are zero after a step, as by `zero_grad(set_to_none=False)`
            without a visit of their own, also where `clear` would drop them: for recorded graphs,
            which write to their memory. False unless it is set.
        kept_zeros: ids of the masked weights whose pruned blocks the last step left at zero. What
            was written there through `.data`, which nobody notices, is gone after the next step if
            it fills whole blocks, else after as many steps as a block has rows.

    A cleared gradient of a masked weight counts as none until its version goes up. So it does not
    count what is written to it through `.data`, and it counts what `clip_grad_norm_` writes, also
    of a layer that took no part in the pass: such a layer goes on by its moments, where torch's
    leaves it. `max_norm` and `clip` leave it, too.

    Raises:
        ValueError: settings that torch's refuses, a `max_norm` that is no number above 0, or a flag
            that asks for another implementation.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        max_norm: float | None = None,
        clear: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ):
        if max_norm is not None and not (_is_number(max_norm) and max_norm > 0):
            raise ValueError(f"max_norm: expected a number above 0 or None, got {max_norm!r}")
        if not isinstance(clear, bool):
            raise ValueError(f"clear: expected a bool, got {clear!r}")
        self._begin(max_norm, clear)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        # Else a scaler does not call a step that it skips, and nothing would clear.
        self._step_supports_amp_scaling = self.clear

    def _begin(self, max_norm: float | None, clear: bool) -> None:
        self.max_norm, self.clear = max_norm, clear
        self.zero_in_place = False
        self.rate_factors: Mapping[Any, float] = {}
        self.kept_zeros: frozenset[int] = frozenset()
        # What `clip` found for the step that follows: what it visits, and the scale or None.
        self._clipped: tuple[Collected, Tensor | None] | None = None
        # Gradients that are zero since they were cleared, by the id of their parameter: which, and
        # the version they had then. A parameter that took an id over has another gradient.
        self._cleared: dict[int, tuple[TensorWeakRef, int]] = {}
        self._rows = Rows(self)
        self._turn = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Args:
            param_group: `params`, and settings of their own.

        Raises:
            ValueError: as torch's, or a flag that asks for another implementation.
        """
        if not isinstance(param_group, dict):
            raise ValueError(f"param_group: expected a dictionary, got {param_group!r:.80}")
        group = {**self.defaults, **param_group}
        for name, allowed in (("foreach", (None, False)), ("fused", (None, True))):
            if group.get(name) not in allowed:
                said = " or ".join(map(str, allowed))
                raise ValueError(
                    f"{name}: expected {said}, got {group[name]!r}: {type(self).__name__} of "
                    "sniper.optim has one implementation, a fused one; torch.optim has others"
                )
        if group.get("differentiable"):
            raise ValueError(
                "differentiable: expected False, got True: use torch.optim for gradients through "
                "an update"
            )
        super().add_param_group(param_group)
        self._adopt(self.param_groups[-1:])

    @staticmethod
    def _adopt(groups: list[dict[str, Any]]) -> None:
        for group in groups:
            for p in group["params"]:
                adopt(p)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _OURS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_rows" not in self.__dict__:  # a copy
            self._begin(state.get("max_norm"), state.get("clear", False))
        super().__setstate__(state)
        self._step_supports_amp_scaling = self.clear
        for group in self.param_groups:  # what torch's may have been saved with
            group["foreach"] = None
            group["fused"] = group["fused"] or None
        self._rows.forget()
        self._adopt(self.param_groups)

    @torch.no_grad()
    def clip(self, max_norm: float = math.inf) -> Tensor:
        """Has the next `step` scale gradients as `clip_grad_norm_` would now; they stay as they are
        until then, and must.

        Args:
            max_norm: above 0; infinite: nothing is scaled.

        Returns:
            The norm of all gradients, over active blocks, as a scalar on their device.

        Raises:
            ValueError: no number above 0.
        """
        if not _is_number(max_norm) or not max_norm > 0:
            raise ValueError(f"max_norm: expected a number above 0, got {max_norm!r}")
        collected = self._rows.collect()
        norm = self._norm(collected)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm < math.inf else None
        self._clipped = collected, scale
        return norm

    def _norm(self, collected: Collected) -> Tensor:
        rows, groups = collected
        on_cpu, on_gpus = self._rows.parts(rows)
        squares = 0.0 if on_cpu is None else on_cpu.sum_squares()
        norms = [table.norm_squared().sqrt().float() for _, table in on_gpus]
        grads = [g for group in groups for g in group["grads"]]
        if grads:
            norms += torch._foreach_norm(grads)  # pyright: ignore[reportPrivateImportUsage]
        if on_cpu is not None or not norms:
            norms.append(torch.tensor(squares, dtype=torch.float64).sqrt().float())
        if len(norms) == 1:
            return norms[0]
        # Where all lie on one device nothing waits for it.
        return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; clips and clears as the optimizer was
        made to.

        Args:
            closure: computes the loss anew, if given.

        Returns:
            What `closure` returned.

        Raises:
            ValueError: no function, `capturable` for parameters on a CPU, or a gradient there that
                has gone since `clip`.
        """
        if closure is not None and not callable(closure):
            raise ValueError(f"closure: expected a function or None, got {closure!r:.80}")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            if self._unscaled():
                self._step()
        return loss

    def _unscaled(self) -> bool:
        """Does what a GradScaler leaves to an optimizer that it calls in any case: divides the
        gradients by its scale. False where they overflowed, so that there is no update; they are
        cleared all the same if the optimizer does that, or the next ones would be added to them.
        """
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and bool(found_inf):
            self._clipped = None
            if self.clear or self.zero_in_place:
                self.zero_grad(set_to_none=not self.zero_in_place)
            return False
        if scale is None:
            return True
        by_device: dict[torch.device, list[Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if self.has_gradient(p):
                    by_device.setdefault(p.grad.device, []).append(p.grad)
        for device, grads in by_device.items():
            factor = scale.to(device).double().reciprocal().float()  # as the scaler's own
            torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
        return True

    def _step(self) -> None:
        if self.max_norm is not None and self._clipped is None:
            self.clip(self.max_norm)
        (rows, groups), scale = self._clipped or (self._rows.collect(), None)
        self._clipped = None
        if rows:
            self._update(rows, scale)
        for group in groups:
            if scale is not None:
                torch._foreach_mul_(group["grads"], scale.to(group["grads"][0].device))  # pyright: ignore[reportPrivateImportUsage]
            adam(**torch_lists(group))
            if self.zero_in_place:
                torch._foreach_zero_(group["grads"])  # pyright: ignore[reportPrivateImportUsage]
        self.kept_zeros = frozenset(id(r.weight) for r in rows if r.layout is not None)
        if self.clear and not self.zero_in_place:
            self._forget(True, {id(r.weight): r.layout for r in rows})

    def _update(self, rows: list[Row], scale: Tensor | None) -> None:
        self._turn += 1
        on_cpu, on_gpus = self._rows.parts(rows)
        clear = self.clear or self.zero_in_place
        written = rows if clear else []  # whose gradients are others now
        kept: list[tuple[Row, bool]] = []
        if on_cpu is not None:
            factor = 1.0 if scale is None else float(scale)
            kept += on_cpu.has_zeros(self._turn)
            on_cpu.update(factor, clear)
            if self.zero_in_place:  # the others' are not zeroed, since `clear` drops them
                for row in on_cpu.rows:
                    if row.layout is None:
                        row.grad.zero_()
            written = written or (on_cpu.rows if factor != 1 else [])
        for each, table in on_gpus:
            # Looking at a GPU's memory would wait for it.
            kept += [(row, row.marked()) for row in each if row.layout is not None]
            torch._foreach_add_([row.state["step"] for row in each], 1)  # pyright: ignore[reportPrivateImportUsage]
            there = None if scale is None else scale.to(each[0].weight.device)
            rates = [group["lr"] for group in self.param_groups]
            table.update(rates, there, clear)
            if not clear and there is not None:
                written = [*written, *each]
        increment_version([r.weight for r in rows])
        increment_version([r.grad for r in written])
        for row, zeros in kept:
            row.leave_zeros(zeros)
            if self.clear and not self.zero_in_place:
                self._mark_cleared(row.weight, row.grad)

    def _mark_cleared(self, p: Tensor, grad: Tensor) -> None:
        known = self._cleared.get(id(p))
        kept = known[0] if known is not None and known[0]() is grad else TensorWeakRef(grad)
        self._cleared[id(p)] = kept, grad._version

    def has_cleared(self) -> bool:
        """Whether some gradients that are there count as none, since they were cleared."""
        return len(self._cleared) > 0

    def has_gradient(self, p: Tensor) -> bool:
        """Whether a gradient has arrived since the last one was cleared.

        Args:
            p: one of its parameters.

        Returns:
            False too where there is none.
        """
        grad = p.grad
        if grad is None:
            return False
        cleared = self._cleared.get(id(p))
        # Another tensor may have come to the same version.
        return cleared is None or cleared[1] != grad._version or cleared[0]() is not grad

    def _still_cleared(self, params: Sequence[Tensor]) -> list[int]:
        """The ids of those whose gradient was cleared, and is as it was then."""
        cleared = self._cleared
        if not cleared:
            return []
        return [id(p) for p in params if id(p) in cleared and not self.has_gradient(p)]

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, but for masked weights, whose gradient becomes zero in active blocks and
        stays allocated.

        Args:
            set_to_none: whether the gradients of all others become None.

        Raises:
            ValueError: no bool.
        """
        if not isinstance(set_to_none, bool):
            raise ValueError(f"set_to_none: expected a bool, got {set_to_none!r}")
        if not set_to_none and self._rows.clear_all():
            return
        self._forget(set_to_none, {})

    def _forget(self, set_to_none: bool, updated: Mapping[int, BlockLayout | None]) -> None:
        """`zero_grad`; `updated` has, by id, the layouts of parameters whose gradients the kernel
        has just cleared.
        """
        masked = None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or updated.get(id(p)) is not None:
                    continue
                if id(p) not in updated and masked is None:
                    masked = self._rows.masked()
                layout = None if id(p) in updated or masked is None else masked.get(id(p))
                if layout is None and set_to_none:
                    p.grad = None
                    self._cleared.pop(id(p), None)
                    continue
                if self.has_gradient(p):
                    self._rows.clear_gradient(p, layout)
                elif not set_to_none:
                    continue  # there is none, which stays so
                if set_to_none:
                    self._mark_cleared(p, p.grad)
                else:  # as torch has it, a step takes this for a gradient
                    self._cleared.pop(id(p), None)


class AdamW(Adam):
    """`torch.optim.AdamW` over active blocks; see `Adam`.

    Args:
        params, lr, betas, eps, amsgrad: as torch's.
        weight_decay: decoupled from the gradient.
        options: what else `Adam` takes.

    Raises:
        ValueError: as `Adam`, or `decoupled_weight_decay`, which is a matter of course.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ):
        if "decoupled_weight_decay" in options:
            raise ValueError(
                "decoupled_weight_decay: expected none, got one: AdamW's always is decoupled"
            )
        options["decoupled_weight_decay"] = True
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
