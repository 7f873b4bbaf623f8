# SPDX-License-Identifier: Apache-2.0
"""Torch's attention by the fastest of its implementations that takes the mask, on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sniper.ops import timings
from sniper.ops.transforms import transformed

# The last one takes everything. Flash attention takes no mask.
_IMPLEMENTATIONS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """`dropout(softmax(q k^T / sqrt(D))) v`.

    Args:
        q, k, v: `[B, H, T, D]`, k and v of one length.
        mask: bool, broadcast to `[B, H, T, T]`, true where a key counts; None: all count.
        p: share of attention weights that dropout zeroes.

    Returns:
        `[B, H, T, D]`. On a GPU the implementation is chosen by measured forward and backward time
        at this shape, once; what cannot run there, or computes otherwise, is left out.
    """
    if not _chooses(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    name = timings.fastest(_key(q, k, mask), _candidates(q, k, v, mask), quiet=True)
    with sdpa_kernel(_IMPLEMENTATIONS[name]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def _chooses(q: Tensor) -> bool:
    # A compiled graph takes the choice that torch's compiler makes.
    return q.is_cuda and q.numel() > 0 and not torch.compiler.is_compiling() and not transformed()


def _candidates(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None):
    def run(implementation: SDPBackend) -> tuple[Tensor, ...]:
        # Without dropout, whose draws would make results differ.
        with torch.enable_grad(), sdpa_kernel(implementation):
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            y = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
            return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))

    names = [n for n in _IMPLEMENTATIONS if mask is None or n != "flash"]
    return {n: (lambda n=n: run(_IMPLEMENTATIONS[n])) for n in names}


def _key(q: Tensor, k: Tensor, mask: Tensor | None) -> str:
    batch, heads, length, channels = q.shape
    masked = "masked" if mask is not None else "unmasked"
    return (
        f"attention {timings.machine(q.device)} {q.dtype} heads {heads}x{channels} "
        f"2^{(batch * length).bit_length()} tokens of 2^{k.shape[2].bit_length()} keys {masked}"
    )
