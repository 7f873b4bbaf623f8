# SPDX-License-Identifier: Apache-2.0
"""Self-attention with dropout, without what torch's paths spend beside the products.

On a CPU torch's path for training with dropout copies q, k and v, draws a stored mask from a serial
generator, and visits the `[B, H, T, T]` scores about ten times. Here both products, softmax and
dropout are one kernel forward and one backward that keep a tile of scores in the cache: scores are
never in memory, and hidden keys cost nothing. On a GPU a key mask and dropout put torch's fast
implementations on slow paths; there kernels of ours are timed beside them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sniper.ops.backends import elementwise
from sniper.ops.backends.cpu import attention as cpu
from sniper.ops.backends.cpu.launch import empty
from sniper.ops.backends.triton import attention as triton
from sniper.ops.dropout import draw_seed
from sniper.ops.geometry import check_floating, check_share, check_tensor, columns_of
from sniper.ops.operation import operation
from sniper.ops.sdpa import scaled_dot_product
from sniper.ops.transforms import transformed


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """`dropout(softmax(q k^T / sqrt(C / heads))) v`, head by head.

    Args:
        q, k, v: `[B, T, C]`, k and v of one length.
        heads: divides C.
        key_mask: bool `[B, T]` of the keys, true where a key counts; None: all count.
        dropout_p: share of attention weights that is zeroed, in [0, 1).

    Returns:
        `[B, T, C]`.

    Raises:
        ValueError: shapes that do not fit together, values that are not floating-point numbers, or
            `dropout_p` outside [0, 1).
    """
    _check(q, k, v, heads, key_mask, dropout_p)
    ours = q.dtype == torch.float32 and elementwise.takes_on_cpu(q) and not transformed()
    # Without dropout torch's fused kernel is as fast, and it has second derivatives.
    if dropout_p and ours and not torch.is_autocast_enabled("cpu"):
        return _attention(q, k, v, key_mask, heads, dropout_p, draw_seed())[0]
    on_gpu = partial(attention_of_heads, key_mask) if _gpu_serves(q, k, v, heads) else None
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    y = scaled_dot_product(q, k, v, mask, dropout_p, on_gpu)
    return y.transpose(1, 2).flatten(2)


def _gpu_serves(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    if not q.is_cuda or not q.numel() or torch.compiler.is_compiling():
        return False
    # Another dtype under autocast: torch's implementations cast.
    cast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") != q.dtype
    return not cast and triton.serves(q, k, v, heads)


def attention_of_heads(
    key_mask: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p: float,
    seed: Tensor | None = None,
) -> Tensor:
    """Our kernels on `[B, H, T, D]` views of `[B, T, C]`; without a seed one is drawn."""
    heads = q.shape[1]
    q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
    if p and seed is None:
        seed = draw_seed(q.device)
    y = _attention(q, k, v, key_mask, heads, p, seed)[0]
    return y.unflatten(2, (heads, -1)).transpose(1, 2)


def _check(
    q: Tensor, k: Tensor, v: Tensor, heads: int, key_mask: Tensor | None, dropout_p: float
) -> None:
    for name, value in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, value)
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in (q, k, v))
        raise ValueError(f"attention: expected q, k, v of one dtype and device, got {kinds}")
    check_floating("q, k, v", q)
    if q.dim() != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
        shapes = ", ".join(str(list(t.shape)) for t in (q, k, v))
        raise ValueError(f"attention: expected q, k, v [B, T, C] that fit together, got {shapes}")
    check_settings(k, heads, key_mask, dropout_p)


def check_settings(k: Tensor, heads: int, key_mask: Tensor | None, dropout_p: float) -> None:
    """Refuses what does not fit keys `[B, T, C]`.

    Raises:
        ValueError: names expected and got.
    """
    if type(heads) is not int or heads < 1 or k.shape[2] % heads:
        raise ValueError(f"heads: expected a divisor of {k.shape[2]}, got {heads!r}")
    if key_mask is not None:
        check_tensor("key_mask", key_mask)
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != k.shape[:2]):
        raise ValueError(
            f"key_mask: expected bool {list(k.shape[:2])}, "
            f"got {key_mask.dtype} {list(key_mask.shape)}"
        )
    check_share("dropout_p", dropout_p, below_one=True)


def _on_cpu(t: Tensor) -> bool:
    return t.is_cpu


@operation("sniper::attention")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    heads: int,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result, and what backward needs of softmax: `[heads, B, T, 2]`, on a GPU `[heads, B,
    T]`. The seed may be None without dropout.
    """
    if _on_cpu(q):
        return cpu.attention(q, k, v, key_mask, heads, p, 0 if seed is None else int(seed))
    return triton.attention(q, k, v, key_mask, heads, p, seed)


@_attention.register_fake
def _(q, k, v, key_mask, heads, p, seed):
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    pair = (2,) if _on_cpu(q) else ()
    return y, q.new_empty(heads, q.shape[0], q.shape[1], *pair, dtype=torch.float32)


@operation("sniper::attention_backward")
def _attention_grad(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    y: Tensor | None,
    normal: Tensor,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(None, dy, q, k, v, key_mask, y, normal, p, seed)


@operation("sniper::attention_backward_into", mutates_args=("dq", "dk", "dv"))
def _attention_grad_into(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    y: Tensor | None,
    normal: Tensor,
    p: float,
    seed: Tensor | None,
) -> None:
    """`_attention_grad` with its results where they are wanted."""
    _gradients((dq, dk, dv), dy, q, k, v, key_mask, y, normal, p, seed)


def _gradients(
    into: tuple[Tensor, Tensor, Tensor] | None,
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    y: Tensor | None,
    normal: Tensor,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if y is None:
        drawn = 0 if seed is None else int(seed)
        dq, dk, dv = cpu.attention_backward(dy, q, k, v, key_mask, normal, p, drawn, into)
        return dq, dk, dv
    return triton.attention_backward(dy, q, k, v, key_mask, y, normal, p, seed, into)


@_attention_grad_into.register_fake
def _(dq, dk, dv, dy, q, k, v, key_mask, y, normal, p, seed):
    return None


@_attention_grad.register_fake
def _(dy, q, k, v, key_mask, y, normal, p, seed):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, key_mask, _, ctx.p, seed = inputs
    # The CPU's kernel finds the sums that y stands for as it goes.
    y = None if _on_cpu(q) else output[0]
    ctx.save_for_backward(q, k, v, key_mask, y, output[1], seed)


def _backward(ctx, dy, _):
    q, k, v, key_mask, y, normal, seed = ctx.saved_tensors
    rest = (dy, q, k, v, key_mask, y, normal, ctx.p, seed)
    # Where one product gave q, k and v, its gradient is wanted as one tensor.
    if columns_of((q, k, v)) is None or torch.is_grad_enabled():
        return *_attention_grad(*rest), *[None] * 4
    shape = (*q.shape[:2], 3 * q.shape[2])
    together = empty(q.dtype, *shape) if _on_cpu(q) else q.new_empty(shape)
    grads = together.chunk(3, -1)
    _attention_grad_into(*grads, *rest)
    return *grads, *[None] * 4


_attention.register_autograd(_backward, setup_context=_save)


def _save_nothing(ctx, inputs, output):
    pass


def _second_backward(ctx, *grads):
    raise RuntimeError(
        "sniper.ops.attention: expected one derivative, got a second one, which it does not have; "
        "with dropout_p=0 torch's own attention runs, and has it"
    )


_attention_grad.register_autograd(_second_backward, setup_context=_save_nothing)
