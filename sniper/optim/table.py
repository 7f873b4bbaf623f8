# SPDX-License-Identifier: Apache-2.0
"""Which parameters a step visits, and what the kernel is told of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sniper import _C
from sniper.layers.zeros import laid_as, lay_alike, layouts_of_weights
from sniper.ops import layout as layouts
from sniper.ops import selfcheck
from sniper.ops.backends.triton import adam, launch
from sniper.ops.geometry import is_matrix
from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import mask_blocks_, only_active, zero_pruned_

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


# What makes an update another one, of a group.
_RATES = ("betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
# Rows for our kernel, and param groups for torch's functions.
Collected = tuple[list["Row"], list[dict[str, Any]]]
# Rows on a CPU, and those of each GPU with their table.
Parts = tuple["CpuTable | None", list[tuple[list["Row"], adam.AdamTable]]]


@dataclass(slots=True)
class Row:
    """A parameter that our kernel updates.

    Attributes:
        weight: with a gradient in the same memory order.
        state: the optimizer's.
        group: its param group.
        factor: of its learning rate.
        layout: its active blocks; None: all of it.
    """

    weight: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    factor: float
    layout: BlockLayout | None

    @property
    def grad(self) -> Tensor:
        """The weight's; not kept here, or rows that are kept would keep a gradient that is gone."""
        grad = self.weight.grad
        assert grad is not None  # it is in a step
        return grad

    def entry(self) -> tuple:
        """What `_C.AdamTable` keeps of it: addresses, extent, rates, kind."""
        state, group = self.state, self.group
        largest = state["max_exp_avg_sq"].data_ptr() if group["amsgrad"] else 0
        tensors = (
            self.weight.data_ptr(),
            state["exp_avg"].data_ptr(),
            state["exp_avg_sq"].data_ptr(),
            largest,
            state["step"].data_ptr(),
        )
        extent = (self.weight.numel(), 0, 0, 0, 0)
        # Without a mask long stretches are visited, which come faster than blocks.
        if self.has_pruned:
            assert self.layout is not None
            rows, taps, cols = self.layout.shape
            mask = self.layout.block_mask.data_ptr()
            extent = (self.weight.numel(), mask, rows, taps * cols, self.layout.block_size)
        rates = (*group["betas"], group["eps"], group["weight_decay"])
        kind = (group["decoupled_weight_decay"], group["maximize"], self.layout is not None)
        return tensors, extent, rates, kind

    @property
    def has_pruned(self) -> bool:
        """Whether some of its blocks are pruned."""
        return self.layout is not None and not self.layout.is_full

    def device_entry(self, number: int) -> adam.Entry:
        """As a table on a GPU takes it; `number` is the group's."""
        state, group = self.state, self.group
        return adam.Entry(
            self.weight,
            self.grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"] if group["amsgrad"] else None,
            state["step"],
            number,
            self.factor,
            group["betas"],
            group["eps"],
            group["weight_decay"],
            group["decoupled_weight_decay"],
            group["maximize"],
            self.layout,
        )

    def marked(self) -> bool:
        """Whether pruned blocks hold zeros for all that versions know; they know nothing of
        `.data`.
        """
        return not self.has_pruned or self.layout is None or self.layout.marked(self.weight)

    def leave_zeros(self, kept: bool) -> None:
        """After an update, which wrote to active blocks alone.

        Args:
            kept: whether the pruned ones were zero before.
        """
        assert self.layout is not None
        if kept:
            self.layout.mark_zeros(self.weight)
        else:
            zero_pruned_(self.weight, self.layout)


class CpuTable:
    """Rows on a CPU, with the extension's table of what stays as it is from step to step.

    Args:
        rows: at least one.
    """

    def __init__(self, rows: list[Row]):
        self.rows, self._weights = rows, [row.weight for row in rows]
        self._table = _C.AdamTable([row.entry() for row in rows])
        self._groups = list({id(row.group): row.group for row in rows}.values())
        numbers = {id(group): i for i, group in enumerate(self._groups)}
        self._factors = [(numbers[id(row.group)], row.factor) for row in rows]

    def _gradients(self) -> bytes:
        return _C.addresses([weight.grad for weight in self._weights])

    def sum_squares(self) -> float:
        """Of all gradients, over active blocks."""
        return self._table.sum_squares(self._gradients(), torch.get_num_threads())

    def update(self, scale: float, clear: bool) -> None:
        """One step of all rows, with gradients scaled, and zero afterwards if `clear`."""
        lrs = [float(group["lr"]) for group in self._groups]
        rates = [lrs[number] * factor for number, factor in self._factors]
        self._table.update(self._gradients(), rates, scale, clear, torch.get_num_threads())

    def has_zeros(self, turn: int) -> list[tuple[Row, bool]]:
        """The masked rows, and whether nothing is to be done for the zeros of their pruned blocks.

        Args:
            turn: counts on from step to step: which row of every block is looked at, since nobody
                can afford to look at all of them. A write to whole blocks shows in any row.
        """
        found = self._table.pruned_is_nonzero(turn, torch.get_num_threads())
        pairs = zip(self.rows, found, strict=True)
        return [(row, row.marked() and not seen) for row, seen in pairs if row.layout is not None]


