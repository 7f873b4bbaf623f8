# SPDX-License-Identifier: Apache-2.0
# Triton's types say little of what its compiler takes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""The gradients of attention, without atomic additions: equal inputs give equal bits.

One kernel takes a tile of queries, gives dq, and writes what dropout left of the weights and the
gradients of the scores, two bytes each; the other multiplies these by dy and q. To compute both
anew for dk and dv, as FlashAttention-2 does, takes two products more, and exponentials and random
words a second time, which cost as much as the products.
"""

import triton
import triton.language as tl

from .attention import (
    ATTENTION_SIZES,
    add_products,
    kept,
    keys_of,
    load_pieces,
    products,
    rows_of,
    store_pieces,
    store_rows,
)


@triton.jit
def score_grads(
    s, dw, logs, delta, tile, m0, weights, grads, columns, seed, counters, n0,
    count, threshold, keep_scale, scale2,
    BM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of scores, from those of the weights; writes them and the weights."""
    p = tl.math.exp2(s * scale2 - logs[:, None])
    if TAIL:
        p = tl.where((n0 + tl.arange(0, BN) < count)[None, :], p, 0.0)
    left = p
    if seed is not None:
        keep = kept(seed, counters, n0, threshold, BN)
        dw = tl.where(keep, dw, 0.0)
        left = tl.where(keep, p, 0.0)
    ds = (p * (dw * keep_scale - delta[:, None])).to(grads.dtype.element_ty)
    left = left.to(grads.dtype.element_ty)
    if TMA:
        # At once: of two stores the second would wait until the first has read shared memory.
        tile.store([0, m0, n0], tl.join(left, ds).permute(2, 0, 1))
    else:
        offsets = tl.arange(0, BM)[:, None] * columns + tl.arange(0, BN)[None, :]
        tl.store(weights + n0 + offsets, left)
        tl.store(grads + n0 + offsets, ds)
    return ds


@triton.jit(do_not_specialize=ATTENTION_SIZES)
def attention_backward(
    dy,  # [batches, queries, heads * D], as q
    q,
    k,
    v,
    dy_0,  # descriptors, tiles of BM rows of dy and q, of BN of k and v
    dy_1,
    q_0,
    q_1,
    k_0,
    k_1,
    v_0,
    v_1,
    y,  # contiguous
    lse,
    dq,  # rows a distance of dq_row apart, in one run over all sequences
    dq_0,  # descriptors of dq, tiles [1, BM, D0] and [1, BM, D1], or None
    dq_1,
    parts_tile,  # descriptor of parts as [2, rows, columns], tiles [2, BM, BN], or None
    parts,  # [2, rows, columns]: weights after dropout and gradients of scores, in whole tiles
    order,
    counts,
    seed,
    queries,
    keys,
    heads,
    batches,
    first,  # sequence of parts
    threshold,
    dy_batch,
    dy_row,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    dq_row,
    columns,  # of parts: keys in whole tiles
    part,  # its elements a half
    keep_scale,
    scale,
    scale2,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    TMA: tl.constexpr,
    TN: tl.constexpr,
):
    """One tile `[BM, D]` of dq, and the rows of parts that `attention_sums` multiplies."""
    tile, head, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, rest = first + place, place * heads + head
    m = tile * BM + tl.arange(0, BM)
    inside = m < queries
    channel = head * D
    q += batch.to(tl.int64) * q_batch + channel
    k += batch.to(tl.int64) * k_batch + channel
    v += batch.to(tl.int64) * v_batch + channel
    dy += batch.to(tl.int64) * dy_batch + channel
    y += batch.to(tl.int64) * queries * (heads * D) + channel
    E: tl.constexpr = D1 if D1 > 0 else 16
    y0, y1 = load_pieces(y, None, None, batch, 0, m, heads * D, channel, inside, D, D0, D1, False)
    dy0, dy1 = load_pieces(
        dy, dy_0, dy_1, batch, tile * BM, m, dy_row, channel, inside, D, D0, D1, TMA
    )
    delta = tl.sum(dy0.to(tl.float32) * y0.to(tl.float32), 1)
    if D1 > 0:
        delta += tl.sum(dy1.to(tl.float32) * y1.to(tl.float32), 1)
    # Not all rows at once, for which registers do not suffice.
    tl.debug_barrier()
    q0, q1 = load_pieces(q, q_0, q_1, batch, tile * BM, m, q_row, channel, inside, D, D0, D1, TMA)
    first_row = (head.to(tl.int64) * batches + batch) * queries
    counters = (first_row + m) * (8 * tl.cdiv(keys, 64))
    logs = tl.load(lse + first_row + m, mask=inside, other=float("inf"))
    acc0 = tl.zeros((BM, D0), tl.float32)
    acc1 = tl.zeros((BM, E), tl.float32)
    # Whole tiles, rows behind the last query too: their weights are 0.
    part_row = (rest * tl.num_programs(0) + tile) * BM
    parts += part_row.to(tl.int64) * columns
    grads = parts + part
    drawn = seed
    if seed is not None:
        drawn = tl.load(seed)
    if order is not None:
        order += batch.to(tl.int64) * keys
    whole, count = keys_of(counts, batch, keys, BN)
    for n0 in range(0, whole, BN):
        n = n0 + tl.arange(0, BN)
        k0, k1 = load_pieces(k, k_0, k_1, batch, n0, n, k_row, channel, None, D, D0, D1, TMA)
        s = products(q0, q1, k0, k1, D1)
        v0, v1 = load_pieces(v, v_0, v_1, batch, n0, n, v_row, channel, None, D, D0, D1, TMA)
        dw = products(dy0, dy1, v0, v1, D1)
        ds = score_grads(
            s, dw, logs, delta, parts_tile, part_row, parts, grads, columns,
            drawn, counters, n0, count, threshold, keep_scale, scale2, BM, BN, False, TMA,
        )  # fmt: skip
        acc0, acc1 = add_products(ds, k0, k1, acc0, acc1, D1)
    for n0 in tl.range(whole, count, TN, num_stages=1):
        n = n0 + tl.arange(0, TN)
        there = n < count
        n = rows_of(order, n, count)
        k0, k1 = load_pieces(k, None, None, batch, n0, n, k_row, channel, there, D, D0, D1, False)
        s = products(q0, q1, k0, k1, D1)
        v0, v1 = load_pieces(v, None, None, batch, n0, n, v_row, channel, there, D, D0, D1, False)
        dw = products(dy0, dy1, v0, v1, D1)
        ds = score_grads(
            s, dw, logs, delta, None, 0, parts, grads, columns,
            drawn, counters, n0, count, threshold, keep_scale, scale2, BM, TN, True, False,
        )  # fmt: skip
        acc0, acc1 = add_products(ds, k0, k1, acc0, acc1, D1)
    acc0, acc1 = acc0 * scale, acc1 * scale
    store_pieces(dq, dq_0, dq_1, acc0, acc1, batch, tile, queries, dq_row, channel, D, D0, D1, TMA)


