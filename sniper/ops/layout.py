# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a weight are active, as the index arrays that kernels walk.

A weight `[N, K]` (Linear) or `[N, C, taps]` (Conv1d, in memory `[N, taps, C]`, so `[N, taps * C]`
is a view) is cut into blocks of `block_size` x `block_size`. Block rows are output blocks; block
columns count `tap * in_blocks + in_block`, as `torch.sparse_bsr` has them. The transposed twins
serve the input gradient: rows are input blocks, columns count `tap * out_blocks + out_block`.

Every index tensor has the size that a full mask needs and keeps its memory when the mask changes:
entries past the last row pointer are unused. So a change of layout moves a few kilobytes and no
pointer, shape or guard.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Custom ops take integers, so that compiled graphs hold no index tensors. A handle is that integer;
# nobody but the ops' edge uses it, and it keeps no layout alive.
_by_handle: dict[int, weakref.ref[BlockLayout]] = {}
_next_handle = itertools.count(1)
_changes = 0


class BlockLayout:
    """The active blocks of one weight.

    Args:
        block_mask: bool `[out_blocks, in_blocks]`, or `[out_blocks, taps, in_blocks]` for a
            convolution.
        block_size: edge of a block in weights.

    Attributes:
        crow_indices: int32 `[out_blocks + 1]`, row pointers of block rows.
        col_indices: int32 `[out_blocks * taps * in_blocks]`, `tap * in_blocks + in_block`,
            ascending in a row.
        crow_indices_t: int32 `[in_blocks + 1]`, row pointers of the transposed twin.
        col_indices_t: int32, same size as `col_indices`, `tap * out_blocks + out_block`, ascending
            in a row.
        row_indices: int32, same size, the block row of every entry of `col_indices`.
        permutation_t: int32, same size: entry i of the transposed twin is the block that is entry
            `permutation_t[i]` of `col_indices`.
        row_order, row_order_t: int32, block rows of each twin, the longest first (ties: the lower
            row first).
        block_mask: bool `[out_blocks, taps, in_blocks]`.
        shape: `(out_blocks, taps, in_blocks)`.
        nnz: number of active blocks.
        version: counts changes; caches compare it, never tensors.
        outgrown: true of a deep copy once the layout that it was copied from has changed: weights
            that are averaged into the copy may be active where this mask is not, so that nothing
            may be skipped.
        handle: what custom ops take for this layout.
        known: what others have found out about this version, by keys of theirs: to find it again
            takes longer than a small layer computes.
        runs: what ran last, by pass; `sniper.ops.dispatch` writes it.

    Raises:
        ValueError: a mask that is no bool tensor of two or three dimensions or has no block, or a
            block size that is no whole number >= 1.
    """

    _TENSORS = (
        "block_mask",
        "crow_indices",
        "col_indices",
        "row_indices",
        "crow_indices_t",
        "col_indices_t",
        "permutation_t",
        "row_order",
        "row_order_t",
    )

    def __init__(self, block_mask: Tensor, block_size: int):
        mask = _as_3d(block_mask)
        whole = isinstance(block_size, int) and not isinstance(block_size, bool)
        if not whole or block_size < 1:
            raise ValueError(f"block_size: expected a whole number >= 1, got {block_size!r}")
        out_blocks, taps, in_blocks = mask.shape
        self._allocate((out_blocks, taps, in_blocks), block_size, mask.device)
        self.update(mask)

    @classmethod
    def unwritten(
        cls, shape: tuple[int, int, int], block_size: int, device: torch.device
    ) -> BlockLayout:
        """A layout without active blocks, for someone else to write; `version` is 0.

        Args:
            shape: `(out_blocks, taps, in_blocks)`.
            block_size: edge of a block in weights.
            device: where its tensors lie.

        Returns:
            The layout.
        """
        layout = object.__new__(cls)
        layout._allocate(shape, block_size, device)
        return layout

    def _allocate(self, shape: tuple[int, int, int], block_size: int, device: torch.device) -> None:
        out_blocks, taps, in_blocks = shape
        size = out_blocks * taps * in_blocks
        new = partial(torch.zeros, dtype=torch.int32, device=device)
        self.block_size = block_size
        # Of the size that a full mask needs, once and for all: the sparsity falls to 0 anyway, and
        # kernels, compiled graphs and recordings keep the addresses that they have seen.
        self.block_mask = new(shape, dtype=torch.bool)
        self.crow_indices = new(out_blocks + 1)
        self.col_indices = new(size)
        self.row_indices = new(size)
        self.crow_indices_t = new(in_blocks + 1)
        self.col_indices_t = new(size)
        self.permutation_t = new(size)
        self.row_order = new(out_blocks)
        self.row_order_t = new(in_blocks)
        self.nnz = 0
        self.version = 0
        self._changes = [0]  # shared with deep copies, which so learn of them wherever they are
        self._copied: tuple[list[int], int] | None = None
        # Of a deep copy, or one that was saved and loaded, which has had no mask of its own since;
        # whether what it was copied from was a copy, too; and whether its pruned blocks were found
        # to hold values that count.
        self.is_copy = self.was_copy = self._strayed = False
        self._zeros: tuple[weakref.ref[Tensor], int, int] | None = None
        self._zeros_of_copy: tuple[weakref.ref[Tensor], int, int] | None = None
        self._measure()
        self.handle = _register(self)

    def _measure(self) -> None:
        """What follows from the mask's shape, and nothing that is known of its values."""
        out_blocks, taps, in_blocks = self.block_mask.shape
        self.shape: tuple[int, int, int] = (out_blocks, taps, in_blocks)
        b = self.block_size
        self._weight_shape: tuple[int, int, int] = (out_blocks * b, in_blocks * b, taps)
        self.known: dict[Hashable, Any] = {}
        self.runs: dict[str, Any] = {}

    def weight_shape(self, dims: int) -> tuple[int, ...]:
        """Of a weight that has these blocks.

        Args:
            dims: the weight's dimensions, 2 or 3.

        Returns:
            `[N, K]`, or `[N, C, taps]` of three dimensions.
        """
        return self._weight_shape if dims == 3 else self._weight_shape[:2]

    @property
    def outgrown(self) -> bool:
        """Whether this is a copy whose original has changed since."""
        if self._strayed:
            return True
        return self._copied is not None and self._copied[0][0] != self._copied[1]

    @property
    def density(self) -> float:
        """Share of active blocks, in [0, 1]."""
        return self.nnz / self.block_mask.numel()

    @property
    def is_full(self) -> bool:
        """Whether no block is pruned."""
        return self.nnz == self.block_mask.numel()

    def mark_zeros(self, weight: Tensor) -> None:
        """Whoever has zeroed the pruned blocks of `weight` says so.

        Args:
            weight: the parameter, which the layout does not keep alive.
        """
        if weight.is_inference():
            return  # it has no version: nobody would notice a write
        # Address and version both: a new tensor may lie where a freed one lay, and an old one may
        # have been written to.
        self._zeros = (weakref.ref(weight), weight.data_ptr(), weight._version)

    def marked(self, weight: Tensor) -> bool:
        """Whether nothing but writes through `.data` can have changed `weight` since
        `mark_zeros(weight)`.

        Args:
            weight: the parameter.

        Returns:
            False too where it never was marked, or the mask has changed since.
        """
        if self._zeros is None or self._zeros[0]() is not weight:
            return False
        return self._zeros[1:] == (weight.data_ptr(), weight._version)

    def zeros_known(self, matrix: Tensor) -> bool:
        """Whether a view of the weight that was marked has not been written to since.

        A write through `.data` is not noticed. On a CPU none need be: there the answer is always
        no, and whoever asks looks at the values.

        Args:
            matrix: `[N, taps * C]`.

        Returns:
            True only where its pruned blocks hold zeros for certain.
        """
        if matrix.device.type == "cpu" or matrix.is_inference():
            return False
        for marked in (self._zeros, self._zeros_of_copy):
            if marked is None:
                continue
            weight, address, version = marked[0](), *marked[1:]
            known = weight is not None and (weight.data_ptr(), weight._version) == marked[1:]
            if known and (matrix.data_ptr(), matrix._version) == (address, version):
                return True
        return False

    def update(self, block_mask: Tensor) -> None:
        """Takes a new mask of the same shape, in place; `version` goes up by one.

        Args:
            block_mask: bool, as the constructor takes it.

        Raises:
            ValueError: no bool tensor, or another shape.
        """
        mask = _as_3d(block_mask).to(self.block_mask.device)
        if mask.shape != self.block_mask.shape:
            raise ValueError(
                f"block_mask: expected shape {self.shape} (out_blocks, taps, in_blocks), "
                f"got {tuple(mask.shape)}"
            )
        self.block_mask.copy_(mask)
        out_blocks, _, in_blocks = self.shape
        rows = mask.reshape(out_blocks, -1)
        rows_t = mask.permute(2, 1, 0).reshape(in_blocks, -1)
        nnz = _compress(rows, self.crow_indices, self.col_indices, self.row_order)
        _compress(rows_t, self.crow_indices_t, self.col_indices_t, self.row_order_t)
        self.row_indices[:nnz] = rows.nonzero()[:, 0].to(torch.int32)
        # The running count of active blocks is each one's place in col_indices.
        entries = (mask.reshape(-1).cumsum(0) - 1).view(mask.shape).permute(2, 1, 0)
        self.permutation_t[:nnz] = entries.reshape(in_blocks, -1)[rows_t].to(torch.int32)
        self.rewritten(nnz)

    def rewritten(self, nnz: int) -> None:
        """Whoever has written the tensors says so: caches, choices of backends and recorded graphs
        of this layout are out of date.

        Args:
            nnz: active blocks by now.
        """
        self.nnz = nnz
        self.version += 1
        self._changes[0] += 1
        count_change()
        # Not cleared: somebody on another thread may still add what was found of the mask before.
        self.known = {}
        # A copy with a mask of its own no longer follows its original, and nothing is known yet of
        # zeros in its pruned blocks.
        self._copied = self._zeros = self._zeros_of_copy = None
        self.is_copy = self.was_copy = self._strayed = False

    def stray(self) -> None:
        """Whoever has found values in the pruned blocks of a copy's weight says so: they count, as
        in an average over several masks.
        """
        self._strayed = True
        count_change()

    def retire(self) -> None:
        """Its weight is dense from now on: deep copies must not skip what counts there."""
        self._changes[0] += 1
        count_change()

    def to(self, device: torch.device | str) -> BlockLayout:
        """The same layout elsewhere.

        Args:
            device: where to.

        Returns:
            Itself when it is there already, else a copy; on `meta` one without values.
        """
        device = torch.device(device)
        if self.block_mask.device == device:
            return self
        # Without the constructor, which would write everything anew from the mask.
        moved = object.__new__(BlockLayout)
        moved.__dict__.update(self.__getstate__())
        for name in self._TENSORS:
            setattr(moved, name, getattr(self, name).to(device))
        moved._measure()
        moved.handle = _register(moved)
        return moved

    def __getstate__(self) -> dict:
        state = {**self.__dict__, "handle": None, "_zeros": None, "_zeros_of_copy": None}
        for name in ("known", "runs"):  # of this process, and not of a copy
            del state[name]
        return state

    def __setstate__(self, state: dict) -> None:
        # Copies and unpickled layouts are layouts of their own.
        self.__dict__.update(state)
        self.was_copy, self.is_copy = state.get("is_copy", False), True
        self.__dict__.setdefault("_strayed", False)  # of an earlier version
        self._measure()
        self.handle = _register(self)

    def __deepcopy__(self, memo: dict) -> BlockLayout:
        copied = memo[id(self)] = object.__new__(BlockLayout)
        state = {k: v for k, v in self.__getstate__().items() if k != "_copied"}
        # A copy of an outgrown copy takes over what that one is compared with, so that it is
        # outgrown from the start.
        source = self._copied if self.outgrown else (self._changes, self._changes[0])
        copied.__setstate__({**copy.deepcopy(state, memo), "_copied": source})
        return copied

    def written(self) -> list[Tensor]:
        """The tensors without the parts that are unused."""
        unused = ("col_indices", "row_indices", "col_indices_t", "permutation_t")
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        return [t[: self.nnz] if name in unused else t for name, t in tensors.items()]

    def element_mask(self) -> Tensor:
        """The mask per weight, bool `[N, taps, C]`."""
        b = self.block_size
        return self.block_mask.repeat_interleave(b, 0).repeat_interleave(b, 2)

    def __repr__(self) -> str:
        return (
            f"BlockLayout({self.shape}, block_size={self.block_size}, density={self.density:.3f})"
        )


