# SPDX-License-Identifier: Apache-2.0
# Triton's types say little of what its compiler takes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""Attention with dropout over the keys that count; forward, and what backward shares with it.

A tile of queries meets the keys tile by tile, and softmax is taken as they come (Dao,
FlashAttention-2, 2023). Tiles of keys that all count and lie one behind the other are read as they
are, by the copy engine where there is one; the few others, at the end as a rule, by their rows.

A head's channels are one power of two or two of them, 192 = 128 + 64, so that no channel is
multiplied in vain.
"""

import triton
import triton.language as tl
from triton import knobs

# Sizes that must not make a kernel anew for every batch.
ATTENTION_SIZES = ["queries", "keys", "heads", "batches", "first", "threshold"]


# The interpreter knows no PTX.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def both_halves(a, b: tl.constexpr):
    """The lower and the upper half of a product of uint32, by one multiplication."""
    if INTERPRETED:
        product = a.to(tl.uint64) * b
        low, high = product.to(tl.uint32), (product >> 32).to(tl.uint32)
    else:
        # Of 64-bit operations the compiler would make so many that it moves random words through
        # shared memory rather than draw them where they are needed.
        low, high = tl.inline_asm_elementwise(
            "{ .reg .u64 p; mul.wide.u32 p, $2, $3; mov.b64 {$0, $1}, p; }",
            "=r,=r,r,r",
            [a, b],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    return low, high


@triton.jit
def draw(seed, counters, n0, GROUPS: tl.constexpr):
    """Four words `[rows, 8 * GROUPS]` of `common.kept`: Philox-4x32-7.

    `counters` are the first of each row, int64 and multiples of 8.
    """
    i = tl.arange(0, 8 * GROUPS)
    # Eight counters of a group differ in their lowest bits alone.
    counter = counters[:, None] + (8 * (n0 // 64 + i // 8))[None, :]
    c0 = counter.to(tl.uint32) | (i % 8).to(tl.uint32)[None, :]
    c1 = (counter >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        low0, high0 = both_halves(c0, 0xD2511F53)
        low1, high1 = both_halves(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = key0 + 0x9E3779B9, key1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def kept(seed, counters, n0, threshold, BN: tl.constexpr):
    """bool `[rows, BN]`: what dropout keeps of columns n0, n0 + 1, ...; n0 divides by BN.

    Words come as the tensor core's sums lie, two neighbours in a thread and 8 columns on the next
    two, so none has to move.
    """
    GROUPS: tl.constexpr = max(BN // 64, 1)
    M: tl.constexpr = counters.shape[0]
    w0, w1, w2, w3 = draw(seed, counters, n0, GROUPS)
    if BN == 16:
        word = n0 // 16 % 4
        words = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
    elif BN == 32:
        first = n0 // 32 % 2 == 0
        words = tl.join(tl.where(first, w0, w2), tl.where(first, w1, w3)).permute(0, 2, 1)
    else:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(M, GROUPS, 8, 2, 2)
        words = words.permute(0, 1, 3, 4, 2)
    words = words.reshape(M, BN // 2)
    return tl.join(words & 0xFFFF, words >> 16).reshape(M, BN).to(tl.int32) >= threshold


@triton.jit
def load_rows(base, rows, stride, c0, inside, D: tl.constexpr, END: tl.constexpr):
    """Channels `c0, c0 + 1, ...` of some rows, `[len(rows), D]`; 0 outside, and from END on.

    `inside` may be None: all rows are there.
    """
    c = c0 + tl.arange(0, D)
    pointers = base + (rows[:, None] * stride + c[None, :])
    if c0 + D <= END:
        if inside is None:
            x = tl.load(pointers)
        else:
            x = tl.load(pointers, mask=inside[:, None], other=0.0)
    else:
        there = (c < END)[None, :]
        if inside is not None:
            there = there & inside[:, None]
        x = tl.load(pointers, mask=there, other=0.0)
    return x


@triton.jit
def store_rows(base, x, rows, stride, c0, inside, END: tl.constexpr):
    c = c0 + tl.arange(0, x.shape[1])
    pointers = base + (rows[:, None] * stride + c[None, :])
    there = inside[:, None] & (c < END)[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=there)


@triton.jit
def load_pieces(
    base, first, second, batch, t0, rows, stride, channel, inside,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Both pieces of a tile of rows: by the copy engine, from row t0 on, or by pointers.

    Without a second piece the first stands for it, unused.
    """
    R: tl.constexpr = rows.shape[0]
    if TMA:
        x0 = first.load([batch, t0, channel]).reshape(R, D0)
        x1 = x0
        if D1 > 0:
            x1 = second.load([batch, t0, channel + D0]).reshape(R, D1)
    else:
        x0 = load_rows(base, rows, stride, 0, inside, D0, D)
        x1 = x0
        if D1 > 0:
            x1 = load_rows(base, rows, stride, D0, inside, D1, D)
    return x0, x1


