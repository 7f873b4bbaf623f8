# SPDX-License-Identifier: Apache-2.0
"""What lies in the pruned blocks of a weight: kept at zero, and never counted if it is not; and
the active ones copied together.

Kernels that skip pruned blocks never see what is in them. Dense products would multiply with it, so
they ask here first. On a CPU the bytes are looked at, which costs a part of reading the weight. On
a GPU looking would wait for it: zeros are known from whoever wrote them, or a copy is masked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sniper import _C
from sniper.ops.geometry import as_matrix
from sniper.ops.layout import BlockLayout
from sniper.ops.memory import untouched_zeros_like
from sniper.ops.transforms import has_memory


def masked(matrix: Tensor, layout: BlockLayout) -> Tensor:
    """`matrix` with zeros in its pruned blocks: itself where they are there, else a copy. All of
    an outgrown layout's weight counts.

    Args:
        matrix: `[N, taps * C]`.
        layout: its active blocks, on the same device.
    """
    if layout.is_full or layout.outgrown or layout.zeros_known(matrix):
        return matrix
    # Looking at all pruned bytes takes up to a fifth of a product's time; a masked copy takes more.
    if matrix.device.type == "cpu" and matrix.stride(-1) == 1:
        blocks = _blocks(matrix, layout)
        mask = layout.block_mask.data_ptr()
        if not _C.pruned_is_nonzero(matrix.data_ptr(), blocks, mask, torch.get_num_threads()):
            return matrix
    return mask_blocks_(matrix.clone(memory_format=torch.contiguous_format), layout)


def look_at_copy(weight: Tensor, layout: BlockLayout) -> None:
    """Sees whether pruned blocks of a copy's weight were given values, as by an average over
    several masks: then all of it counts. A copy learns of its original's masks by itself only
    where both are in one process and the values are that original's.

    Args:
        weight: `[N, K]` or `[N, C, taps]`; what was looked at is looked at again once it was
            written to.
        layout: of a copy, `layout.is_copy`.
    """
    if layout.is_full or layout.outgrown or layout.marked(weight) or not has_memory(weight):
        return
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # looking would wait
    rows = as_matrix(weight.detach())
    if weight.is_cpu and rows.is_contiguous():
        mask = layout.block_mask.data_ptr()
        found = _C.pruned_is_nonzero(
            rows.data_ptr(), _blocks(rows, layout), mask, torch.get_num_threads()
        )
    else:
        found = bool(rows.masked_select(~layout.element_mask().flatten(1)).any())
    if found:
        layout.stray()
    elif weight.is_leaf:  # not a cast of it, which is another one at each call
        layout.mark_zeros(weight)


def mask_blocks_(matrix: Tensor, layout: BlockLayout) -> Tensor:
    """Zeroes the pruned blocks of a contiguous `[N, taps * C]`, in place, and returns it; on a CPU
    what is zero already is only read.
    """
    if matrix.device.type == "cpu":
        mask = layout.block_mask.data_ptr()
        _C.zero_pruned(matrix.data_ptr(), _blocks(matrix, layout), mask, torch.get_num_threads())
        increment_version(matrix)
        return matrix
    rows, taps, cols = layout.shape
    blocks = matrix.view(rows, layout.block_size, taps, cols, layout.block_size)
    # masked_fill, not a product: an infinite gradient in a pruned block must not become NaN.
    blocks.masked_fill_(~layout.block_mask[:, None, :, :, None], 0)
    return matrix


@torch.no_grad()
def zero_pruned_(weight: Tensor, layout: BlockLayout) -> None:
    """Zeroes the pruned blocks of a weight `[N, K]` or `[N, C, taps]`, in place, in any memory
    order; on a CPU what is zero already is only read.

    Raises:
        ValueError: a weight of another shape or on another device than its mask.
    """
    if layout.is_full or not has_memory(weight):
        return
    _check_fits(weight, layout)
    rows = weight.detach().unsqueeze(2) if weight.dim() == 2 else weight.detach()
    rows = rows.permute(0, 2, 1)  # [N, taps, C]
    if not rows.is_contiguous():
        rows.masked_fill_(~layout.element_mask(), 0)
    elif weight.device.type == "cpu":
        blocks = _blocks(rows.view(rows.shape[0], -1), layout)
        mask = layout.block_mask.data_ptr()
        wrote = _C.zero_pruned(weight.data_ptr(), blocks, mask, torch.get_num_threads())
        # A graph that saved the weight before must not take it for what it was.
        if wrote and not weight.is_inference():
            increment_version(weight)
    else:
        mask_blocks_(rows.view(rows.shape[0], -1), layout)
    layout.mark_zeros(weight)


def pack_active(weight: Tensor, layout: BlockLayout, packed: Tensor) -> bool:
    """Copies the active blocks of a CPU's `[N, K]` or `[N, C, taps]` together, row by row of each
    block, in the order of the layout.

    Args:
        packed: contiguous, `[nnz * b * b]`, of the weight's dtype.

    Returns:
        False where nothing was done: another device, dtype or memory order than kernels walk.
    """
    return _copy_active(_C.pack_active, weight, layout, packed)


def unpack_active(weight: Tensor, layout: BlockLayout, packed: Tensor) -> bool:
    """The other way round; pruned blocks stay as they are."""
    copied = _copy_active(_C.unpack_active, weight, layout, packed)
    if copied:
        # An optimizer tells by the version whether a gradient that it has cleared still is.
        increment_version(weight)
    return copied


def only_active(weight: Tensor, layout: BlockLayout) -> Tensor:
    """A copy with zeros in pruned blocks, which take no memory where they fill pages; `weight`
    itself where that is of no use: nothing pruned, another device, or not in the memory order that
    kernels walk.

    Args:
        weight: `[N, K]` or `[N, C, taps]`, or a moment of one.
        layout: its active blocks.
    """
    b = layout.block_size
    if layout.is_full or weight.device.type != "cpu":
        return weight
    packed = weight.new_empty(int(layout.block_mask.sum()) * b * b)
    if not pack_active(weight, layout, packed):
        return weight
    copy = untouched_zeros_like(weight)
    unpack_active(copy, layout, packed)
    return copy


def _copy_active(
    copy: Callable[..., None], weight: Tensor, layout: BlockLayout, packed: Tensor
) -> bool:
    rows = weight.detach() if weight.dim() == 2 else weight.detach().permute(0, 2, 1)
    if weight.device.type != "cpu" or weight.dtype != packed.dtype or not rows.is_contiguous():
        return False
    blocks = _blocks(rows.view(rows.shape[0], -1), layout)
    mask = layout.block_mask.data_ptr()
    copy(weight.data_ptr(), blocks, mask, packed.data_ptr(), torch.get_num_threads())
    return True


def _check_fits(weight: Tensor, layout: BlockLayout) -> None:
    """Refuses a weight that was exchanged for another one: kernels walk the memory that they
    expect.
    """
    wanted = layout.weight_shape(weight.dim())
    there = layout.block_mask.device
    if tuple(weight.shape) != wanted or weight.device != there:
        raise ValueError(
            f"weight: expected {list(wanted)} on {there}, as its block mask is, got "
            f"{list(weight.shape)} on {weight.device}: put another mask on, or none, before the "
            "weight is exchanged"
        )


def _blocks(matrix: Tensor, layout: BlockLayout) -> tuple[int, int, int, int, int]:
    """Row stride, rows of blocks, blocks in a row, rows of a block, bytes of a block's row."""
    rows, taps, cols = layout.shape
    size, item = layout.block_size, matrix.element_size()
    return matrix.stride(0) * item, rows, taps * cols, size, size * item
