# SPDX-License-Identifier: Apache-2.0
"""New masks into layouts and weights, for many layers in one call.

`rebuild` runs in the extension (csrc/mask_rebuild.h): a change of sparsity writes index arrays and
copies blocks, and on a GPU it waits for nothing. `rebuild_reference` says in plain torch what it
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sniper import _C
from sniper.ops import extension
from sniper.ops.layout import BlockLayout

# The struct that the extension reads, one for each layer, as the extension itself describes it:
# fields are written by name, so that neither side can have another order or size than the other.
_FIELDS = _C.layer_update_fields()
LAYER_UPDATE = np.dtype(
    {
        "names": [name for name, _, _ in _FIELDS],
        "formats": [np.uint64 if address else np.int64 for _, _, address in _FIELDS],
        "offsets": [offset for _, offset, _ in _FIELDS],
        "itemsize": _C.layer_update_bytes,
    }
)


@dataclass(frozen=True)
class Change:
    """A new mask for one weight.

    Attributes:
        layout: to be rewritten. If nobody has written it yet, the weight was dense.
        weight: `[N, K]`, or `[N, C, taps]` that lies in memory as `[N, taps, C]`, whose blocks the
            layout lists.
        mask: bool `[N/b, K/b]` or `[N/b, taps, C/b]`, on the weight's device.
        count: how many of its blocks are True.
        init: values for blocks that become active, of the weight's shape; None leaves there what
            the weight holds, which is zeros.
    """

    layout: BlockLayout
    weight: Tensor
    mask: Tensor
    count: int
    init: Tensor | None = None

    @property
    def had_mask(self) -> bool:
        """Whether the layout holds a mask that this one replaces."""
        return self.layout.version > 0


def rebuild(changes: Sequence[Change]) -> None:
    """Puts masks on: writes the layouts' index arrays, zeroes blocks that are pruned now, copies
    initial values into blocks that become active, and touches nothing else.

    The first mask of a layout prunes a weight that was dense; nothing becomes active then. Each
    layout's `version` goes up by one.

    Raises:
        ValueError: a mask or initial values of another shape, a mask that is not bool or on another
            device, a weight that does not fit its layout in shape or memory, 2^31 blocks and more.
            Nothing has been changed then.
    """
    for change in changes:
        _check(change)
    devices = {c.weight.device for c in changes}
    # One call serves one device, and a GPU without an image for it writes by torch.
    if len(devices) != 1 or extension.home(device := devices.pop()) != device:
        return rebuild_reference(changes)
    table = np.zeros(len(changes), LAYER_UPDATE)
    kept: list[Tensor] = []  # what the table points to must live until the call
    blocks = 0
    for i, change in enumerate(changes):
        table[i] = _row(change, blocks, kept)
        # Each layer needs its own stretch of the workspace in which positions are counted.
        blocks += change.mask.numel()
    rows = extension.upload(torch.from_numpy(table.view(np.int64)), device)
    args = (rows.data_ptr(), len(changes), LAYER_UPDATE.itemsize)
    if extension.uses_cuda(device):
        positions = torch.empty(blocks, dtype=torch.int32, device=device)
        extension.call("update_layers", device, args, blocks, positions.data_ptr())
    else:
        extension.call("update_layers", device, args)
    # The extension writes behind torch's back; a graph that saved the weight must refuse to run
    # backward instead of using the new values.
    torch.autograd.graph.increment_version([c.weight for c in changes])
    for change in changes:
        change.layout.rewritten(change.count)


@torch.no_grad()
def rebuild_reference(changes: Sequence[Change]) -> None:
    """`rebuild` in plain torch."""
    for change in changes:
        before = change.layout.element_mask() if change.had_mask else None
        change.layout.update(change.mask)
        active = change.layout.element_mask()
        weight = _as_rows(change.weight)
        weight.masked_fill_(~active, 0)
        if before is not None and change.init is not None:
            init = _as_rows(change.init.to(weight.device, weight.dtype))
            weight.copy_(torch.where(active & ~before, init, weight))


def match_weight(init: Tensor, weight: Tensor) -> Tensor:
    """`init` with the weight's device, dtype and memory order; itself where it has them."""
    init = init.to(weight.device, weight.dtype)
    return init if init.stride() == weight.stride() else torch.empty_like(weight).copy_(init)


def _row(change: Change, first_block: int, kept: list[Tensor]) -> tuple[int, ...]:
    """One `LayerUpdate`; appends to `kept` what only it points to."""
    layout, weight = change.layout, change.weight
    kept.append(mask := change.mask.contiguous())
    init = None
    if change.had_mask and change.init is not None:
        kept.append(init := match_weight(change.init, weight))
    out_blocks, taps, in_blocks = layout.shape
    fields = {
        "out_blocks": out_blocks,
        "taps": taps,
        "in_blocks": in_blocks,
        "block": layout.block_size,
        "block_bytes": layout.block_size * weight.element_size(),
        "first_block": first_block,
        "had_mask": int(change.had_mask),
        "mask": mask.data_ptr(),
        "block_mask": layout.block_mask.data_ptr(),
        "crow": layout.crow_indices.data_ptr(),
        "col": layout.col_indices.data_ptr(),
        "row": layout.row_indices.data_ptr(),
        "order": layout.row_order.data_ptr(),
        "crow_t": layout.crow_indices_t.data_ptr(),
        "col_t": layout.col_indices_t.data_ptr(),
        "permutation_t": layout.permutation_t.data_ptr(),
        "order_t": layout.row_order_t.data_ptr(),
        "weight": weight.data_ptr(),
        "init": 0 if init is None else init.data_ptr(),
    }
    names = LAYER_UPDATE.names or ()
    # An extension of another version would read other fields; a refusal beats a wild write.
    if fields.keys() != set(names):
        wrong = sorted(fields.keys() ^ set(names))
        raise RuntimeError(f"the extension and this package differ in {wrong}: build it anew")
    return tuple(fields[name] for name in names)


def _check(change: Change) -> None:
    layout, weight, mask = change.layout, change.weight, change.mask
    (out_blocks, taps, in_blocks), b = layout.shape, layout.block_size
    conv = weight.dim() == 3
    shape = (out_blocks * b, in_blocks * b, *([taps] if conv else []))
    if tuple(weight.shape) != shape or (taps > 1 and not conv):
        raise ValueError(f"weight: expected shape {shape}, got {tuple(weight.shape)}")
    if not _as_rows(weight).is_contiguous():
        raise ValueError(
            f"weight: expected one that lies in memory as [N, taps, C], got strides "
            f"{weight.stride()} for shape {tuple(weight.shape)}"
        )
    expected = (out_blocks, taps, in_blocks) if conv else (out_blocks, in_blocks)
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(f"mask: expected bool {expected}, got {mask.dtype} {tuple(mask.shape)}")
    for name, device in (("mask", mask.device), ("layout", layout.block_mask.device)):
        if device != weight.device:
            raise ValueError(f"{name}: expected one on {weight.device}, got {device}")
    if mask.numel() > extension.MOST_VALUES:
        raise ValueError(f"mask: expected fewer than 2^31 blocks, got {mask.numel():,}")
    if change.init is not None and change.init.shape != weight.shape:
        expected, got = tuple(weight.shape), tuple(change.init.shape)
        raise ValueError(f"init: expected shape {expected}, got {got}")


def _as_rows(weight: Tensor) -> Tensor:
    """`[N, taps, C]` of `[N, C, taps]` or `[N, C]`, a view."""
    return weight.detach().permute(0, 2, 1) if weight.dim() == 3 else weight.detach().unsqueeze(1)
