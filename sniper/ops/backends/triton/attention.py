# SPDX-License-Identifier: Apache-2.0
"""The Triton backend's attention: key mask, softmax and dropout between the products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK, dropout_args
from sniper.ops.backends.triton.launch import arch, descriptor, kernels, on, usable
from sniper.ops.backends.triton.launch import check as check_tensor
from sniper.ops.once import made_once

DTYPES = (torch.bfloat16, torch.float16)
# Bytes that weights and gradients of scores may take between the two kernels of backward; more
# sequences take turns.
MOST_PARTS = 1 << 28
# What CUDA allows a grid's second and third sides.
_MOST_PROGRAMS = 65535


def serves(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether these kernels may run on `[B, T, C]` tensors: that they fit, and passed their check.

    Args:
        q, k, v: of shapes that fit together.
        heads: divides C.
    """
    if not usable(q) or q.dtype not in DTYPES or not _fits(q, k, heads):
        return False
    return selfcheck.trusted(q, ELEMENTWISE_BLOCK, selfcheck.ATTENTION)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    heads: int,
    p: float,
    seed: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`dropout(softmax(q k^T / sqrt(C / heads))) v`, head by head; 0 where all keys are hidden.

    Args:
        q: `[B, T, C]`, bfloat16 or float16, channels contiguous or it is copied.
        k, v: `[B, S, C]`.
        key_mask: bool `[B, S]`, true where a key counts; None: all count. Hidden keys are not read.
        p, seed: dropout zeroes what the CPU's kernel does.

    Returns:
        y `[B, T, C]`; and log2 of each row's sum of exponentials, float32 `[heads, B, T]`, for
        backward.

    Raises:
        ValueError: dtypes, devices or shapes that do not do, or `p` outside [0, 1).
    """
    _check(q, k, v, key_mask, heads)
    q, k, v = _readable(q), _readable(k), _readable(v)
    batch, queries, columns = q.shape
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    normal = q.new_empty(heads, batch, queries, dtype=torch.float32)
    if not y.numel():
        return y, normal
    pieces, config = _pieces(q, heads), _config("forward", q, heads)
    seed_there, threshold, keep_scale = dropout_args(p, _given(seed), q.device)
    tiles = -(-queries // config.queries)
    options = _options(config, pieces) | {"TN": config.tail}
    args: tuple[Any, ...] = (q, k, v, *_tiles(q, config.queries, pieces))
    args += (*_tiles(k, config.keys, pieces), *_tiles(v, config.keys, pieces))
    args += (y, *_tiles(y, config.queries, pieces), normal)
    args += (*_order(key_mask), seed_there, queries, k.shape[1], heads, batch, threshold)
    args += (*_strides(q, k, v), keep_scale, _scale(q, heads) * math.log2(math.e))
    with on(q.device):
        kernels().attention_forward[tiles, heads, batch](*args, **options)
    return y, normal


def attention_backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    y: Tensor,
    normal: Tensor,
    p: float,
    seed: int | Tensor | None,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv for dy `[B, T, C]`; the rest as `attention` took and gave it.

    Args:
        into: dq, dk and dv, of q's and k's shapes and dtype, channels contiguous, rows of all
            sequences a distance apart: columns of one tensor, say. They are written, and returned.

    Raises:
        ValueError: as there, or `into` of other shapes or strides.
    """
    heads = normal.shape[0]
    _check(q, k, v, key_mask, heads)
    for name, t in (("dy", dy), ("y", y)):
        check_tensor(name, t, q, tuple(q.shape))
    check_tensor("normal", normal, normal, (heads, *q.shape[:2]))
    dy, q, k, v = (_readable(t) for t in (dy, q, k, v))
    y, normal = y.contiguous(), normal.contiguous()
    if into is None:
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    else:
        dq, dk, dv = into
        for name, t, like in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
            check_tensor(name, t, q, tuple(like.shape))
            if t.stride()[::2] != (t.shape[1] * t.stride(1), 1) or _readable(t) is not t:
                raise ValueError(f"{name}: expected rows a distance apart, got {t.stride()}")
    if not q.numel() or not k.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    pass_ = _Backward(q, k, v, key_mask, p, seed, heads)
    with on(q.device):
        for first in range(0, q.shape[0], pass_.together):
            pass_.run(first, dy, y, normal, dq, dk, dv)
    return dq, dk, dv