def weight_mask(layout: BlockLayout, dims: int) -> Tensor:
    """`layout.element_mask()` in the shape of a weight of 2 or 3 dimensions."""
    mask = layout.element_mask()
    return mask[:, 0] if dims == 2 else mask.permute(0, 2, 1)


def mark_copy(layout: BlockLayout, copy: Tensor) -> None:
    """Whoever has cast a weight that is `marked` says so of the result, the weight in another
    dtype.
    """
    if copy.is_inference():
        return  # it has no version: nobody would notice a write
    layout._zeros_of_copy = (weakref.ref(copy), copy.data_ptr(), copy._version)


def changes() -> int:
    """Goes up whenever any layout is made, written or retired: one number in place of a look at
    each.
    """
    return _changes


def count_change() -> None:
    """Whoever masks weights from now on, or no longer, says so."""
    global _changes
    _changes += 1


def find_layout(handle: int) -> BlockLayout:
    """The layout that has this handle.

    Raises:
        ValueError: it is gone.
    """
    found = _by_handle.get(handle)
    layout = None if found is None else found()
    if layout is None:
        raise ValueError(f"layout: expected the handle of a living layout, got {handle}")
    return layout


def _register(layout: BlockLayout) -> int:
    handle = next(_next_handle)
    forget = _by_handle.pop  # kept here: a module's names are gone before its last objects are
    _by_handle[handle] = weakref.ref(layout, lambda gone: forget(handle, None))
    count_change()
    return handle


def _as_3d(mask: Tensor) -> Tensor:
    """`[out, in]` becomes `[out, 1, in]`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (2, 3):
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(f"block_mask: expected a bool tensor of 2 or 3 dimensions, got {got:.80}")
    if not mask.numel():
        raise ValueError(f"block_mask: expected at least one block, got shape {list(mask.shape)}")
    return mask.unsqueeze(1) if mask.dim() == 2 else mask


def _compress(rows: Tensor, crow: Tensor, col: Tensor, order: Tensor) -> int:
    """Writes row pointers, columns and the longest-first row order of a bool matrix; returns its
    count of True.
    """
    counts = rows.sum(1)
    crow[1:] = counts.cumsum(0).to(torch.int32)
    columns = rows.nonzero()[:, 1].to(torch.int32)
    col[: columns.numel()] = columns
    # Longest first, so that the last rows to be handed out are short and no thread or
    # multiprocessor is left alone with a long one.
    order.copy_(torch.argsort(counts, descending=True, stable=True))
    return columns.numel()
