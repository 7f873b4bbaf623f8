# SPDX-License-Identifier: Apache-2.0
"""BatchNorm of rows of channels with the tanh and dropout behind it, and the gradient of all three.

The statistics take a visit of their own; everything else is one visit forward and two backward.
"""

import triton
import triton.language as tl

from .common import kept


@triton.jit(do_not_specialize=["rows", "chunk"])
def batch_norm_parts(
    x,  # [rows, columns], contiguous
    parts,  # float32 [2, chunks, columns]
    rows,
    columns,
    chunk,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Mean of each chunk of rows, and the sum of squared distances from it."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0).to(tl.int64) * chunk
    end = min(first + chunk, rows)
    total = tl.zeros((BM, BN), tl.float32)
    for m0 in range(first, end, BM):
        m = m0 + tl.arange(0, BM)
        inside = (m < end)[:, None] & (n < columns)[None, :]
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        total += tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / (end - first).to(tl.float32)
    # Once more over rows that are in the cache: squares less the square of the mean would cancel.
    squares = tl.zeros((BM, BN), tl.float32)
    for m0 in range(first, end, BM):
        m = m0 + tl.arange(0, BM)
        inside = (m < end)[:, None] & (n < columns)[None, :]
        offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        distance = tl.where(inside, value - mean[None, :], 0.0)
        squares += distance * distance
    parts += tl.program_id(0).to(tl.int64) * columns + n
    tl.store(parts, mean, mask=n < columns)
    parts += tl.num_programs(0).to(tl.int64) * columns
    tl.store(parts, tl.sum(squares, 0), mask=n < columns)


@triton.jit(do_not_specialize=["rows", "chunk", "chunks"])
def batch_norm_statistics(
    parts,  # float32 [2, chunks, columns]
    mean,  # float32 [columns]
    rstd,
    running_mean,  # float32 [columns], or None where no one keeps them
    running_var,
    tracked,  # int64 []: batches so far
    rows,
    columns,
    chunk,
    chunks,
    eps,
    momentum,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Adds up the chunks in an order that the shape decides, and moves the running statistics.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances (1979).
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    squares_of = parts + chunks.to(tl.int64) * columns
    total = tl.zeros((BM, BN), tl.float32)
    for i0 in range(0, chunks, BM):
        i = i0 + tl.arange(0, BM)
        inside = (i < chunks)[:, None] & (n < columns)[None, :]
        offsets = i.to(tl.int64)[:, None] * columns + n[None, :]
        count = tl.minimum(chunk, rows - i * chunk).to(tl.float32)
        total += tl.load(parts + offsets, mask=inside, other=0.0) * count[:, None]
    average = tl.sum(total, 0) / rows
    squares = tl.zeros((BM, BN), tl.float32)
    for i0 in range(0, chunks, BM):
        i = i0 + tl.arange(0, BM)
        inside = (i < chunks)[:, None] & (n < columns)[None, :]
        offsets = i.to(tl.int64)[:, None] * columns + n[None, :]
        count = tl.minimum(chunk, rows - i * chunk).to(tl.float32)
        distance = tl.load(parts + offsets, mask=inside, other=0.0) - average[None, :]
        squares += tl.load(squares_of + offsets, mask=inside, other=0.0)
        squares += tl.where(inside, distance * distance * count[:, None], 0.0)
    square = tl.sum(squares, 0)
    tl.store(mean + n, average, mask=n < columns)
    tl.store(rstd + n, 1.0 / tl.sqrt(square / rows + eps), mask=n < columns)
    if running_mean is not None:
        before = tl.load(running_mean + n, mask=n < columns)
        tl.store(running_mean + n, before + momentum * (average - before), mask=n < columns)
        before = tl.load(running_var + n, mask=n < columns)
        unbiased = square / max(rows - 1, 1)  # pyright: ignore[reportOperatorIssue]
        tl.store(running_var + n, before + momentum * (unbiased - before), mask=n < columns)
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def tanh(x):
    """Without overflow on either side."""
    power = tl.exp(-2.0 * tl.abs(x))
    value = (1.0 - power) / (1.0 + power)
    return tl.where(x < 0, -value, value)


@triton.jit(do_not_specialize=["rows", "threshold"])
def batch_norm(
    x,  # [rows, columns], contiguous
    mean,  # float32 [columns]
    rstd,
    weight,
    bias,
    y,  # [rows, columns]
    seed,  # int64 [] or None
    rows,
    columns,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TANH: tl.constexpr,
):
    """`y = dropout(tanh((x - mean) * rstd * weight + bias))`, the tanh if TANH."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(rstd + n, mask=n < columns, other=0.0)
    value = (value - tl.load(mean + n, mask=n < columns, other=0.0)[None, :]) * slope[None, :]
    value *= tl.load(weight + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    if TANH:
        value = tanh(value)
    if seed is not None:
        keep = kept(tl.load(seed), m0, n0, columns, threshold, BM, BN)
        value = tl.where(keep, value * scale, 0.0)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradient_before(
    dy,
    x,
    mean,
    rstd,
    weight,
    bias,
    seed,
    m0,
    n0,
    rows,
    columns,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TANH: tl.constexpr,
):
    """At BM rows from m0 on: the gradient of what tanh took, 0 outside, and `x_hat`. Both are drawn
    and computed again: less than reading them.
    """
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    gradient = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    x_hat = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(rstd + n, mask=n < columns, other=0.0)
    x_hat = (x_hat - tl.load(mean + n, mask=n < columns, other=0.0)[None, :]) * slope[None, :]
    if seed is not None:
        keep = kept(tl.load(seed), m0, n0, columns, threshold, BM, BN)
        gradient = tl.where(keep, gradient * scale, 0.0)
    if TANH:
        value = x_hat * tl.load(weight + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        value += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        value = tanh(value)
        gradient *= 1.0 - value * value
    return gradient, x_hat


@triton.jit(do_not_specialize=["rows", "chunk", "threshold"])
def batch_norm_gradient_sums(
    dy,  # [rows, columns], contiguous
    x,
    mean,  # float32 [columns]
    rstd,
    weight,
    bias,
    sums,  # float32 [2, chunks, columns]
    seed,  # int64 [] or None
    rows,
    columns,
    chunk,  # rows of a program, a multiple of BM
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TANH: tl.constexpr,
):
    """A chunk's parts of dweight and dbias."""
    n0 = tl.program_id(1) * BN
    n = n0 + tl.arange(0, BN)
    first = tl.program_id(0).to(tl.int64) * chunk
    along, total = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for m0 in range(first, min(first + chunk, rows), BM):
        gradient, x_hat = gradient_before(
            *(dy, x, mean, rstd, weight, bias, seed, m0, n0, rows, columns, threshold, scale),
            BM,
            BN,
            TANH,
        )
        along += gradient * x_hat
        total += gradient
    sums += tl.program_id(0).to(tl.int64) * columns + n
    tl.store(sums, tl.sum(along, 0), mask=n < columns)
    sums += tl.num_programs(0).to(tl.int64) * columns
    tl.store(sums, tl.sum(total, 0), mask=n < columns)


@triton.jit(do_not_specialize=["rows", "threshold"])
def batch_norm_backward(
    dy,  # [rows, columns], contiguous
    x,
    mean,  # float32 [columns]
    rstd,
    weight,
    bias,
    dweight,  # float32 [columns]
    dbias,
    dx,  # [rows, columns]
    seed,  # int64 [] or None
    rows,
    columns,
    threshold,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    TANH: tl.constexpr,
):
    """`dx = weight * rstd * (dz - mean(dz) - x_hat * mean(dz * x_hat))` by columns."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    gradient, x_hat = gradient_before(
        *(dy, x, mean, rstd, weight, bias, seed, m0, n0, rows, columns, threshold, scale),
        BM,
        BN,
        TANH,
    )
    constant = tl.load(dbias + n, mask=n < columns, other=0.0) / rows
    along = tl.load(dweight + n, mask=n < columns, other=0.0) / rows
    slope = tl.load(rstd + n, mask=n < columns, other=0.0)
    slope *= tl.load(weight + n, mask=n < columns, other=0.0).to(tl.float32)
    out = (gradient - constant[None, :] - x_hat * along[None, :]) * slope[None, :]
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    offsets = m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(dx + offsets, out.to(dx.dtype.element_ty), mask=inside)
