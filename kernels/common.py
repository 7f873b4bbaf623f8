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
def random_words(seed, m, n0, columns, B: tl.constexpr):
    """int32 `[len(m), B]` for rows m and columns n0, n0 + 1, ...: the CPU kernels' 16-bit words.

    Philox-4x32-7. A row is cut into groups of 64 columns; group g of row m takes the 8 counters
    `8 * (m * groups + g) + lane`: the lower half of word w decides column `64 * g + 16 * w + 2 *
    lane`, the upper half the column behind it.
    """
    GROUPS: tl.constexpr = max(B // 64, 1)  # pyright: ignore[reportAssignmentType]
    i = tl.arange(0, 8 * GROUPS)
    group = m.to(tl.int64) * tl.cdiv(columns, 64) + n0 // 64
    counter = 8 * (group[:, None] + (i // 8)[None, :]) + (i % 8)[None, :]
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    rest = low * 0
    rounds: tl.constexpr = 7  # pyright: ignore[reportAssignmentType]
    w0, w1, w2, w3 = tl.philox(seed, low, high, rest, rest, n_rounds=rounds)
    if B == 16:
        word = n0 // 16 % 4
        words = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
    elif B == 32:
        first = n0 // 32 % 2 == 0
        words = tl.join(tl.where(first, w0, w2), tl.where(first, w1, w3)).permute(0, 2, 1)
        words = words.reshape(m.shape[0], B // 2)
    else:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(m.shape[0], GROUPS, 8, 2, 2)
        words = words.permute(0, 1, 3, 4, 2).reshape(m.shape[0], B // 2)
    return tl.join(words & 0xFFFF, words >> 16).reshape(m.shape[0], B).to(tl.int32)


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
    if bias is not None:
        y += tl.load(bias + n0 + j).to(tl.float32)[None, :]
    if RELU:
        # Not maximum(y, 0), which loses a NaN.
        y = tl.where(y <= 0, 0.0, y)
    if seed is not None:
        words = random_words(tl.load(seed), first + t0 + i, n0, columns, B)
        y = tl.where(words >= threshold, y * scale, 0.0)
    # 64 bits for where a tile begins, 32 within it.
    start = (first + t0) * columns + n0
    offsets = i[:, None] * columns + j[None, :]
    inside = (t0 + i < length)[:, None]
    if gate is not None:
        y *= scale
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
    end = (n0, columns, threshold, scale, RELU)
    write_tile(low.T, out, bias, seed, gate, first, t0, length, *end)
    write_tile(high.T, out, bias, seed, gate, first, t0 + HALF, length, *end)
