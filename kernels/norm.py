# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of a row, with the residual and its dropout before it, or ReLU before and dropout
behind it, and the gradient of all three.

A program holds whole rows: a value is read once and its row's mean and variance cost no visit.
"""

import triton
import triton.language as tl

from .common import kept


@triton.jit(do_not_specialize=["rows", "threshold"])
def add_norm(
    x,  # [rows, columns], contiguous
    branch,  # [rows, columns] or None
    weight,  # [columns]
    bias,
    s,  # [rows, columns]; not written without a branch
    y,
    mean,  # float32 [rows]
    rstd,
    seed,  # int64 [] or None
    rows,
    columns,
    eps,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    RELU: tl.constexpr,
):
    """`s = x + dropout(branch)`, `y = (s - mean) * rstd * weight + bias` by rows of s. Without a
    branch `s = x`, or `relu(x)` if RELU, and it is y that is dropped.
    """
    m0 = tl.program_id(0) * BM
    m, n = m0 + tl.arange(0, BM), tl.arange(0, BN)
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if branch is not None:
        added = tl.load(branch + offsets, mask=inside, other=0.0).to(tl.float32)
        if seed is not None:
            keep = kept(tl.load(seed), m0, 0, columns, threshold, BM, BN)
            added = tl.where(keep, added * scale, 0.0)
        # What is normalised is what is stored: the gradient starts from there.
        total = (value + added).to(s.dtype.element_ty)
        tl.store(s + offsets, total, mask=inside)
        value = total.to(tl.float32)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    average = tl.sum(value, 1) / columns
    # From the differences: squares less the square of the mean would cancel.
    centred = tl.where(inside, value - average[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    tl.store(mean + m, average, mask=m < rows)
    tl.store(rstd + m, inverse, mask=m < rows)
    scales = tl.load(weight + n, mask=n < columns, other=0.0).to(tl.float32)
    shifts = tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)
    out = centred * inverse[:, None] * scales[None, :] + shifts[None, :]
    if branch is None:
        if seed is not None:
            keep = kept(tl.load(seed), m0, 0, columns, threshold, BM, BN)
            out = tl.where(keep, out * scale, 0.0)
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "chunk", "threshold"])
def add_norm_backward(
    dy,  # [rows, columns], contiguous
    ds,  # [rows, columns] or None
    s,
    mean,  # float32 [rows]
    rstd,
    weight,  # [columns]
    dx,  # [rows, columns]
    dbranch,  # [rows, columns] or None
    sums,  # float32 [2, chunks, columns]
    seed,  # int64 [] or None
    rows,
    columns,
    chunk,  # rows of a program, a multiple of BM
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    RELU: tl.constexpr,
):
    """`dx = ds + rstd * (g - mean(g) - x_hat * mean(g * x_hat))` with `g = dy * weight`.

    `dbranch = dropout(dx)`, and without a branch `g = dropout(dy) * weight`. sums[0, chunk] and
    sums[1, chunk] are the chunk's dweight and dbias.
    """
    n = tl.arange(0, BN)
    first = tl.program_id(0).to(tl.int64) * chunk
    scales = tl.load(weight + n, mask=n < columns, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for m0 in range(first, min(first + chunk, rows), BM):
        m = m0 + tl.arange(0, BM)
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        inside = (m < rows)[:, None] & (n < columns)[None, :]
        gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(s + offsets, mask=inside, other=0.0).to(tl.float32)
        average = tl.load(mean + m, mask=m < rows, other=0.0)
        inverse = tl.load(rstd + m, mask=m < rows, other=0.0)
        normed = tl.where(value <= 0, 0.0, value) if RELU else value
        x_hat = (normed - average[:, None]) * inverse[:, None]
        if dbranch is None:
            if seed is not None:
                keep = kept(tl.load(seed), m0, 0, columns, threshold, BM, BN)
                gradient = tl.where(keep, gradient * scale, 0.0)
        dweight += tl.sum(gradient * x_hat, 0)
        dbias += tl.sum(gradient, 0)
        # 0 outside, as the scales are: the two sums of a row count what is inside.
        gradient *= scales[None, :]
        along = tl.sum(gradient * x_hat, 1) / columns
        constant = tl.sum(gradient, 1) / columns
        gradient = (gradient - constant[:, None] - x_hat * along[:, None]) * inverse[:, None]
        if RELU:
            gradient = tl.where(value <= 0, 0.0, gradient)
        if ds is not None:
            gradient += tl.load(ds + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + offsets, gradient.to(dx.dtype.element_ty), mask=inside)
        if dbranch is not None:
            if seed is not None:
                keep = kept(tl.load(seed), m0, 0, columns, threshold, BM, BN)
                gradient = tl.where(keep, gradient * scale, 0.0)
            out = gradient.to(dbranch.dtype.element_ty)
            tl.store(dbranch + offsets, out, mask=inside)
    sums += tl.program_id(0).to(tl.int64) * columns + n
    tl.store(sums, dweight, mask=n < columns)
    tl.store(sums + tl.num_programs(0).to(tl.int64) * columns, dbias, mask=n < columns)


@triton.jit(do_not_specialize=["chunks"])
def norm_sums(
    sums,  # float32 [2, chunks, columns]
    dweight,  # [columns]
    dbias,
    chunks,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Adds the chunks in an order that the shape decides: atomic additions would vary with runs."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    sums += tl.program_id(1).to(tl.int64) * chunks * columns
    total = tl.zeros((BM, BN), tl.float32)
    for i0 in range(0, chunks, BM):
        i = i0 + tl.arange(0, BM)
        inside = (i < chunks)[:, None] & (n < columns)[None, :]
        offsets = i.to(tl.int64)[:, None] * columns + n[None, :]
        total += tl.load(sums + offsets, mask=inside, other=0.0)
    column = tl.sum(total, 0).to(dweight.dtype.element_ty)
    if tl.program_id(1) == 0:
        tl.store(dweight + n, column, mask=n < columns)
    else:
        tl.store(dbias + n, column, mask=n < columns)
