# SPDX-License-Identifier: Apache-2.0
"""The sum of gradients over ranks, at the cost of what is active.

Masks are the same on all ranks, which `Sniper.step` checks. So no index travels: each rank packs
its active blocks into one buffer in the same order, the buffers are added up, and each puts the
sums back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import pack_active, unpack_active
from sniper.sparsity.distributed import BUCKET, lost_if_fails
from sniper.sparsity.sniper import Sniper

DTYPES = (torch.float32, torch.bfloat16)


class _Packing(Protocol):
    """What of one gradient travels."""

    numel: int

    def take(self, grad: Tensor, values: Tensor) -> None:
        """Writes them to `values`, `[numel]`, in the dtype of that."""
        ...

    def put(self, grad: Tensor, values: Tensor) -> None:
        """The other way round."""
        ...


class _Everything:
    def __init__(self, numel: int):
        self.numel = numel

    def take(self, grad: Tensor, values: Tensor) -> None:
        values.view(grad.shape).copy_(grad)

    def put(self, grad: Tensor, values: Tensor) -> None:
        grad.copy_(values.view(grad.shape))


class _Blocks:
    """The active blocks of a weight `[N, K]` or `[N, C, taps]`, in any memory order."""

    def __init__(self, layout: BlockLayout):
        self._layout, self._size, n = layout, layout.block_size, layout.nnz
        in_blocks = layout.shape[2]
        columns = layout.col_indices[:n].long()
        self._index = (layout.row_indices[:n].long(), columns // in_blocks, columns % in_blocks)
        self.numel = n * layout.block_size**2

    def take(self, grad: Tensor, values: Tensor) -> None:
        if pack_active(grad, self._layout, values):
            return
        blocks, places = self._blocks(grad), values.view(-1, self._size, self._size)
        if values.dtype == grad.dtype:
            torch.ops.aten.index.Tensor_out(blocks, self._index, out=places)
        else:
            places.copy_(blocks[self._index])

    def put(self, grad: Tensor, values: Tensor) -> None:
        if unpack_active(grad, self._layout, values):
            return
        self._blocks(grad)[self._index] = values.view(-1, self._size, self._size).to(grad.dtype)

    def _blocks(self, grad: Tensor) -> Tensor:
        """`[N/b, taps, C/b, b, b]`, a view whatever the strides: a dimension can always be cut."""
        b = self._size
        grad = grad if grad.dim() == 3 else grad.unsqueeze(2)
        return grad.unflatten(1, (-1, b)).unflatten(0, (-1, b)).permute(0, 4, 2, 1, 3)


class _Weights:
    """The active ones of single weights."""

    def __init__(self, mask: Tensor):
        self.mask = mask  # kept, so that no other mask has its id
        self._index = mask.reshape(-1).nonzero().squeeze(1)
        self.numel = self._index.numel()

    def take(self, grad: Tensor, values: Tensor) -> None:
        values.copy_(grad.take(self._index))

    def put(self, grad: Tensor, values: Tensor) -> None:
        grad.put_(self._index, values.to(grad.dtype))


class GradientExchange:
    """Adds up gradients over all ranks: of masked weights what is active, of all others everything.

    Gradients of pruned weights stay as they are, which is 0. With `paper_exact` they count, so
    everything travels.

    Args:
        sniper: masks some of the parameters; None: nothing is masked.
        dtype: in which gradients travel and are added up: float32 or bfloat16.

    Attributes:
        bytes: that this rank gave to the last `sum`, or by `average` since it was last set to 0.

    Raises:
        ValueError: no Sniper, another dtype.
    """

    def __init__(self, sniper: Sniper | None, dtype: torch.dtype = torch.float32):
        if sniper is not None and not isinstance(sniper, Sniper):
            raise ValueError(f"sniper: expected a Sniper or None, got {sniper!r:.80}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
        self._sniper, self._dtype = sniper, dtype
        self.bytes = 0
        # By parameter: for which mask, and how it is packed.
        self._packings = WeakTensorKeyDictionary()

    @torch.no_grad()
    def sum(self, parameters: Iterable[Tensor]) -> None:
        """Replaces every `.grad` by its sum over all ranks; where there is none it counts as 0.

        Args:
            parameters: of the model, in the same order on every rank; frozen ones are left alone.

        Raises:
            ValueError: no tensors.
            RankLost: another rank has ended.
        """
        self.bytes = 0
        pairs = []
        for p in _trained(parameters):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            pairs.append((p, p.grad))
        packings = self._current([p for p, _ in pairs])
        under_way = []
        for part in _parts([packing.numel for packing in packings]):
            chosen = [(packings[i], pairs[i][1]) for i in part]
            flat = self._pack(chosen)
            with lost_if_fails():
                # What is packed next is packed while this travels.
                under_way.append((chosen, flat, dist.all_reduce(flat, async_op=True)))
        for chosen, flat, work in under_way:
            with lost_if_fails():
                work.wait()
            self._unpack(chosen, flat)

    def average(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> torch.futures.Future[Any]:
        """Begins to replace gradients by their mean over all ranks.

        Args:
            pairs: parameters and their gradients, in the same order on every rank.

        Returns:
            A future that is done when the gradients are.
        """
        packings = self._current([p for p, _ in pairs])
        chosen = [(packing, grad) for packing, (_, grad) in zip(packings, pairs, strict=True)]
        # Before the sum, as DDP itself does, which in half precision is another number.
        flat = self._pack(chosen).div_(dist.get_world_size())
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None

        def unpack(done: Any) -> Tensor:
            done.value()  # raises what the exchange has raised
            self._unpack(chosen, flat)
            # On a GPU a future is done when the devices of its value are: with None whoever waits
            # for it would wait for nothing, and read what is not unpacked yet.
            return flat

        return work.get_future().then(unpack)

    def _pack(self, chosen: Sequence[tuple[_Packing, Tensor]]) -> Tensor:
        sizes = [packing.numel for packing, _ in chosen]
        flat = torch.empty(sum(sizes), dtype=self._dtype, device=chosen[0][1].device)
        for (packing, grad), values in zip(chosen, flat.split(sizes), strict=True):
            packing.take(grad, values)
        self.bytes += flat.numel() * flat.element_size()
        return flat

    @torch.no_grad()
    def _unpack(self, chosen: Sequence[tuple[_Packing, Tensor]], flat: Tensor) -> None:
        sizes = [packing.numel for packing, _ in chosen]
        for (packing, grad), values in zip(chosen, flat.split(sizes), strict=True):
            packing.put(grad, values)

    def _current(self, parameters: Sequence[Tensor]) -> list[_Packing]:
        """What of each parameter travels now; made anew only where a mask has changed."""
        masks = {} if self._sniper is None else self._sniper.gradient_masks()
        return [self._packing(p, masks.get(id(p))) for p in parameters]

    def _packing(self, p: Tensor, mask: BlockLayout | Tensor | None) -> _Packing:
        if mask is None:
            return _Everything(p.numel())
        blocks = isinstance(mask, BlockLayout)
        key = (mask.handle, mask.version) if blocks else (id(mask), 0)
        known = self._packings.get(p)
        if known is None or known[0] != key:
            known = self._packings[p] = key, _Blocks(mask) if blocks else _Weights(mask)
        return known[1]


def _trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Once through them: `model.parameters()` can be read no second time."""
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise ValueError(f"parameters: expected several tensors, got {parameters!r:.80}")
    found = list(parameters)
    for p in found:
        if not isinstance(p, Tensor):
            raise ValueError(f"parameters: expected tensors, got {p!r:.80} among them")
    return [p for p in found if p.requires_grad]


def _parts(sizes: Sequence[int]) -> list[list[int]]:
    """Neighbours, together while they fit into a bucket."""
    parts: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if parts and size <= room:
            parts[-1].append(i)
        else:
            parts.append([i])
            room = BUCKET
        room -= size
    return parts
