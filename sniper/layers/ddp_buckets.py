# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel keeps up with a weight that changes its order in memory.

DDP packs a gradient into its bucket in the order that the weight had when the bucket was made, and
takes the sum out in the order that the weight has now. A convolution's weight changes its order
with its first mask; its gradient would come back with its values in wrong places, and nobody would
be told. So DDP makes its buckets anew.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def several() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def find_ddp(weights: Sequence[Tensor]) -> list[DistributedDataParallel]:
    """Every DDP around one of the weights; a weight does not know what it is in."""
    wanted = {id(w) for w in weights}
    # By type: objects that stand for others may load them, or fail, when asked what they are.
    everything = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
    return [ddp for ddp in everything if any(id(p) in wanted for p in ddp.parameters())]


def make_buckets_anew(weights: Sequence[Tensor]) -> None:
    """Call when weights have changed their order in memory.

    Raises:
        ValueError: a DDP whose buckets cannot be made anew.
    """
    if not weights or not several():
        return
    for ddp in find_ddp(weights):
        hooks = list(ddp._comm_hooks)
        if ddp.mixed_precision is not None or ddp.process_group is not dist.group.WORLD:
            raise ValueError(
                "model: expected DistributedDataParallel over all processes and without "
                "mixed_precision, or one made after the first masks, got another with "
                "convolutions: call Sniper.step before you make it"
            )
        ddp._comm_hooks.clear()
        # What unpickling does: it makes the buckets of the weights as they are now.
        ddp.__setstate__(ddp.__getstate__())
        for hook, state in hooks:
            ddp.register_comm_hook(state, hook)
