# SPDX-License-Identifier: Apache-2.0
"""Saliencies into masks, masks into layouts: the door to `csrc/mask_update.h`.

`pool`, `plan` and `rebuild` run in the extension where it can take the tensors, and otherwise as
their `_reference` does, which says in plain torch what they compute. Scoring plans the masks of all
stages, so a later change only writes indices and copies blocks: on a GPU it waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sniper import _C
from sniper.layers.masked import BlockMaskedLayer
from sniper.sparsity.masking import expand_blocks, pool_blocks
from sniper.sparsity.schedule import check_sparsity
from sniper.sparsity.scoring import check_present, check_saliency
from sniper.sparsity.state import Stages, nested_masks

# Index arrays are int32.
MOST_VALUES = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """The masks of every scheduled sparsity.

    Attributes:
        masks: bool masks by sparsity and name, the highest sparsity first.
        counts: how many entries of each mask are True, known to the host.
    """

    masks: Stages
    counts: dict[float, dict[str, int]]

    @classmethod
    def of(cls, masks: Stages) -> Plan:
        """The plan of masks that are there already; counts them."""
        return cls(masks, {s: {n: int(m.sum()) for n, m in st.items()} for s, st in masks.items()})


@dataclass(frozen=True)
class Change:
    """A new mask for one layer.

    Attributes:
        layer: whose weight and layout change.
        mask: bool of `layer.block_mask_shape`, on the weight's device.
        count: number of active blocks.
        init: values for blocks that become active, of the weight's shape; None leaves zeros there.
    """

    layer: BlockMaskedLayer
    mask: Tensor
    count: int
    init: Tensor | None = None


def pool(weight: Tensor, gradient: Tensor, block_size: int) -> Tensor:
    """Block saliencies `sum |weight * gradient|`, without a tensor of the weight's size.

    Args:
        weight: `[N, K]` or `[N, C, taps]` in any memory order; N and K (or C) divide by the block.
        gradient: of the same shape, summed over the scoring batches.
        block_size: edge of a block.

    Returns:
        `[N/b, K/b]` or `[N/b, taps, C/b]`, of the weight's dtype. In the extension each block is
        added up in one fixed order, the same on every device and for any number of threads.

    Raises:
        ValueError: shapes that differ, or that blocks do not divide.
    """
    if gradient.shape != weight.shape:
        raise ValueError(
            f"gradient: expected shape {tuple(weight.shape)}, got {tuple(gradient.shape)}"
        )
    if not _float32_in_reach([weight, gradient]) or weight.dim() not in (2, 3):
        return pool_reference(weight, gradient, block_size)
    b, (n, c, *taps) = block_size, weight.shape
    if n % b or c % b:
        raise ValueError(f"block_size: expected a divisor of {(n, c)}, got {b}")
    scores = torch.empty((n // b, *taps, c // b), dtype=torch.float32, device=weight.device)
    shape = (n // b, taps[0] if taps else 1, c // b, b)
    args = (_strided(weight), _strided(gradient), shape, scores.data_ptr())
    _call("pool_saliency", weight.device, *args)
    return scores


def pool_reference(weight: Tensor, gradient: Tensor, block_size: int) -> Tensor:
    """`pool` in plain torch."""
    return pool_blocks({"weight": (weight * gradient).abs_()}, block_size)["weight"]


def plan(
    scores: dict[str, Tensor],
    sparsities: Sequence[float],
    max_param_sparsity: float = 1.0,
    nested: bool = True,
) -> Plan:
    """The masks of every sparsity: what `sniper.masks` makes of these scores, to the bit.

    Args:
        scores: saliencies >= 0 by name, of blocks or of single weights.
        sparsities: fractions in [0, 1].
        max_param_sparsity: the cap, in [0, 1].
        nested: each stage also keeps what the one before had, where the cap chose at random.

    Raises:
        ValueError: a fraction outside [0, 1]; scores that are missing, NaN, infinite, negative, on
            several devices, or 2^31 and more.
    """
    stages = sorted({check_sparsity(s, "sparsity") for s in sparsities}, reverse=True)
    cap = check_sparsity(max_param_sparsity, "max_param_sparsity")
    check_present(scores)
    n = sum(s.numel() for s in scores.values())
    if n > MOST_VALUES:
        raise ValueError(f"saliency: expected fewer than 2^31 values, got {n:,}")
    if not _float32_in_reach(scores.values()):
        return plan_reference(scores, stages, cap, nested)
    parts = [s.detach().reshape(-1) for s in scores.values()]
    values = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    sizes = [p.numel() for p in parts]
    run = _plan_cpu if values.device.type == "cpu" else _plan_cuda
    masks, counts, suspects = run(values, sizes, [int(s * n) for s in stages], cap, nested)
    if suspects:  # or just -0
        check_saliency(scores)
    return Plan(
        {
            s: {k: m.view(v.shape) for m, (k, v) in zip(flat, scores.items(), strict=True)}
            for s, flat in zip(stages, (row.split(sizes) for row in masks), strict=True)
        },
        {
            s: dict(zip(scores, row, strict=True))
            for s, row in zip(stages, counts.tolist(), strict=True)
        },
    )


def plan_reference(
    scores: dict[str, Tensor], sparsities: Sequence[float], cap: float, nested: bool
) -> Plan:
    """`plan` in plain torch."""
    return Plan.of(nested_masks(scores, sparsities, cap, None, nested))


def _plan_cpu(
    values: Tensor, sizes: list[int], ranks: list[int], cap: float, nested: bool
) -> tuple[Tensor, Tensor, int]:
    """Masks `[stages, n]`, their counts `[stages, layers]`, and how many values look wrong."""
    masks = torch.empty((len(ranks), values.numel()), dtype=torch.bool)
    counts = torch.empty((len(ranks), len(sizes)), dtype=torch.int64)
    offsets, wanted = _offsets(sizes), torch.tensor(ranks)
    suspects = _C.plan_masks(
        (values.data_ptr(), offsets.data_ptr(), len(sizes)),
        (wanted.data_ptr(), len(ranks), cap, nested),
        masks.data_ptr(),
        counts.data_ptr(),
        torch.get_num_threads(),
    )
    return masks, counts, suspects


def _plan_cuda(
    values: Tensor, sizes: list[int], ranks: list[int], cap: float, nested: bool
) -> tuple[Tensor, Tensor, int]:
    """The same on a GPU; waits for it once, for the counts."""
    to = partial(torch.Tensor.to, device=values.device)
    masks = torch.empty((len(ranks), values.numel()), dtype=torch.bool, device=values.device)
    # The last row is for what looks wrong.
    counts = torch.zeros((len(ranks) + 1, len(sizes)), dtype=torch.int64, device=values.device)
    offsets, wanted = to(_offsets(sizes)), to(torch.tensor(ranks))
    caps = to(torch.tensor([min(n, 1 + int(cap * n)) for n in sizes]))
    choices = None
    if cap < 1:
        by_size = {n: fixed_choice(n, int(cap * n)) for n in set(sizes)}
        choices = to(torch.cat([by_size[n] for n in sizes]))
    workspace = _C.plan_workspace(len(ranks), len(sizes))
    workspace = torch.empty(workspace, dtype=torch.uint8, device=values.device)
    _call(
        "plan_masks",
        values.device,
        (values.data_ptr(), offsets.data_ptr(), len(sizes)),
        values.numel(),
        max(sizes),
        (wanted.data_ptr(), len(ranks), cap, nested),
        caps.data_ptr(),
        0 if choices is None else choices.data_ptr(),
        masks.data_ptr(),
        counts.data_ptr(),
        counts[-1].data_ptr(),
        workspace.data_ptr(),
    )
    counts = counts.cpu()
    return masks, counts[:-1], int(counts[-1, 0])


def fixed_choice(n: int, pruned: int) -> Tensor:
    """`[False] * pruned + [True] * (n - pruned)` after `random.Random(0).shuffle`, bool `[n]`."""
    keep = torch.empty(n, dtype=torch.bool)
    _C.fixed_choice(n, pruned, keep.data_ptr())
    return keep


def rebuild(changes: Sequence[Change]) -> None:
    """Puts masks on layers: writes their index arrays, zeroes blocks that are pruned now, copies
    initial values into blocks that become active, and touches nothing else.

    The first mask of a layer prunes a weight that was dense; nothing becomes active then. Each
    layout's `version` goes up by one.

    Raises:
        ValueError: a mask or initial values of another shape, a mask that is not bool, 2^31 blocks
            and more.
    """
    for change in changes:
        _check(change)
    weights = [c.layer.weight for c in changes]
    if not changes or not _in_reach(weights):
        return rebuild_reference(changes)
    device = weights[0].device
    kept: list[Tensor] = []  # what the table points to besides layers
    rows, blocks = [], 0
    for change in changes:
        rows.append(_row(change, blocks, kept))
        blocks += change.mask.numel()
    table = torch.tensor(rows)
    if device.type == "cpu":
        _call("update_layers", device, table.data_ptr(), len(rows))
    else:
        table = table.pin_memory().to(device, non_blocking=True)
        positions = torch.empty(blocks, dtype=torch.int32, device=device)
        args = (table.data_ptr(), len(rows), blocks, positions.data_ptr())
        _call("update_layers", device, *args)
    torch.autograd.graph.increment_version(weights)
    for change in changes:
        change.layer.layout.rewritten(change.count)


@torch.no_grad()
def rebuild_reference(changes: Sequence[Change]) -> None:
    """`rebuild` in plain torch."""
    for change in changes:
        layer, before = change.layer, change.layer.block_mask
        layer.set_block_mask(change.mask)
        if before is None or change.init is None:
            continue
        newly = expand_blocks(change.mask & ~before, layer.block_size, layer.weight.shape)
        init = change.init.to(layer.weight.device)
        layer.weight.data.copy_(torch.where(newly, init, layer.weight.data))


def _row(change: Change, first_block: int, kept: list[Tensor]) -> list[int]:
    """The words of `LayerUpdate` in csrc/mask_update.h."""
    layer = change.layer
    had_mask = layer._ensure_layout()
    layout, weight = layer.layout, layer.weight
    mask = change.mask.contiguous()
    kept.append(mask)
    init = 0
    if had_mask and change.init is not None:
        kept.append(like(change.init, weight))
        init = kept[-1].data_ptr()
    arrays = (
        layout.block_mask,
        *(layout.crow_indices, layout.col_indices, layout.row_indices, layout.row_order),
        *(layout.crow_indices_t, layout.col_indices_t, layout.permutation_t, layout.row_order_t),
        weight,
    )
    b = layer.block_size
    sizes = (*layout.shape, b, b * weight.element_size(), first_block, had_mask)
    return [*map(int, sizes), mask.data_ptr(), *(a.data_ptr() for a in arrays), init]


def like(init: Tensor, weight: Tensor) -> Tensor:
    """`init` with the weight's device, dtype and memory order; itself where it has them."""
    init = init.to(weight.device, weight.dtype)
    return init if init.stride() == weight.stride() else torch.empty_like(weight).copy_(init)


