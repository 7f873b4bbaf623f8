# SPDX-License-Identifier: Apache-2.0
"""Weights of which each process holds a part: no mask can be put on one.

A mask decides over whole weights, kernels read them by their address, and what is pruned is zeroed
there. A part has none of that, and a kernel that read one would read other memory.
"""

from __future__ import annotations

from torch import Tensor

_DTENSOR = "a DTensor (fully_shard, or tensor parallelism)"
_FLAT = "a part of a flat parameter (FullyShardedDataParallel)"


def sharding_of(value: object) -> str:
    """Who has sharded a tensor, in words; "" where it is whole."""
    # By what they have and not by class: importing DTensor takes a second, and this runs inside of
    # what torch.compile traces. Its class has them: to look for what is not there costs an object
    # five times as much, and this is asked for every parameter at every step.
    if hasattr(type(value), "placements"):
        return _DTENSOR
    return _FLAT if getattr(value, "_fsdp_flattened", False) else ""


def check_whole(name: str, value: Tensor) -> None:
    """Refuses a tensor of which this process holds a part.

    Raises:
        ValueError: names it, who sharded it, and what to use instead.
    """
    how = sharding_of(value)
    if how:
        raise ValueError(
            f"{name}: expected a whole parameter on every process, got {how}: a mask is over a "
            "whole weight; use DistributedDataParallel, and sniper.distributed.compress_gradients "
            "for an exchange that costs what is active"
        )