@triton.jit
def store_pieces(
    out, first, second, acc0, acc1, batch, tile, queries, row, channel,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Writes a tile of rows to `[batches, queries, heads * D]`, rows a distance of `row` apart."""
    M: tl.constexpr = acc0.shape[0]
    t0 = tile * M
    if TMA:
        # Pointers would be made before the loops, where registers are short.
        first.store([batch, t0, channel], acc0.to(out.dtype.element_ty).reshape(1, M, D0))
        if D1 > 0:
            rest = acc1.to(out.dtype.element_ty).reshape(1, M, D1)
            second.store([batch, t0, channel + D0], rest)
    else:
        m = t0 + tl.arange(0, M)
        out += batch.to(tl.int64) * queries * row + channel
        store_rows(out, acc0, m, row, 0, m < queries, D)
        if D1 > 0:
            store_rows(out, acc1, m, row, D0, m < queries, D)


@triton.jit
def products(a0, a1, b0, b1, D1: tl.constexpr):
    """`a b^T` over both pieces."""
    s = tl.dot(a0, b0.T)
    if D1 > 0:
        s = tl.dot(a1, b1.T, s)
    return s


@triton.jit
def add_products(w, b0, b1, acc0, acc1, D1: tl.constexpr):
    """`acc + w b`, piece by piece."""
    acc0 = tl.dot(w, b0, acc0)
    if D1 > 0:
        acc1 = tl.dot(w, b1, acc1)
    return acc0, acc1


@triton.jit
def key_order(
    mask,  # uint8 [batches, keys]
    order,  # int32 [batches, keys]: the keys that count, then the others
    counts,  # int32 [batches, 2]: the keys before the first hidden one, and those that count
    keys,
    BN: tl.constexpr,
):
    """Where the keys that count lie; one program a sequence."""
    batch = tl.program_id(0)
    mask += batch.to(tl.int64) * keys
    order += batch.to(tl.int64) * keys
    count, first = 0, keys
    for n0 in range(0, keys, BN):
        n = n0 + tl.arange(0, BN)
        hidden = tl.load(mask + n, mask=n < keys, other=1) == 0
        first = tl.minimum(first, tl.min(tl.where(hidden, n, keys), 0))
        count += tl.sum(((n < keys) & (hidden == 0)).to(tl.int32), 0)
    seen = 0
    for n0 in range(0, keys, BN):
        n = n0 + tl.arange(0, BN)
        counting = (tl.load(mask + n, mask=n < keys, other=0) != 0).to(tl.int32)
        rank = seen + tl.cumsum(counting, 0) - counting
        place = tl.where(counting != 0, rank, count + n - rank)
        tl.store(order + place, n, mask=n < keys)
        seen += tl.sum(counting, 0)
    tl.store(counts + 2 * batch, first)
    tl.store(counts + 2 * batch + 1, count)


@triton.jit
def keys_of(counts, batch, keys, BN: tl.constexpr):
    """How many keys fill whole tiles at their own places, and how many count."""
    whole, count = keys, keys
    if counts is not None:
        whole, count = tl.load(counts + 2 * batch), tl.load(counts + 2 * batch + 1)
    return whole // BN * BN, count


@triton.jit
def rows_of(order, n, count):
    """The rows of the n-th keys that count."""
    rows = n
    if order is not None:
        rows = tl.load(order + n, mask=n < count, other=0)
    return rows


@triton.jit
def softmax_turn(
    s, top, total, seed, counters, n0, count, threshold, scale2,
    BN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Weights of a tile of scores before they are divided, what sums shrink by, the new sums."""
    if TAIL:
        s = tl.where((n0 + tl.arange(0, BN) < count)[None, :], s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * scale2)
    p = tl.math.exp2(s * scale2 - higher[:, None])
    shrink = tl.math.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    if seed is not None:
        p = tl.where(kept(seed, counters, n0, threshold, BN), p, 0.0)
    return p, shrink[:, None], higher, total


@triton.jit(do_not_specialize=ATTENTION_SIZES)
def attention_forward(
    q,  # [batches, queries, heads * D], channels contiguous, as k, v [batches, keys, heads * D]
    k,
    v,
    q_0,  # descriptors of q, tiles [1, BM, D0] and [1, BM, D1], or None
    q_1,
    k_0,  # of k and v, tiles of BN rows
    k_1,
    v_0,
    v_1,
    y,  # [batches, queries, heads * D], contiguous
    y_0,  # tiles of BM rows
    y_1,
    lse,  # float32 [heads, batches, queries]: log2 of the sum of 2^(score * scale2)
    order,  # as `key_order` gives them, or None
    counts,
    seed,  # int64 [] or None
    queries,
    keys,
    heads,
    batches,
    threshold,
    q_batch,  # strides
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    keep_scale,
    scale2,  # of scores, times log2(e)
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    TMA: tl.constexpr,
    TN: tl.constexpr,
):
    """One tile `[BM, D]` of y."""
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = tile * BM + tl.arange(0, BM)
    inside = m < queries
    channel = head * D
    q += batch.to(tl.int64) * q_batch + channel
    k += batch.to(tl.int64) * k_batch + channel
    v += batch.to(tl.int64) * v_batch + channel
    E: tl.constexpr = D1 if D1 > 0 else 16
    q0, q1 = load_pieces(q, q_0, q_1, batch, tile * BM, m, q_row, channel, inside, D, D0, D1, TMA)
    acc0 = tl.zeros((BM, D0), tl.float32)
    acc1 = tl.zeros((BM, E), tl.float32)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    first_row = (head * batches + batch) * queries
    counters = (first_row + m).to(tl.int64) * (8 * tl.cdiv(keys, 64))
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
        p, shrink, top, total = softmax_turn(
            s, top, total, drawn, counters, n0, count, threshold, scale2, BN, False
        )
        v0, v1 = load_pieces(v, v_0, v_1, batch, n0, n, v_row, channel, None, D, D0, D1, TMA)
        acc0, acc1 = acc0 * shrink, acc1 * shrink
        acc0, acc1 = add_products(p.to(v0.dtype), v0, v1, acc0, acc1, D1)
    # What fills no tile, and what does not lie at its own place.
    for n0 in tl.range(whole, count, TN, num_stages=1):
        n = n0 + tl.arange(0, TN)
        there = n < count
        n = rows_of(order, n, count)
        k0, k1 = load_pieces(k, None, None, batch, n0, n, k_row, channel, there, D, D0, D1, False)
        s = products(q0, q1, k0, k1, D1)
        p, shrink, top, total = softmax_turn(
            s, top, total, drawn, counters, n0, count, threshold, scale2, TN, True
        )
        v0, v1 = load_pieces(v, None, None, batch, n0, n, v_row, channel, there, D, D0, D1, False)
        acc0, acc1 = acc0 * shrink, acc1 * shrink
        acc0, acc1 = add_products(p.to(v0.dtype), v0, v1, acc0, acc1, D1)
    # No key counts: 0, and weights of 0 in backward.
    none = total == 0
    tl.store(
        lse + first_row + m, tl.where(none, float("inf"), top + tl.math.log2(total)), mask=inside
    )
    factor = tl.where(none, 0.0, keep_scale / total)[:, None]
    acc0, acc1 = acc0 * factor, acc1 * factor
    row = heads * D
    store_pieces(y, y_0, y_1, acc0, acc1, batch, tile, queries, row, channel, D, D0, D1, TMA)