class Rows:
    """Sorts an optimizer's parameters into what our kernel takes and what torch does."""

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        # Layouts by the id of their weight, and their versions, that gradients were prepared for.
        self._prepared: dict[int, tuple[int, ...]] = {}
        self._tables: dict[torch.device, adam.AdamTable] = {}
        # What `collect` and `parts` gave last, and what it depends on.
        self._signature: tuple | None = None
        self._collected: Collected | None = None
        self._parts: Parts | None = None

    def forget(self) -> None:
        """Moments may be other tensors now."""
        self._prepared.clear()
        self._tables.clear()
        self._signature = None

    def masked(self) -> dict[int, BlockLayout]:
        """Layouts of the weights that our kernel masks, by the weight's id."""
        found = layouts_of_weights()
        params = (p for group in self._optimizer.param_groups for p in group["params"])
        return {id(p): found[id(p)] for p in params if id(p) in found and _served(p, found[id(p)])}

    def collect(self) -> Collected:
        """What a step visits now.

        Returns:
            Rows for our kernel, and param groups for torch's functions, each with `grads`, `states`
            and a learning rate that has its factor.

        Raises:
            ValueError: `capturable` for parameters on a CPU.
        """
        # A step of a small model on a GPU takes less than sorting hundreds of parameters anew.
        if self._collected is not None and self._same():
            return self._collected
        collected = self._collect()
        # Not what torch's functions get: their gradients may go, and a learning rate with its
        # factor is other at every step.
        kept = not collected[1]
        self._collected, self._parts = collected if kept else None, None
        # Afterwards, since gradients and moments may have been laid anew.
        self._signature = self._sign() if kept else None
        return collected

    def parts(self, rows: list[Row]) -> Parts:
        """Rows by where they are updated: those on a CPU, and those of each GPU with their table.

        Args:
            rows: as `collect` gave them.
        """
        if self._parts is None or self._collected is None or rows is not self._collected[0]:
            on_cpu, on_gpus = _by_device(rows)
            table = CpuTable(on_cpu) if on_cpu else None
            self._parts = table, [(each, self._table(each)) for each in on_gpus]
        return self._parts

    def _same(self) -> bool:
        return self._signature is not None and self._signature == self._sign()

    def _sign(self) -> tuple:
        """Everything that `collect` and `parts` depend on."""
        optimizer = self._optimizer
        parts: list[Any] = [layouts.changes()]
        parts += [(id(p), factor) for p, factor in optimizer.rate_factors.items()]
        params: list[Tensor] = []
        for group in optimizer.param_groups:
            parts.append(id(group))  # rows read rates from the dictionary itself
            parts += [group[name] for name in _RATES]
            parts.append(len(group["params"]))
            params += group["params"]
        # Gradients on a CPU are not in it: there each step is told where they are.
        parts.append(_C.optimizer_places(params, optimizer.state, ("step", *_MOMENTS)))
        parts.append(optimizer._still_cleared(params))
        return tuple(parts)

    def _collect(self) -> Collected:
        optimizer, masked = self._optimizer, self.masked()
        rows, groups = [], []
        for group in optimizer.param_groups:
            params = [p for p in group["params"] if optimizer.has_gradient(p)]
            if not params:
                continue
            if group["capturable"] and any(p.device.type == "cpu" for p in params):
                raise ValueError("capturable: expected parameters on a GPU, got some on a CPU")
            # Its checks and the states that it makes are torch's.
            optimizer._init_group({**group, "params": params}, [], [], [], [], [], [])
            others: dict[float, list[Tensor]] = {}
            for p in params:
                factor = optimizer.rate_factors.get(p, 1.0)
                layout = masked.get(id(p))
                if _served(p, layout):
                    row = Row(p, optimizer.state[p], group, factor, layout)
                    self._prepare(row)
                    rows.append(row)
                else:
                    others.setdefault(factor, []).append(p)
            for factor, ps in others.items():
                lay_alike(ps, optimizer.state, bool(group["fused"]))
                states = [optimizer.state[p] for p in ps]
                lists = {"params": ps, "grads": [p.grad for p in ps], "states": states}
                groups.append({**group, **lists, "lr": group["lr"] * factor})
        return rows, groups

    def _table(self, rows: list[Row]) -> adam.AdamTable:
        """The table of rows that lie on one GPU; the last one while nothing has changed."""
        numbers = {id(group): i for i, group in enumerate(self._optimizer.param_groups)}
        entries = [row.device_entry(numbers[id(row.group)]) for row in rows]
        device = rows[0].weight.device
        table = self._tables.get(device)
        if table is None or table.key != adam.key_of(entries):
            table = self._tables[device] = adam.AdamTable(entries)
        return table

    def clear_all(self) -> bool:
        """Zeroes all gradients, in one launch a GPU, where the last step has visited them all; says
        whether it has.
        """
        if self._parts is None or self._parts[0] is not None or self._optimizer.has_cleared():
            return False
        if not self._same():
            return False
        for rows, table in self._parts[1]:
            table.clear()
            increment_version([row.grad for row in rows])
        return True

    def clear_gradient(self, p: Tensor, layout: BlockLayout | None) -> None:
        """Zeroes a gradient, of a masked weight its active blocks."""
        assert p.grad is not None
        if layout is None:
            p.grad.zero_()
            return
        grad = laid_as(p, p.grad)
        if grad is not p.grad:
            p.grad = grad
        matrix = _matrix(grad, layout)
        if self._prepared.get(id(p)) != _prepared_for(p, layout):
            mask_blocks_(matrix, layout)  # what is there from before a mask
        # The inverse of what masks a gradient: it zeroes the active blocks.
        rows, taps, cols = layout.shape
        b = layout.block_size
        blocks = matrix.view(rows, b, taps, cols, b)
        blocks.masked_fill_(layout.block_mask[:, None, :, :, None], 0)

    def _prepare(self, row: Row) -> None:
        """Once a layout's version: one memory order for all, and zeros where a gradient or a moment
        is not visited any more.
        """
        p, layout = row.weight, row.layout
        grad = laid_as(p, row.grad)
        if grad is not p.grad:
            p.grad = grad
        key = _prepared_for(p, layout)
        if self._prepared.get(id(p)) == key:
            return
        # Elsewhere, as torch has it without `fused`; of another dtype, if that is the default.
        row.state["step"] = row.state["step"].to(p.device, torch.float32)
        moments = [name for name in _MOMENTS if name in row.state]
        for name in moments:
            row.state[name] = laid_as(p, row.state[name])
            if layout is not None and id(p) not in self._prepared:
                row.state[name] = only_active(row.state[name], layout)
        if layout is not None:
            for tensor in (row.grad, *(row.state[name] for name in moments)):
                mask_blocks_(_matrix(tensor, layout), layout)
        self._prepared[id(p)] = key


