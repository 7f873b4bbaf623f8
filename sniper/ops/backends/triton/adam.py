# SPDX-License-Identifier: Apache-2.0
"""A table of parameters on a GPU, and the launches that visit all of them at once.

What a step launches does not depend on how many parameters there are. Addresses, rates and the
places of active blocks lie in tensors on the device, which are made anew only when one of them has
changed; the learning rate, which changes at every step, is a number of its own there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops.backends.triton.launch import kernels, on
from sniper.ops.layout import BlockLayout

TILE = configs.ADAM_TILE
_ALIGNMENT = 16


class Entry(NamedTuple):
    """A parameter with everything that an update needs, all float32 in one memory order.

    Args:
        weight, grad, exp_avg, exp_avg_sq: of one shape.
        largest: for amsgrad, the largest second moment.
        step: float32 scalar on the device, the number of this step.
        group: number of the learning rate in what `AdamTable.update` is given.
        factor: of the learning rate.
        betas, eps, weight_decay, decoupled, maximize: as `torch.optim.Adam` has them.
        layout: the active blocks; None: all of it.
    """

    weight: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    largest: Tensor | None
    step: Tensor
    group: int
    factor: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    maximize: bool
    layout: BlockLayout | None

    def key(self) -> tuple:
        """Changes whenever a table that has this entry is out of date."""
        tensors = (self.weight, self.grad, self.exp_avg, self.exp_avg_sq, self.largest, self.step)
        places = tuple(0 if t is None else t.data_ptr() for t in tensors)
        return places, _mask(self.layout), self.weight.numel(), *self[6:13]


def takes(weight: Tensor, layout: BlockLayout | None) -> bool:
    """Whether the kernels take a parameter: aligned, as its gradient is if it has one, in blocks
    that they know. Gradients in DDP's buckets lie one behind the other, aligned or not.
    """
    tensors = [weight] if weight.grad is None else [weight, weight.grad]
    if weight.dtype != torch.float32 or any(t.data_ptr() % _ALIGNMENT for t in tensors):
        return False
    return layout is None or layout.block_size in configs.BLOCK_SIZES


class AdamTable:
    """The parameters of one device.

    Args:
        entries: at least one, on one device; aligned to 16 bytes, as whatever torch allocates is.

    Attributes:
        key: of the entries; a table serves them as long as it stays the same.

    Raises:
        ValueError: no entries, tensors that do not fit together or lie on several devices.
    """

    def __init__(self, entries: Sequence[Entry]):
        if not entries:
            raise ValueError("entries: expected at least one, got none")
        for entry in entries:
            _check(entry, entries[0].weight.device)
        device = self.device = entries[0].weight.device
        self.key = key_of(entries)
        # From pageable memory, so the copies are made before the tensors here are gone.
        self._table = torch.tensor([_fields(e) for e in entries], dtype=torch.int64).to(device)
        self._rates = torch.tensor([_rates(e) for e in entries], dtype=torch.float64).to(device)
        groups = 1 + max(e.group for e in entries)
        self._learning_rates = torch.zeros(groups, dtype=torch.float64, device=device)
        self._written: list[float | None] = [None] * groups
        stretches = [_tiles(e) for e in entries]
        self._offsets = torch.cat([offsets for offsets, _ in stretches])
        self._counts = torch.cat([counts for _, counts in stretches])
        sizes = torch.tensor([len(counts) for _, counts in stretches])
        owners = torch.repeat_interleave(torch.arange(len(entries), dtype=torch.int32), sizes)
        self._owners = owners.to(device)
        self._tiles = (self._owners, self._offsets, self._counts, self._table)

    def norm_squared(self) -> Tensor:
        """The sum of the squares of all gradients, float64 scalar on the device; the same bits for
        the same gradients.
        """
        sums = torch.empty(len(self._owners), dtype=torch.float32, device=self.device)
        self._launch("sum_squares", sums)
        return sums.sum(dtype=torch.float64)

    def update(
        self, learning_rates: Sequence[float | Tensor], scale: Tensor | None, clear: bool
    ) -> None:
        """One step of all parameters; their step numbers are those of this step already.

        Args:
            learning_rates: by group, also of groups without an entry; a tensor stays on the device.
            scale: of the gradients, float32 scalar on the device; None: 1.
            clear: whether the gradients are zero afterwards, else they are scaled.
        """
        for group, lr in enumerate(learning_rates[: len(self._written)]):
            if isinstance(lr, Tensor):
                self._learning_rates[group].copy_(lr.detach())
            elif lr != self._written[group]:
                # Not a copy from the host, which would have to wait for it.
                self._learning_rates[group].fill_(lr)
                self._written[group] = lr
        rest = (self._rates, self._learning_rates, scale)
        self._launch("adam_update", *rest, RATES=self._rates.shape[1], CLEAR=clear)

    def clear(self) -> None:
        """Zeroes all gradients, where blocks are active."""
        self._launch("clear_gradients")

    def _launch(self, name: str, *args: Any, **options: Any) -> None:
        if not len(self._owners):
            return  # nothing is active, and CUDA refuses a grid without programs
        kernel = getattr(kernels(), name)
        fields = self._table.shape[1]
        with on(self.device):
            kernel[(len(self._owners),)](
                *self._tiles, *args, FIELDS=fields, TILE=TILE, num_warps=4, **options
            )


def key_of(entries: Sequence[Entry]) -> tuple:
    """Changes whenever a table of these entries is out of date."""
    return tuple(e.key() for e in entries)


def _mask(layout: BlockLayout | None) -> tuple[int, ...]:
    return () if layout is None else (layout.handle, layout.version)


def _check(entry: Entry, device: torch.device) -> None:
    names = ("weight", "grad", "exp_avg", "exp_avg_sq", "largest")
    for name, t in zip(names, entry[:5], strict=True):
        if t is None:
            continue
        if t.device != device or t.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32 on {device}, got {t.dtype} on {t.device}")
        if t.shape != entry.weight.shape or t.stride() != entry.weight.stride():
            raise ValueError(
                f"{name}: expected the weight's {list(entry.weight.shape)} in its memory order, "
                f"got {list(t.shape)} with strides {t.stride()}"
            )
        if t.data_ptr() % _ALIGNMENT:
            raise ValueError(f"{name}: expected an address that {_ALIGNMENT} divides")


def _fields(entry: Entry) -> tuple[int, ...]:
    from sniper.kernels import adam

    kind = adam.DECOUPLED * entry.decoupled + adam.MAXIMIZE * entry.maximize
    kind += adam.DECAYS * (entry.weight_decay != 0) + adam.AMSGRAD * (entry.largest is not None)
    width, distance = TILE, TILE
    if entry.layout is not None:
        _, taps, cols = entry.layout.shape
        width = entry.layout.block_size
        distance = taps * cols * width
    addresses = [0 if t is None else t.data_ptr() for t in entry[:6]]
    return *addresses, width.bit_length() - 1, distance, kind, entry.group


def _rates(entry: Entry) -> tuple[float, ...]:
    logarithms = (math.log2(beta) if beta else -math.inf for beta in entry.betas)
    return entry.factor, *entry.betas, *logarithms, entry.eps, entry.weight_decay


def _tiles(entry: Entry) -> tuple[Tensor, Tensor]:
    """First element and number of elements of each tile, int64 and int32."""
    device, layout, size = entry.weight.device, entry.layout, entry.weight.numel()
    if layout is None:
        offsets = torch.arange(0, size, TILE, device=device)
        return offsets, (size - offsets).clamp(max=TILE).to(torch.int32)
    block = layout.block_size
    _, taps, cols = layout.shape
    distance = taps * cols * block
    rows, columns = layout.row_indices[: layout.nnz], layout.col_indices[: layout.nnz]
    first = rows.long() * block * distance + columns.long() * block
    # A large block is several tiles, each of whole rows.
    steps = torch.arange(0, block * block, TILE, device=device) // block * distance
    offsets = (first[:, None] + steps).flatten()
    return offsets, torch.full_like(offsets, min(block * block, TILE), dtype=torch.int32)
