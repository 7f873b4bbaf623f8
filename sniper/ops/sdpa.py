# SPDX-License-Identifier: Apache-2.0
"""Attention by the fastest implementation that takes the mask, ours or one of torch's, on a GPU.

Flash attention takes no mask, and its form for sequences of several lengths takes no dropout. Here
it hides keys all the same: one more channel, 1 in every query, and in a key 0 or a number so low
that softmax makes it 0. A head of 192 channels becomes one of 200, so that it is timed like the
others, and not taken for granted.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sniper.ops import timings
from sniper.ops.once import made_once
from sniper.ops.transforms import transformed

# The last one takes every input, so there is always one that can run.
_IMPLEMENTATIONS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Fused implementations take only heads whose channels are a multiple of this.
_CHANNELS = 8


# Of q, k, v `[B, H, T, D]`, a share that dropout zeroes, and its seed, which is drawn where it is
# None; differentiable.
Ours = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, ours: Ours | None = None
) -> Tensor:
    """`dropout(softmax(q k^T / sqrt(D))) v`.

    Args:
        q, k, v: `[B, H, T, D]`, k and v of one length.
        mask: bool, broadcast to `[B, H, T, T]`, true where a key counts; None: all count.
        p: share of attention weights that dropout zeroes.
        ours: computes the same with this mask; one more candidate.

    Returns:
        `[B, H, T, D]`. On a GPU the implementation is chosen by measured forward and backward time
        at this shape, once; what cannot run there, or computes otherwise, is left out.
    """
    if not _chooses(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    noise = partial(_noise, q, k, v)
    timed, compared = _candidates(q, k, v, mask, p, ours)
    key = _key(q, k, mask, p)
    name = timings.fastest(key, timed, quiet=True, noise=noise, compared=compared)
    return _run(name, q, k, v, mask, p, ours)


def _chooses(q: Tensor) -> bool:
    # A compiled graph takes the choice that torch's compiler makes.
    return q.is_cuda and q.numel() > 0 and not torch.compiler.is_compiling() and not transformed()


def _run(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    p: float,
    ours: Ours | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    if name == "ours" and ours is not None:
        return ours(q, k, v, p, seed)
    with sdpa_kernel(_IMPLEMENTATIONS[name]):
        if name == "flash" and mask is not None:
            return _keys_hidden_by_a_channel(q, k, v, mask, p)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_added(mask, q), dropout_p=p)


def _added(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to scores for a mask."""
    if mask is None or mask.dtype != torch.bool:
        return mask

    def make() -> Tensor:
        zeros = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device)
        return zeros.masked_fill_(~mask, -math.inf)

    return made_once(mask, ("added", q.dtype), make)


Calls = dict[str, Callable[[], tuple[Tensor, ...]]]


def _candidates(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, ours: Ours | None = None
) -> tuple[Calls, Calls]:
    """Forward and backward of each, as it is timed, and as it is compared: without dropout, whose
    draws make results differ.
    """
    # One that is drawn might be a step's, which then would draw others where times are known.
    seed = cache(lambda: torch.zeros((), dtype=torch.int64, device=q.device))

    def run(name: str, p: float) -> tuple[Tensor, ...]:
        # Torch warns of each implementation that cannot run, and of all others that it was told to
        # leave alone. What is drawn here must not change what the model draws.
        with torch.random.fork_rng(_generators(q)), torch.enable_grad(), _quiet():
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            y = _run(name, leaves[0], leaves[1], leaves[2], mask, p, ours, seed())
            return y.detach(), *torch.autograd.grad(y, leaves, _gradient(y))

    def compare(name: str) -> tuple[Tensor, ...]:
        if p:
            run(name, p)  # not every implementation takes dropout
        return run(name, 0.0)

    names = [n for n in _IMPLEMENTATIONS if n != "flash" or mask is None or _hides_keys(mask)]
    names = names if ours is None else ["ours", *names]
    timed: Calls = {n: partial(run, n, p) for n in names}
    return timed, {n: partial(compare, n) for n in names}


def _gradient(y: Tensor) -> Tensor:
    """Some dL/dy. Not ones: then dq and dk are differences of nearly equal sums, of which little
    but rounding is left, and right implementations differ by as much as they compute.
    """
    batch, heads, length, channels = y.shape
    values = torch.arange(y.numel(), device=y.device).sin().to(y.dtype)
    # As it lies in a model: the heads of a row side by side.
    return values.view(batch, length, heads, channels).transpose(1, 2)


def _noise(q: Tensor, k: Tensor, v: Tensor) -> list[float]:
    """By how much y, dq, dk and dv of right implementations may differ: in dq and dk the scores'
    gradients, products of dL/dy with v, are rounded before they are summed.
    """
    scale = torch.finfo(q.dtype).eps / math.sqrt(q.shape[-1])
    q, k, v = (t.detach().float() for t in (q, k, v))
    largest = float(v.norm(dim=-1).max()) * math.sqrt(q.shape[-1])
    terms = [scale * largest * float(t.abs().max()) for t in (k, q)]
    return [0.0, *terms, 0.0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _generators(x: Tensor) -> list[int]:
    """The GPUs whose generators a call on `x` moves."""
    return [x.get_device()] if x.is_cuda else []


def _hides_keys(mask: Tensor) -> bool:
    """Whether a mask says the same to every head and query."""
    return mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1


def _keys_hidden_by_a_channel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
    """Attention without a mask that gives what a mask `[B, 1, 1, T]` would; 0 if no key counts."""
    channels = q.shape[-1]
    extra = _CHANNELS - channels % _CHANNELS
    counts = mask.transpose(2, 3)  # [B, 1, T, 1]
    first = torch.arange(extra, device=q.device) == 0
    # Every score is finite, as flash attention needs; the least value would overflow with a scale.
    low = -6e4 if q.dtype == torch.float16 else -1e30
    ones = first.to(q.dtype).expand(*q.shape[:-1], extra)
    hidden = torch.where(counts | ~first, 0.0, low).to(k.dtype)
    q = torch.cat([q, ones], -1)
    # What lies in a hidden key must not matter, be it infinite.
    k = torch.cat([torch.where(counts, k, 0), hidden.expand(*k.shape[:-1], extra)], -1)
    v = F.pad(torch.where(counts, v, 0), (0, extra))
    scale = 1 / math.sqrt(channels)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, scale=scale)
    return y[..., :channels]


def _key(q: Tensor, k: Tensor, mask: Tensor | None, p: float) -> str:
    batch, heads, length, channels = q.shape
    masked = "unmasked" if mask is None else "keys masked" if _hides_keys(mask) else "masked"
    dropout = " with dropout" if p else ""
    return (
        f"attention {timings.machine(q.device)} {q.dtype} heads {heads}x{channels} "
        f"2^{(batch * length).bit_length()} tokens of 2^{k.shape[2].bit_length()} keys "
        f"{masked}{dropout}"
    )
