# SPDX-License-Identifier: Apache-2.0
"""Dropout from a counter, also of positions added, the gradient of ReLU and dropout, and sums of
columns for the bias.
"""

import triton
import triton.language as tl

from .common import kept


@triton.jit(do_not_specialize=["tokens", "threshold"])
def dropout(
    x,  # [tokens, columns], contiguous
    y,
    seed,  # int64 [] or None
    tokens,
    columns,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    RELU: tl.constexpr,
):
    """`y = dropout(relu(x))`, the relu if RELU: the end of a product as a pass of its own."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    inside = (m < tokens)[:, None] & (n < columns)[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    if seed is not None:
        keep = kept(tl.load(seed), m0, n0, columns, threshold, BM, BN)
        value = tl.where(keep, value * scale, 0.0)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def relu_dropout_backward(
    dy,  # [tokens, columns], contiguous
    y,
    dz,
    sums,  # float32 [chunks, columns] or None
    tokens,
    columns,
    chunk,  # rows of a program, a multiple of BM
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """`dz = dy * scale` where y > 0, else 0; `sums[chunk] = sum of the chunk's rows of dz`.

    y > 0 tells both what ReLU let through and what dropout kept, so no mask is drawn again.
    """
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0).to(tl.int64) * chunk
    total = tl.zeros((BN,), tl.float32)
    for m0 in range(first, min(first + chunk, tokens), BM):
        m = m0 + tl.arange(0, BM)
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        inside = (m < tokens)[:, None] & (n < columns)[None, :]
        gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
        output = tl.load(y + offsets, mask=inside, other=0.0)
        gradient = tl.where(output <= 0, 0.0, gradient * scale)
        tl.store(dz + offsets, gradient.to(dz.dtype.element_ty), mask=inside)
        if sums is not None:
            total += tl.sum(gradient, 0)
    if sums is not None:
        tl.store(sums + tl.program_id(0).to(tl.int64) * columns + n, total, mask=n < columns)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def column_sums(
    x,  # [tokens, columns], contiguous
    sums,  # [chunks, columns]
    tokens,
    columns,
    chunk,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """`sums[chunk] = sum of the chunk's rows of x` in float32; a second call adds the chunks."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0).to(tl.int64) * chunk
    total = tl.zeros((BM, BN), tl.float32)
    for m0 in range(first, min(first + chunk, tokens), BM):
        m = m0 + tl.arange(0, BM)
        inside = (m < tokens)[:, None] & (n < columns)[None, :]
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        total += tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    out = sums + tl.program_id(0).to(tl.int64) * columns + n
    tl.store(out, tl.sum(total, 0).to(sums.dtype.element_ty), mask=n < columns)


@triton.jit(do_not_specialize=["rows", "length", "threshold"])
def add_positions(
    x,  # [rows, columns], contiguous: sequences of `length` rows
    encoding,  # [length, columns], contiguous
    alpha,  # scalar, or None: 1
    y,  # [rows, columns]
    seed,  # int64 [] or None
    rows,
    length,
    columns,
    factor,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """`y = dropout(factor * x + alpha * encoding)`."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    there = (m % length).to(tl.int64)[:, None] * columns + n[None, :]
    position = tl.load(encoding + there, mask=inside, other=0.0).to(tl.float32)
    if alpha is not None:
        position *= tl.load(alpha).to(tl.float32)
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * factor + position
    if seed is not None:
        keep = kept(tl.load(seed), m0, n0, columns, threshold, BM, BN)
        value = tl.where(keep, value * scale, 0.0)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "length", "threshold"])
def add_positions_backward(
    dy,  # [rows, columns], contiguous
    encoding,  # [length, columns], contiguous
    dx,  # [rows, columns]
    parts,  # float32 [programs, programs across]: of dalpha; or None
    seed,  # int64 [] or None
    rows,
    length,
    columns,
    factor,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """`dx = factor * dropout(dy)`, and a tile's part of `dalpha = sum(dropout(dy) * encoding)`."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    if seed is not None:
        keep = kept(tl.load(seed), m0, n0, columns, threshold, BM, BN)
        gradient = tl.where(keep, gradient * scale, 0.0)
    tl.store(dx + offsets, (gradient * factor).to(dx.dtype.element_ty), mask=inside)
    if parts is not None:
        there = (m % length).to(tl.int64)[:, None] * columns + n[None, :]
        position = tl.load(encoding + there, mask=inside, other=0.0).to(tl.float32)
        parts += tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts, tl.sum(tl.sum(gradient * position, 1)))