def _check(change: Change) -> None:
    layer, mask = change.layer, change.mask
    if mask.dtype != torch.bool or tuple(mask.shape) != layer.block_mask_shape:
        raise ValueError(
            f"mask: expected bool {layer.block_mask_shape}, got {mask.dtype} {tuple(mask.shape)}"
        )
    if mask.device != layer.weight.device:
        raise ValueError(f"mask: expected one on {layer.weight.device}, got {mask.device}")
    if mask.numel() > MOST_VALUES:
        raise ValueError(f"mask: expected fewer than 2^31 blocks, got {mask.numel():,}")
    if change.init is not None and change.init.shape != layer.weight.shape:
        expected, got = tuple(layer.weight.shape), tuple(change.init.shape)
        raise ValueError(f"init: expected shape {expected}, got {got}")


def _in_reach(tensors: Iterable[Tensor]) -> bool:
    """Whether the extension can take tensors where these are."""
    devices = {t.device for t in tensors}
    kinds = {"cpu", "cuda"} if _C.with_cuda else {"cpu"}
    return len(devices) == 1 and devices.pop().type in kinds


def _float32_in_reach(tensors: Iterable[Tensor]) -> bool:
    tensors = list(tensors)
    return _in_reach(tensors) and all(t.dtype == torch.float32 for t in tensors)


def _strided(weight: Tensor) -> tuple[int, int, int, int]:
    """Address, and strides of row, channel and tap."""
    return (weight.data_ptr(), *weight.stride(), *[0] * (3 - weight.dim()))


def _offsets(sizes: list[int]) -> Tensor:
    """int64 `[layers + 1]`."""
    return torch.tensor([0, *sizes]).cumsum(0)


def _call(name: str, device: torch.device, *args: object) -> None:
    """Runs `name` of the extension: on torch's threads, or on the current stream."""
    if device.type == "cpu":
        getattr(_C, name)(*args, torch.get_num_threads())
        return
    with torch.cuda.device(device):
        getattr(_C, f"{name}_cuda")(*args, torch.cuda.current_stream(device).cuda_stream)
