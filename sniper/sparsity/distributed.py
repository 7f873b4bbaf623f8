# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model must score it alike and mask it alike."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sniper.layers.ddp_buckets import several

__all__ = [
    "BUCKET",
    "RankLost",
    "RanksDiffer",
    "check_same",
    "checksum",
    "found_by_all",
    "lost_if_fails",
    "several",
    "smallest",
    "sum_over_ranks",
]

# A collective call takes many small tensors as one of at most this many values.
BUCKET = 1 << 23


class RankLost(RuntimeError):
    """An exchange that cannot be finished: another rank has ended, or did not answer in time."""


class RanksDiffer(RuntimeError):
    """Ranks that train different models; the text is the whole message."""


@contextlib.contextmanager
def lost_if_fails() -> Iterator[None]:
    """What torch raises inside, in an exchange with other ranks, becomes a `RankLost`."""
    try:
        yield
    except RankLost:  # it has been said in better words
        raise
    except RuntimeError as error:
        # gloo begins with the line of its source.
        reason = re.sub(r"^\[\S+:\d+\] ", "", " ".join(str(error).split()))[:200]
        raise RankLost(f"the exchange with other ranks failed: {reason}") from error


@torch.no_grad()
def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all ranks, the same bits everywhere; half precision is
    added up in float32.

    Args:
        tensors: on one device, of the same shapes in the same order on every rank.
    """
    for bucket in _buckets(tensors):
        # A sum over many ranks in half precision would lose the small gradients, which decide near
        # the threshold.
        wide = torch.promote_types(bucket[0].dtype, torch.float32)
        flat = torch.cat([t.reshape(-1).to(wide) for t in bucket])
        with lost_if_fails():
            dist.all_reduce(flat)
        sums = flat.split([t.numel() for t in bucket])
        for t, total in zip(bucket, sums, strict=True):
            t.copy_(total.view(t.shape))


def checksum(named: Mapping[str, Iterable[Tensor]]) -> int:
    """63 bits of a hash over names, dtypes, shapes and values, whatever the order of names."""
    digest = hashlib.blake2b(digest_size=8)
    # Sorted, because ranks may have built their dictionaries in another order.
    for name, tensors in sorted(named.items()):
        digest.update(name.encode())
        for t in tensors:
            digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
            digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    # One bit less: collectives carry signed 64-bit integers.
    return int.from_bytes(digest.digest(), "little") >> 1


def check_same(what: str, value: int, device: torch.device) -> None:
    """Raises a `RanksDiffer` on every rank, with the values of all, where they differ.

    Args:
        what: what the value stands for, in words.
        value: of this rank, in [0, 2^63).
        device: where the model is.
    """
    values = _gather(value, device)
    if len(set(values)) > 1:
        got = ", ".join(f"{v:#x} on rank {rank}" for rank, v in enumerate(values))
        raise RanksDiffer(
            f"{what}: expected the same on every rank, got {got}: "
            "start every rank from the same weights, seed, configuration and checkpoint"
        )


def found_by_all(found: Sequence[str], names: Sequence[str], like: Tensor) -> list[str]:
    """Those of the names that every rank has found.

    Args:
        found: by this rank.
        names: the same on every rank.
        like: lies on the device of the model.
    """
    flags = like.detach().new_tensor([name in found for name in names], dtype=torch.float32)
    sum_over_ranks([flags])
    world = dist.get_world_size()
    return [name for name, count in zip(names, flags.tolist(), strict=True) if count == world]


def smallest(value: int, device: torch.device) -> int:
    """The smallest value of any rank."""
    return min(_gather(value, device))


def _gather(value: int, device: torch.device) -> list[int]:
    # NCCL moves tensors on GPUs alone, gloo works best on the host.
    where = device if "nccl" in str(dist.get_backend()) else torch.device("cpu")
    mine = torch.tensor([value], dtype=torch.int64, device=where)
    all_ = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    with lost_if_fails():
        dist.all_gather(all_, mine)
    return [int(v) for v in all_]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, together while they have one dtype and fit into a bucket."""
    buckets: list[list[Tensor]] = []
    room = 0
    for t in tensors:
        if buckets and t.dtype == buckets[-1][0].dtype and t.numel() <= room:
            buckets[-1].append(t)
            room -= t.numel()
        else:
            buckets.append([t])
            room = BUCKET - t.numel()
    return buckets
