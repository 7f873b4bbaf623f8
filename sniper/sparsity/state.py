# SPDX-License-Identifier: Apache-2.0
"""Saved masks of all stages: as packed bits, and carried over to another block size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sniper.ops.bits import pack_bits, unpack_bits
from sniper.sparsity.blocks import expand_blocks, is_eligible
from sniper.sparsity.schedule import SparsitySchedule

# By sparsity and name.
Masks = dict[float, dict[str, Tensor]]

STATE_VERSION = 1


def pack(masks: Masks) -> Masks:
    """Every mask as bits on the CPU."""
    # Packing where the mask is moves an eighth of the bytes.
    return {
        sparsity: {name: pack_bits(mask).cpu() for name, mask in stage.items()}
        for sparsity, stage in masks.items()
    }


def check_state(
    state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], schedule: SparsitySchedule
) -> None:
    """Raises a ValueError when a saved state does not fit."""
    if state.get("version") != STATE_VERSION:
        raise ValueError(
            f"sniper state: expected version {STATE_VERSION}, got {state.get('version')!r}"
        )
    for name, saved in state["shapes"].items():
        if name in shapes and tuple(saved) != tuple(shapes[name]):
            raise ValueError(
                f"sniper state: expected shape {tuple(shapes[name])} for {name}, got {tuple(saved)}"
            )
    if not set(state["shapes"]) & set(shapes):
        raise ValueError(
            f"sniper state: expected parameters such as {next(iter(shapes))}, "
            f"got {next(iter(state['shapes']), None)}"
        )
    left = state.get("left_dense", [])  # earlier versions do not say
    if not isinstance(left, list) or not all(isinstance(name, str) for name in left):
        raise ValueError(f"sniper state: expected names in left_dense, got {left!r:.80}")
    if state["masks"] is None:
        return
    position = state["sparsity"]
    # A stage that is behind us is not needed any more, and the dense one needs no mask.
    needed = [s for s in schedule.sparsities if s > 0 and (position is None or s <= position)]
    missing = [s for s in needed if s not in state["masks"]]
    if missing or (position is not None and position not in state["masks"]):
        scored = sorted(state["masks"], reverse=True)
        raise ValueError(
            f"schedule: expected sparsities among the scored {scored}, got {missing or position}"
        )


def unpack(
    state: Mapping[str, Any],
    block_size: int | None,
    shapes: Mapping[str, torch.Size],
    device: torch.device,
) -> tuple[Masks, Masks]:
    """Saved masks in blocks of `block_size`.

    A block is active if any of its weights was; a parameter that the saved state does not have is
    active throughout.

    Returns:
        The masks, and per weight what they add to the saved ones (empty for the same block size).
    """
    saved_size = state["block_size"]
    result: Masks = {}
    added: Masks = {}
    for sparsity, stage in state["masks"].items():
        result[sparsity], added[sparsity] = {}, {}
        for name, shape in shapes.items():
            if name not in stage:
                result[sparsity][name] = torch.ones(
                    mask_shape(shape, block_size), dtype=torch.bool, device=device
                )
                continue
            # Checkpoints are read onto the CPU; bits travel at an eighth of the bytes of bools.
            mask = unpack_bits(stage[name].cpu(), mask_shape(shape, saved_size)).to(device)
            if saved_size != block_size:
                # Through single weights, because blocks of 48 and 64 share no edges but those of
                # weights.
                per_weight = _per_weight(mask, saved_size, shape)
                mask = _any_in_block(per_weight, block_size)
                added[sparsity][name] = _per_weight(mask, block_size, shape) & ~per_weight
            result[sparsity][name] = mask
    # A schedule that ends dense can follow one that did not.
    result.setdefault(
        0.0,
        {
            name: torch.ones(mask_shape(shape, block_size), dtype=torch.bool, device=device)
            for name, shape in shapes.items()
        },
    )
    return result, added


def mask_shape(shape: torch.Size, block_size: int | None) -> tuple[int, ...]:
    """Shape of the mask of a weight of `shape`."""
    if block_size is None:
        return tuple(shape)
    if not is_eligible(torch.Size(shape), block_size):
        raise ValueError(f"block_size: expected a divisor of {tuple(shape)[:2]}, got {block_size}")
    n, c, *taps = shape
    return (n // block_size, *taps, c // block_size)


def _per_weight(mask: Tensor, block_size: int | None, shape: torch.Size) -> Tensor:
    return mask if block_size is None else expand_blocks(mask, block_size, shape)


def _any_in_block(mask: Tensor, block_size: int | None) -> Tensor:
    if block_size is None:
        return mask
    b = block_size
    # Any, not all or most: a weight that was trained must not be lost by a change of blocks.
    blocks = mask.unflatten(1, (-1, b)).any(2).unflatten(0, (-1, b)).any(1)
    return blocks if blocks.dim() == 2 else blocks.permute(0, 2, 1).contiguous()
