# SPDX-License-Identifier: Apache-2.0
"""What the kernels share: which tile a program takes, and the end of a forward pass."""

import triton
import triton.language as tl

# Sizes that must not make a kernel anew for every batch; the report compiles them as they are here.
SIZES = ["length", "length_tiles", "tiles", "rows", "inner_blocks", "shift", "step"]


@triton.jit
def pick_tile(pid, rows, tiles, GROUP: tl.constexpr):
    """Rank of the block row, number of the token tile.

    Rows go from the longest to the shortest within a group of GROUP token tiles, whose activations
    stay in L2 while all rows read them.
    """
    group = pid // (rows * GROUP)
    size = min(tiles - group * GROUP, GROUP)
    rest = pid % (rows * GROUP)
    return rest // size, group * GROUP + rest % size


@triton.jit
def outer_sum(a, b, FLIPPED: tl.constexpr):
    """`a[i] + b[j]` at [i, j], or at [j, i]."""
    if FLIPPED:
        sums = b[:, None] + a[None, :]
    else:
        sums = a[:, None] + b[None, :]
    return sums


@triton.jit
def philox(seed, counter):
    """Philox-4x32-7: four uint32 for each int64 counter, its upper half being 0.

    Not Triton's, which takes the two halves of a product from two multiplications.
    """
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    w0, w1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    w2, w3 = w0 * 0, w0 * 0
    for _ in tl.static_range(7):  # pyright: ignore[reportGeneralTypeIssues]
        a = w0.to(tl.uint64) * 0xD2511F53
        b = w2.to(tl.uint64) * 0xCD9E8D57
        w0, w1 = (b >> 32).to(tl.uint32) ^ w1 ^ key0, b.to(tl.uint32)
        w2, w3 = (a >> 32).to(tl.uint32) ^ w3 ^ key1, a.to(tl.uint32)
        key0, key1 = key0 + 0x9E3779B9, key1 + 0xBB67AE85
    return w0, w1, w2, w3


@triton.jit
def reach(words, thresholds):
    """Bits 15 and 31 of each word say whether its lower and its upper half reach that half of
    `thresholds`, as unsigned numbers; the other bits are 0.
    """
    # With its highest bit set no half borrows from the other; that bit is compared apart.
    rest = (words | 0x80008000) - (thresholds & 0x7FFF7FFF)
    return ((words & ~thresholds) | (~(words ^ thresholds) & rest)) & 0x80008000


