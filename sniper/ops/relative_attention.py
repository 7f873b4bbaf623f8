# SPDX-License-Identifier: Apache-2.0
"""Self-attention over relative positions (Transformer-XL, arXiv 1901.02860, section 3.3), as a
Conformer has it.

Written with torch's functions it holds scores of all positions, `[B, H, T, 2 T - 1]`, shifts them
by a copy, and visits `[B, H, T, T]` some ten times. For float32 on a CPU it is one kernel forward
and one backward here, that of `attention` with one more product; everything else runs by torch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.attention import check_settings
from sniper.ops.autocast import autocast_dtype
from sniper.ops.backends import elementwise
from sniper.ops.backends.cpu import attention as cpu
from sniper.ops.dropout import draw_seed
from sniper.ops.operation import operation
from sniper.ops.transforms import transformed

# q, k, v, queries for positions, and positions.
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def fuses_relative_attention(*tensors: Tensor) -> bool:
    """Whether one kernel takes such tensors, and nothing around needs torch's functions."""
    ours = all(t.dtype == torch.float32 and elementwise.takes_on_cpu(t) for t in tensors)
    return (
        ours and tensors[0].numel() > 0 and autocast_dtype(tensors[0]) is None and not transformed()
    )


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_q: Tensor,
    positions: Tensor,
    heads: int,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """`dropout(softmax((q k^T + s) / sqrt(C / heads))) v`, head by head, where `s[t, u]` is the
    product of row t of `position_q` with row T - 1 - t + u of `positions`.

    Args:
        q: `[B, T, C]`, with the bias for contents (u in the paper).
        k, v: `[B, T, C]`.
        position_q: `[B, T, C]`, queries with the bias for positions (v in the paper).
        positions: `[2 T - 1, C]`, embeddings of the distances T - 1 to 1 - T of a query behind its
            key, projected.
        heads: divides C.
        key_mask: bool `[B, T]`, true where a key counts; None: all count.
        dropout_p: share of attention weights that is zeroed, in [0, 1).

    Returns:
        `[B, T, C]`; 0 where all keys are hidden. Its gradient has none itself where there is
        dropout on a CPU.

    Raises:
        ValueError: shapes that do not fit together, or `dropout_p` outside [0, 1).
    """
    given = (q, k, v, position_q, positions)
    _check(given)
    check_settings(k, heads, key_mask, dropout_p)
    if fuses_relative_attention(*given):
        seed = draw_seed() if dropout_p else None
        return _relative_attention(*given, key_mask, heads, dropout_p, seed)[0]
    return _by_torch(given, key_mask, heads, dropout_p)


def _check(given: Operands) -> None:
    names = ("q", "k", "v", "position_q", "positions")
    shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(names, given, strict=True))
    q, k, v, position_q, positions = given
    if q.dim() != 3 or any(t.shape != q.shape for t in (k, v, position_q)):
        raise ValueError(f"relative_attention: expected four times [B, T, C], got {shapes}")
    if positions.shape != (max(2 * q.shape[1] - 1, 0), q.shape[2]):
        raise ValueError(f"relative_attention: expected positions [2 T - 1, C], got {shapes}")


def _by_torch(given: Operands, key_mask: Tensor | None, heads: int, p: float) -> Tensor:
    positions = given[4]
    q, k, v, position_q = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in given[:4])
    places = position_q @ positions.unflatten(1, (heads, -1)).permute(1, 2, 0)
    scores = (q @ k.transpose(2, 3) + _shift(places)) / math.sqrt(max(q.shape[3], 1))
    if key_mask is not None:
        hidden = ~key_mask[:, None, None]
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    else:
        weights = scores.softmax(-1)
    return (F.dropout(weights, p) @ v).transpose(1, 2).flatten(2)


def _shift(places: Tensor) -> Tensor:
    """`[..., T, 2 T - 1]` to `[..., T, T]`: row t from column T - 1 - t on."""
    length = places.shape[-2]
    if length == 0:
        return places[..., :0]
    # One column in front, and rows of one number less than that begin one number later each.
    flat = F.pad(places, (1, 0)).flatten(-2)[..., length:]
    return flat.unflatten(-1, (length, 2 * length - 1))[..., :length]


@operation("sniper::relative_attention")
def _relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_q: Tensor,
    positions: Tensor,
    key_mask: Tensor | None,
    heads: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result, and what backward needs of softmax, `[heads, B, T, 2]`."""
    drawn = 0 if seed is None else int(seed)
    return cpu.attention(q, k, v, key_mask, heads, p, drawn, (position_q, positions))


@_relative_attention.register_fake
def _(q, k, v, position_q, positions, key_mask, heads, p, seed):
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    return y, q.new_empty(heads, q.shape[0], q.shape[1], 2)


@operation("sniper::relative_attention_backward")
def _relative_attention_grad(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_q: Tensor,
    positions: Tensor,
    key_mask: Tensor | None,
    normal: Tensor,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    drawn = 0 if seed is None else int(seed)
    dq, dk, dv, dposition_q, dpositions = cpu.attention_backward(
        dy, q, k, v, key_mask, normal, p, drawn, positions=(position_q, positions)
    )
    return dq, dk, dv, dposition_q, dpositions


@_relative_attention_grad.register_fake
def _(dy, q, k, v, position_q, positions, key_mask, normal, p, seed):
    given = (q, k, v, position_q, positions)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in given)


def _save(ctx, inputs, output):
    *given, key_mask, ctx.heads, ctx.p, seed = inputs
    ctx.save_for_backward(*given, key_mask, output[1], seed)


def _backward(ctx, dy, _):
    q, k, v, position_q, positions, key_mask, normal, seed = ctx.saved_tensors
    given = (q, k, v, position_q, positions)
    if not torch.is_grad_enabled():
        return *_relative_attention_grad(dy, *given, key_mask, normal, ctx.p, seed), *[None] * 4
    # Somebody wants gradients of gradients.
    if ctx.p:
        raise RuntimeError(
            "relative_attention: expected one derivative, got a second one, which it does not have "
            "with dropout"
        )
    wanted = [t for t, need in zip(given, ctx.needs_input_grad, strict=False) if need]
    y = _by_torch(given, key_mask, ctx.heads, 0.0)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return *[next(found) if need else None for need in ctx.needs_input_grad[:5]], *[None] * 4


_relative_attention.register_autograd(_backward, setup_context=_save)
