# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel that exchanges active weights' gradients alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
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

    The first two backward passes exchange everything: DDP orders its buckets anew after the first.

    Args:
        ddp: around the model of `snip`, without another communication hook.
        snip: whose masks say what is active, at each moment anew.
        dtype: in which gradients travel and are added up: float32, or bfloat16 for half the bytes.

    Returns:
        The exchange, whose `bytes` count what this rank has sent.

    Raises:
        ValueError: no DDP, one around another model, no Sniper, another dtype.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise ValueError(f"ddp: expected a DistributedDataParallel, got {ddp!r:.80}")
    if not isinstance(snip, Sniper):
        raise ValueError(f"snip: expected a Sniper, got {snip!r:.80}")
    own, wrapped = snip.masked_parameters(), {id(p) for p in ddp.parameters()}
    if any(id(p) not in wrapped for p in own.values()):
        raise ValueError("snip: expected that of the model inside ddp, got one of another model")
    exchange = GradientExchange(snip, dtype)
    ddp.register_comm_hook(_Buckets(exchange), _hook)
    return exchange


def _hook(state, bucket):
    # Without annotations: DDP compares them with types, and here they would be text.
    return state.average(bucket)


class _Buckets:
    """Where in DDP's buckets a gradient lies.

    A bucket holds each gradient in the memory order that its parameter had when the bucket was
    made, which DDP tells nobody; a convolution's weight changes its order with its first mask. So
    it is found out, once, by looking: the gradient itself is there too.
    """

    def __init__(self, exchange: GradientExchange):
        self._exchange = exchange
        self._passes = 0
        self._strides: dict[int, list[tuple[int, ...]]] = {}

    def average(self, bucket: Any) -> torch.futures.Future[Any]:
        """A communication hook of DDP: the mean of a `GradBucket` over all ranks."""
        buffer, strides = bucket.buffer(), self._strides.get(bucket.index())
        if strides is None and self._passes:
            self._look(bucket)
        self._passes += bucket.is_last()
        if strides is None:
            self._exchange.bytes += buffer.numel() * buffer.element_size()
            work = dist.all_reduce(buffer.div_(dist.get_world_size()), async_op=True)
            assert work is not None
            return work.get_future().then(lambda done: done.value()[0])
        places = zip(bucket.gradients(), bucket.parameters(), strides, strict=True)
        # Views of the bucket's buffer: what is put there is in it.
        pairs = [(p, g.as_strided(p.shape, order)) for g, p, order in places]
        done = self._exchange.average(pairs)

        def whole(done: Any) -> Tensor:
            done.value()  # raises what the exchange has raised
            return buffer

        return done.then(whole)

    def _look(self, bucket: Any) -> None:
        """Remembers the orders, if there is no doubt on any rank; all learn the same."""
        pairs = list(zip(bucket.gradients(), bucket.parameters(), strict=True))
        # A gradient of zeros looks alike in any order; the others' may not.
        fits = [[_is_at(p, g, order) for order in _orders(p, g)] for g, p in pairs]
        flags = torch.tensor([flag for each in fits for flag in each], dtype=torch.int32)
        flags = flags.to(bucket.buffer().device)
        dist.all_reduce(flags, dist.ReduceOp.MIN)
        left, strides = iter(flags.tolist()), []
        for g, p in pairs:
            good = {order for order in _orders(p, g) if next(left)}
            if len(good) != 1:
                return
            strides.append(good.pop())
        self._strides[bucket.index()] = strides


def _orders(p: Tensor, g: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The orders that a gradient may lie in: that of its shape, and that of its parameter."""
    return g.stride(), p.stride()


def _is_at(p: Tensor, g: Tensor, order: tuple[int, ...]) -> bool:
    return p.grad is None or torch.equal(g.as_strided(p.shape, order), p.grad)