@triton.jit
def kept(seed, m0, n0, columns, threshold, BM: tl.constexpr, B: tl.constexpr):
    """int1 `[BM, B]` for rows from m0 and columns from n0 on: whether an element's 16-bit word,
    which is the CPU kernels' too, is `threshold` or more.

    A row is cut into groups of 64 columns; group g of row m takes the 8 Philox counters `8 * (m *
    groups + g) + lane`: the lower half of word w decides column `64 * g + 16 * w + 2 * lane`, the
    upper half the column behind it.

    Words are compared where they are made. What goes to the threads that ask is a bit an element,
    32 of them to a number: a counter's, from PACK rows that lie S apart.
    """
    GROUPS: tl.constexpr = max(B // 64, 1)  # pyright: ignore[reportAssignmentType]
    S: tl.constexpr = min(BM, 8)  # pyright: ignore[reportAssignmentType]
    # No more rows to a number than leave each thread of four warps a number to make.
    PACK: tl.constexpr = max(min(4, BM // S, BM * GROUPS // 16), 1)  # pyright: ignore[reportAssignmentType]
    A: tl.constexpr = BM // PACK // S
    i, r = tl.arange(0, 8 * GROUPS), tl.arange(0, A * S)
    groups = tl.cdiv(columns, 64)
    thresholds = threshold.to(tl.uint32) * 0x10001
    group = (m0 + r // S * (PACK * S) + r % S).to(tl.int64) * groups + n0 // 64
    counter = 8 * group[:, None] + i[None, :]
    packed = tl.zeros((A * S, 8 * GROUPS), tl.uint32)
    for b in tl.static_range(PACK):  # pyright: ignore[reportGeneralTypeIssues]
        w0, w1, w2, w3 = philox(seed, counter + 8 * S * b * groups)
        if B == 16:
            word = n0 // 16 % 4
            w0 = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
        if B == 32:
            first = n0 // 32 % 2 == 0
            w0, w1 = tl.where(first, w0, w2), tl.where(first, w1, w3)
        bits = reach(w0, thresholds)
        if B >= 32:
            bits |= reach(w1, thresholds) >> 1
        if B >= 64:
            bits |= (reach(w2, thresholds) >> 2) | (reach(w3, thresholds) >> 3)
        packed |= bits >> (4 * b)
    JOINED: tl.constexpr = min(B // 16, 2)  # pyright: ignore[reportAssignmentType]
    WORDS: tl.constexpr = 2 if B >= 64 else 1  # pyright: ignore[reportAssignmentType]
    if JOINED == 2:
        # Joined where it could be broadcast, which the compiler takes for leave to have each thread
        # draw all that it asks for.
        packed = tl.join(packed, packed << WORDS)
    packed = packed.reshape(A, 1, S, GROUPS, 8, JOINED).permute(0, 1, 2, 3, 5, 4)
    packed = packed.reshape(A, 1, S, GROUPS, JOINED, 1, 8, 1)
    packed = packed.broadcast_to(A, PACK, S, GROUPS, JOINED, WORDS, 8, 2).reshape(BM, B)
    t, c = tl.arange(0, BM), tl.arange(0, B)
    place = (16 * (c % 2) + 15 - c // 16 % WORDS)[None, :] - (4 * (t // S % PACK))[:, None]
    return ((packed >> place.to(tl.uint32)) & 1) != 0


@triton.jit
def write_tile(
    y, out, bias, seed, gate, first, t0, length, n0, columns, threshold, scale, RELU: tl.constexpr
):
    """`out[first + t0 + i, n0 + j] = dropout(relu(y + bias))` for a float32 tile `[BT, B]`.

    Args:
        out: `[tokens, columns]`, contiguous.
        bias, seed: may be None.
        gate: None, or `dropout(relu(z))` as out lies: then `y * scale` where it let z through,
            else 0, which makes the gradient of z from that of gate.
        first: row of out where the sequence begins; `length`: its rows.
        threshold: a word must reach it to keep its element.
        scale: what kept elements are multiplied by.
    """
    BT: tl.constexpr = y.shape[0]
    B: tl.constexpr = y.shape[1]
    i, j = tl.arange(0, BT), tl.arange(0, B)
    if seed is not None or gate is not None:
        y *= scale
    if bias is not None:
        added = tl.load(bias + n0 + j).to(tl.float32)
        # Scaled apart, so that product and sum are one instruction.
        y += (added if seed is None else added * scale)[None, :]
    if seed is not None:
        # Before ReLU, which then comes with the rounding.
        y = tl.where(kept(tl.load(seed), first + t0, n0, columns, threshold, BT, B), y, 0.0)
    if RELU:
        # Not maximum(y, 0), which loses a NaN.
        y = tl.where(y <= 0, 0.0, y)
    # 64 bits for where a tile begins, 32 within it.
    start = (first + t0) * columns + n0
    offsets = i[:, None] * columns + j[None, :]
    inside = (t0 + i < length)[:, None]
    rounded = y.to(out.dtype.element_ty)
    if gate is not None:
        # Behind the rounding: half as many bytes change from the product's order to memory's.
        passed = tl.load(gate + start + offsets, mask=inside, other=0.0)
        rounded = tl.where(passed <= 0, 0.0, rounded)
    tl.store(out + start + offsets, rounded, mask=inside)


@triton.jit
def write_transposed(
    acc, out, bias, seed, gate, first, t0, length, n0, columns, threshold, scale, RELU: tl.constexpr
):
    """`write_tile` for a tile `[B, BT]`, in two halves: random words take as many registers."""
    B: tl.constexpr = acc.shape[0]
    HALF: tl.constexpr = acc.shape[1] // 2
    low, high = acc.reshape(B, 2, HALF).permute(0, 2, 1).split()
    end = (n0, columns, threshold, scale)
    write_tile(low.T, out, bias, seed, gate, first, t0, length, *end, RELU)
    write_tile(high.T, out, bias, seed, gate, first, t0 + HALF, length, *end, RELU)