class _Backward:
    """The launches of a backward pass, for as many sequences at a time as there is room for."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        p: float,
        seed: int | Tensor | None,
        heads: int,
    ):
        self.q, self.k, self.v, self.heads = q, k, v, heads
        self.order = _order(key_mask)
        self.seed, self.threshold, self.keep_scale = dropout_args(p, _given(seed), q.device)
        self.pieces = _pieces(q, heads)
        self.config, self.sums = _config("backward", q, heads), _config("sums", q, heads)
        batch, queries, _ = q.shape
        # Both kernels' tiles are powers of two.
        rows = _whole(queries, max(self.config.queries, self.sums.queries))
        columns = _whole(k.shape[1], max(self.config.keys, self.sums.keys))
        room = MOST_PARTS // (2 * heads * rows * columns * q.element_size())
        self.together = max(1, min(batch, room))
        self.parts = q.new_empty(2, self.together * heads, rows, columns)

    def run(
        self, first: int, dy: Tensor, y: Tensor, normal: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        """Sequences `first, first + 1, ...`."""
        q = self.q
        sequences = min(self.together, q.shape[0] - first)
        self._queries(first, sequences, dy, y, normal, dq)
        scale = _scale(q, self.heads)
        for part, x, out, factor in (
            (self.parts[0], dy, dv, self.keep_scale),
            (self.parts[1], q, dk, scale),
        ):
            self._sums(first, sequences, part, x, out, factor)

    def _queries(
        self, first: int, sequences: int, dy: Tensor, y: Tensor, normal: Tensor, dq: Tensor
    ) -> None:
        q, k, v, config = self.q, self.k, self.v, self.config
        _, _, rows, columns = self.parts.shape
        tiles = rows // config.queries
        scale = _scale(q, self.heads)
        args: tuple[Any, ...] = (dy, q, k, v)
        args += (*_tiles(dy, config.queries, self.pieces), *_tiles(q, config.queries, self.pieces))
        args += (*_tiles(k, config.keys, self.pieces), *_tiles(v, config.keys, self.pieces))
        tile = None
        if self.pieces["TMA"]:
            tile = descriptor(self.parts.flatten(1, 2), [2, config.queries, config.keys])
        args += (
            y,
            normal,
            dq,
            *_tiles(dq, config.queries, self.pieces),
            tile,
            self.parts,
            *self.order,
            self.seed,
        )
        args += (q.shape[1], k.shape[1], self.heads, q.shape[0], first, self.threshold)
        args += (*_strides(dy, q, k, v), dq.stride(1), columns, self.parts.stride(0))
        args += (self.keep_scale, scale, scale * math.log2(math.e))
        grid = (tiles, self.heads, sequences)
        options = _options(config, self.pieces) | {"TN": config.tail}
        kernels().attention_backward[grid](*args, **options)

    def _sums(
        self, first: int, sequences: int, part: Tensor, x: Tensor, out: Tensor, factor: float
    ) -> None:
        config, pieces = self.sums, self.pieces
        _, rows, columns = part.shape
        tiles = -(-out.shape[1] // config.keys)
        tile = descriptor(part, [1, config.queries, config.keys]) if pieces["TMA"] else None
        args = (part, x, tile, *_tiles(x, config.queries, pieces), out, *self.order)
        args += (x.shape[1], out.shape[1], self.heads, first, rows, *_strides(x))
        args += (out.stride(1), columns, factor)
        grid = (tiles, self.heads, sequences)
        kernels().attention_sums[grid](*args, **_options(config, pieces))


def _check(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, heads: int) -> None:
    check_tensor("q", q, q, (None, None, None))
    check_tensor("k", k, q, (q.shape[0], None, q.shape[2]))
    check_tensor("v", v, q, tuple(k.shape))
    if q.dtype not in DTYPES:
        raise ValueError(f"q: expected bfloat16 or float16, got {q.dtype}")
    if not _fits(q, k, heads):
        raise ValueError(
            f"q: expected heads of a multiple of 16 channels up to {configs.MOST_HEAD_CHANNELS} "
            f"and fewer than 2^31 scores a head, got {list(q.shape)}, {k.shape[1]} keys and "
            f"{heads} heads"
        )
    if key_mask is not None:
        check_shape("key_mask", key_mask, tuple(k.shape[:2]))
        if key_mask.dtype != torch.bool or key_mask.device != q.device:
            raise ValueError(
                f"key_mask: expected bool on {q.device}, got {key_mask.dtype} on {key_mask.device}"
            )


def _fits(q: Tensor, k: Tensor, heads: int) -> bool:
    channels, rest = divmod(q.shape[2], heads)
    fine = not rest and channels % 16 == 0 and 0 < channels <= configs.MOST_HEAD_CHANNELS
    fine = fine and max(q.shape[0], heads) <= _MOST_PROGRAMS
    # Within a sequence kernels count in 32 bits; 256 is more than a tile adds.
    longest = max(q.shape[1], k.shape[1]) + 256
    fine = fine and q.shape[0] * heads * longest < 2**31
    return fine and longest**2 < 2**31 and 4 * longest * q.shape[2] < 2**31


def _readable(t: Tensor) -> Tensor:
    """Itself where the copy engine and the kernels' 32-bit offsets reach all of it, else a copy."""
    size = t.element_size()
    dense = t.stride(2) == 1 and 0 < t.stride(1) <= 4 * t.shape[2] and t.stride(0) > 0
    aligned = t.data_ptr() % 16 == 0 and all(s * size % 16 == 0 for s in t.stride()[:2])
    return t if dense and aligned else t.clone(memory_format=torch.contiguous_format)