@triton.jit(do_not_specialize=ATTENTION_SIZES)
def attention_sums(
    parts,  # [heads of all sequences, row_tiles * BM, columns]
    x,  # dy or q, [batches, queries, heads * D]
    p_0,  # descriptors: of parts, tiles [1, BM, BN]; of x, tiles [1, BM, D0] and [1, BM, D1]
    x_0,
    x_1,
    out,  # dv or dk, [batches, keys, heads * D], rows a distance of out_row apart as those of dq
    order,
    counts,
    queries,
    keys,
    heads,
    first,
    part_rows,
    x_batch,
    x_row,
    out_row,
    columns,
    factor,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    TMA: tl.constexpr,
):
    """One tile `[BN, D]` of `factor * parts^T x`, where its keys lie; 0 for hidden ones."""
    tile, head, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, rest = first + place, place * heads + head
    n0 = tile * BN
    n = n0 + tl.arange(0, BN)
    channel = head * D
    x += batch.to(tl.int64) * x_batch + channel
    parts += rest.to(tl.int64) * part_rows * columns + n0
    E: tl.constexpr = D1 if D1 > 0 else 16
    acc0 = tl.zeros((BN, D0), tl.float32)
    acc1 = tl.zeros((BN, E), tl.float32)
    count = keys
    if counts is not None:
        count = tl.load(counts + 2 * batch + 1)
    end = tl.where(n0 < count, queries, 0)
    for m0 in range(0, end, BM):
        m = m0 + tl.arange(0, BM)
        if TMA:
            w = p_0.load([rest, m0, n0]).reshape(BM, BN)
        else:
            w = tl.load(parts + m[:, None] * columns + tl.arange(0, BN)[None, :])
        x0, x1 = load_pieces(x, x_0, x_1, batch, m0, m, x_row, channel, m < queries, D, D0, D1, TMA)
        acc0, acc1 = add_products(w.T, x0, x1, acc0, acc1, D1)
    rows = n
    if order is not None:
        rows = tl.load(order + batch.to(tl.int64) * keys + n, mask=n < keys, other=0)
    out += batch.to(tl.int64) * keys * out_row + channel
    # What a hidden key's weights were, nobody wrote.
    acc0 = tl.where((n < count)[:, None], acc0 * factor, 0.0)
    store_rows(out, acc0, rows, out_row, 0, n < keys, D)
    if D1 > 0:
        acc1 = tl.where((n < count)[:, None], acc1 * factor, 0.0)
        store_rows(out, acc1, rows, out_row, D0, n < keys, D)