def _prepared_for(p: Tensor, layout: BlockLayout | None) -> tuple[int, ...]:
    """What gradient and moments are made ready for: other memory, or another mask, anew."""
    version = (0, 0) if layout is None else (layout.handle, layout.version)
    return (p.data_ptr(), *version)


def torch_lists(group: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `torch.optim.adam.adam` for a group of `Rows.collect`."""
    states = group["states"]
    beta1, beta2 = group["betas"]
    return {
        "params": group["params"],
        "grads": group["grads"],
        "exp_avgs": [s["exp_avg"] for s in states],
        "exp_avg_sqs": [s["exp_avg_sq"] for s in states],
        "max_exp_avg_sqs": [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
        "state_steps": [s["step"] for s in states],
        "amsgrad": group["amsgrad"],
        "has_complex": any(torch.is_complex(p) for p in group["params"]),
        "beta1": beta1,
        "beta2": beta2,
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "maximize": group["maximize"],
        "capturable": group["capturable"],
        "fused": group["fused"],
        "decoupled_weight_decay": group["decoupled_weight_decay"],
    }


def _served(p: Tensor, layout: BlockLayout | None) -> bool:
    """Whether our kernels take a parameter, with a gradient of its shape and dtype if it has one:
    float32 numbers that lie together, on a CPU or a GPU whose kernels have passed their check.
    """
    dtypes = {t.dtype for t in (p, p.grad) if t is not None}  # a gradient may have its own
    if dtypes != {torch.float32} or p.layout != torch.strided:
        return False
    # Blocks are rows of that matrix; values may be put into a masked convolution in any order.
    laid = p.dim() in (2, 3) and is_matrix(p)
    if not (laid or (layout is None and p.is_contiguous())):
        return False
    if p.device.type == "cpu":
        return True
    return launch.usable(p) and adam.takes(p, layout) and _checked(p.device)


def _by_device(rows: list[Row]) -> tuple[list[Row], list[list[Row]]]:
    """Those on a CPU, and those of each GPU."""
    found: dict[torch.device, list[Row]] = {}
    for row in rows:
        found.setdefault(row.weight.device, []).append(row)
    on_cpu = found.pop(torch.device("cpu"), [])
    return on_cpu, list(found.values())


@cache
def _checked(device: torch.device) -> bool:
    x = torch.empty(0, device=device)
    return selfcheck.trusted(x, selfcheck.NO_BLOCKS, selfcheck.OPTIMIZER)


def _matrix(t: Tensor, layout: BlockLayout) -> Tensor:
    """`[N, taps * C]` of a weight, gradient or moment, as a view."""
    rows = t.detach()
    rows = rows.permute(0, 2, 1) if rows.dim() == 3 else rows
    return rows.view(rows.shape[0], -1)