def _pieces(q: Tensor, heads: int) -> dict[str, Any]:
    """What the kernels need to know of a head's channels."""
    channels = q.shape[2] // heads
    first, second = configs.powers_of_two(channels)
    # The copy engine would read the next head's channels where a piece is wider than what is left.
    tma = configs.has_tma(arch(q.device)) and first + second == channels
    return {"D": channels, "D0": first, "D1": second, "TMA": tma}


def _config(op: str, q: Tensor, heads: int) -> configs.AttentionTile:
    return configs.attention(op, q.shape[2] // heads, arch(q.device))


def _options(config: configs.AttentionTile, pieces: dict[str, Any]) -> dict[str, Any]:
    options = {"BM": config.queries, "BN": config.keys, **pieces}
    options |= {"num_warps": config.warps, "num_stages": config.stages}
    return options | ({"maxnreg": config.registers} if config.registers else {})


def _tiles(t: Tensor, rows: int, pieces: dict[str, Any]) -> tuple[Any, Any]:
    """Descriptors of tiles of both pieces, None for what is not read by them."""
    if not pieces["TMA"]:
        return None, None
    second = descriptor(t, [1, rows, pieces["D1"]]) if pieces["D1"] else None
    return descriptor(t, [1, rows, pieces["D0"]]), second


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(s for t in tensors for s in t.stride()[:2])


def _given(seed: int | Tensor | None) -> int | Tensor:
    return 0 if seed is None else seed


def _scale(q: Tensor, heads: int) -> float:
    return 1 / math.sqrt(q.shape[2] // heads)


def _whole(length: int, tile: int) -> int:
    return -(-length // tile) * tile


def _order(key_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Where the keys that count lie, int32 `[B, S]`, and how many do, `[B, 2]`; made once for all
    layers.
    """
    if key_mask is None:
        return None, None
    return made_once(key_mask, "key order", lambda: _make_order(key_mask))


def _make_order(key_mask: Tensor) -> tuple[Tensor, Tensor]:
    batch, keys = key_mask.shape
    order = torch.empty(batch, keys, dtype=torch.int32, device=key_mask.device)
    counts = torch.empty(batch, 2, dtype=torch.int32, device=key_mask.device)
    with on(key_mask.device):
        mask = key_mask.contiguous().view(torch.uint8)
        kernels().key_order[(batch,)](mask, order, counts, keys, BN=configs.KEY_ORDER_TILE)
    return order, counts
