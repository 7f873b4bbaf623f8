# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel that exchanges active weights' gradients alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sniper.sparsity.exchange import GradientExchange
from sniper.sparsity.sniper import Sniper


def compress_gradients(
    ddp: DistributedDataParallel, snip: Sniper, dtype: torch.dtype = torch.float32
) -> GradientExchange:
    """Has DDP exchange the gradients of active weights alone; what it computes stays the mean.

        ddp = torch.nn.parallel.DistributedDataParallel(model)
        sniper.distributed.compress_gradients(ddp, snip)

    Args:
        ddp: around the model of `snip`, without another communication hook.
        snip: whose masks say what is active, at each moment anew.
        dtype: in which gradients travel and are added up: float32, or bfloat16 for half the bytes.

    Returns:
        The exchange, whose `bytes` count what this rank has sent.

    Raises:
        ValueError: no DDP, one around another model or with another communication hook, no Sniper,
            another dtype.
    """
    ddp = getattr(ddp, "_orig_mod", ddp)  # what torch.compile gave
    if not isinstance(ddp, DistributedDataParallel):
        raise ValueError(f"ddp: expected a DistributedDataParallel, got {ddp!r:.80}")
    if not isinstance(snip, Sniper):
        raise ValueError(f"snip: expected a Sniper, got {snip!r:.80}")
    own, wrapped = snip.masked_parameters(), {id(p) for p in ddp.parameters()}
    if any(id(p) not in wrapped for p in own.values()):
        raise ValueError("snip: expected that of the model inside ddp, got one of another model")
    exchange = GradientExchange(snip, dtype)
    try:
        ddp.register_comm_hook(_Buckets(exchange), _hook)
    except RuntimeError as error:
        if "can only be called once" not in str(error):
            raise
        raise ValueError(
            "ddp: expected one without a communication hook, got one that has a hook already: "
            "leave that out, or do without compress_gradients"
        ) from None
    return exchange


def _hook(state, bucket):
    # Without annotations: DDP compares them with types, and here they would be text.
    return state.average(bucket)


class _Buckets:
    """DDP's buckets, of which what is active travels."""

    def __init__(self, exchange: GradientExchange):
        self._exchange = exchange

    def average(self, bucket: Any) -> torch.futures.Future[Any]:
        """A communication hook of DDP: the mean of a `GradBucket` over all ranks."""
        buffer = bucket.buffer()
        # Views of the bucket's buffer: what is put there is in it.
        places = zip(bucket.parameters(), bucket.gradients(), strict=True)
        done = self._exchange.average([(p, _in_order(p, g)) for p, g in places])

        def whole(done: Any) -> Tensor:
            done.value()  # raises what the exchange has raised
            return buffer

        return done.then(whole)


def _in_order(p: Tensor, g: Tensor) -> Tensor:
    """A gradient as it lies in a bucket: in the order of its parameter, which DDP tells nobody;
    its views have the order of the shape. `make_buckets_anew` keeps it so.
    """
    dense = torch.ops.aten.is_non_overlapping_and_dense(p)
    return g.as_strided(p.shape, p.stride()) if dense else g
