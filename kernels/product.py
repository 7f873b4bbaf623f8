# SPDX-License-Identifier: Apache-2.0
"""The product with a block-sparse weight: forward pass and input gradient of Linear and Conv1d.

Both gather: `out[b, t, r] = sum over active (tap, k) of A[r, tap, k] * src[b, t + shift + tap *
step, k]`, rows outside a sequence being zero. Forward: A is W and the indices are the layout's;
input gradient: A is W transposed, block by block, and the indices are the transposed twin's.
"""

import triton
import triton.language as tl

from .common import SIZES, outer_sum, pick_tile, write_tile, write_transposed


@triton.jit(do_not_specialize=[*SIZES, "threshold"])
def product_tma(
    src,  # descriptor [batch, T_src, inner_blocks * B], tiles [1, BT, BK]
    src_rest,  # the same with tiles [1, BT_REST, BK], or None
    weight,  # descriptor [N, taps * C], tiles [B, BK], or [BK, B] if TRANSPOSED
    out,  # [batch, T_out, rows * B], contiguous
    bias,  # [rows * B] or None
    seed,  # int64 [] or None
    gate,  # as out, or None
    crow,
    col,
    order,
    length,  # T_out
    length_tiles,
    tiles,
    rows,
    inner_blocks,
    shift,
    step,
    threshold,
    scale,
    B: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BT_REST: tl.constexpr,
):
    """One tile `[BT + BT_REST, B]` of out, BK channels of a block a turn.

    Weights are the tensor core's M operand, tokens its N: so the instruction is as wide as BT.
    """
    rank, tile = pick_tile(tl.program_id(0), rows, tiles, GROUP)
    row = tl.load(order + rank)
    batch = tile // length_tiles
    t0 = tile % length_tiles * (BT + BT_REST)
    PIECES: tl.constexpr = B // BK
    start, end = tl.load(crow + row) * PIECES, tl.load(crow + row + 1) * PIECES
    acc = tl.zeros((B, BT), tl.float32)
    if BT_REST:
        acc_rest = tl.zeros((B, BT_REST), tl.float32)
    # The next index is read one turn ahead: the copies of a turn must not wait for it.
    block = tl.load(col + start // PIECES, mask=start < end, other=0)
    for p in range(start, end):
        following = tl.load(col + (p + 1) // PIECES, mask=p + 1 < end, other=0)
        tap, k = block // inner_blocks, block % inner_blocks
        piece = p % PIECES * BK  # pyright: ignore[reportOperatorIssue]
        x = src.load([batch, t0 + shift + tap * step, k * B + piece]).reshape(BT, BK)
        if TRANSPOSED:
            w = weight.load([k * B + piece, (tap * rows + row) * B]).T
        else:
            w = weight.load([row * B, block * B + piece])
        acc = tl.dot(w, x.T, acc, input_precision=PRECISION)
        if BT_REST:
            at = [batch, t0 + BT + shift + tap * step, k * B + piece]
            x_rest = src_rest.load(at).reshape(BT_REST, BK)
            acc_rest = tl.dot(w, x_rest.T, acc_rest, input_precision=PRECISION)
        block = following
    first = batch.to(tl.int64) * length
    n0, columns = row * B, rows * B
    end = (length, n0, columns, threshold, scale)
    write_transposed(acc, out, bias, seed, gate, first, t0, *end, RELU)
    if BT_REST:
        write_transposed(acc_rest, out, bias, seed, gate, first, t0 + BT, *end, RELU)


@triton.jit(do_not_specialize=[*SIZES, "threshold", "src_length"])
def product_pointer(
    src,  # [batch, T_src, inner_blocks * B], channels contiguous
    weight,  # [N, taps * C], columns contiguous
    out,
    bias,
    seed,
    gate,
    crow,
    col,
    order,
    length,
    length_tiles,
    tiles,
    rows,
    inner_blocks,
    shift,
    step,
    threshold,
    scale,
    src_length,
    src_stride_b,
    src_stride_t,
    weight_stride,
    B: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`product_tma` by pointers; a turn takes BK channels of one block, or BK // B whole blocks.

    Blocks under 64 are too small for the M operand: there tokens are.
    """
    rank, tile = pick_tile(tl.program_id(0), rows, tiles, GROUP)
    row = tl.load(order + rank)
    batch = (tile // length_tiles).to(tl.int64)
    t0 = tile % length_tiles * BT
    PIECES: tl.constexpr = max(B // BK, 1)  # pyright: ignore[reportAssignmentType]
    BLOCKS: tl.constexpr = max(BK // B, 1)  # pyright: ignore[reportAssignmentType]
    start, end = tl.load(crow + row) * PIECES, tl.load(crow + row + 1) * PIECES
    i, j, turn = tl.arange(0, BT), tl.arange(0, B), tl.arange(0, BK)
    # 64 bits for where a tile begins, 32 within it.
    src += batch * src_stride_b + (t0 + shift).to(tl.int64) * src_stride_t
    if TRANSPOSED:
        weight += row * B
    else:
        weight += row.to(tl.int64) * B * weight_stride
    # Tiles are read the way the product takes them: a transposition would undo asynchronous copies.
    FIRST: tl.constexpr = B >= 64
    acc = tl.zeros((B, BT) if FIRST else (BT, B), tl.float32)
    entry = start + (turn // B if BLOCKS > 1 else 0)
    block = tl.load(col + entry // PIECES, mask=entry < end, other=0)
    for _ in range(start, end, BLOCKS):
        ahead = entry + BLOCKS
        following = tl.load(col + ahead // PIECES, mask=ahead < end, other=0)
        if BLOCKS > 1:
            block = tl.max_constancy(block, B)
        tap, k = block // inner_blocks, block % inner_blocks
        c = k * B + entry % PIECES * BK + turn % B
        inside = entry < end if BLOCKS > 1 else turn < BK
        t = outer_sum(i + t0 + shift, tap * step + turn * 0, FIRST)
        present = (t >= 0) & (t < src_length) & (inside[:, None] if FIRST else inside[None, :])
        x_offsets = outer_sum(i * src_stride_t, tap * step * src_stride_t + c, FIRST)
        x = tl.load(src + x_offsets, mask=present, other=0.0)
        if TRANSPOSED:
            w_offsets = outer_sum(j, c * weight_stride + tap * rows * B, not FIRST)  # pyright: ignore[reportArgumentType]
        else:
            w_offsets = outer_sum(j * weight_stride, tap * inner_blocks * B + c, not FIRST)  # pyright: ignore[reportArgumentType]
        whole = inside[None, :] if FIRST else inside[:, None]
        w = tl.load(weight + w_offsets, mask=whole, other=0.0)
        if FIRST:
            acc = tl.dot(w, x, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
        entry, block = ahead, following
    first, n0, columns = batch * length, row * B, rows * B
    end = (first, t0, length, n0, columns, threshold, scale)
    if FIRST:
        write_transposed(acc, out, bias, seed, gate, *end, RELU)
    else:
        write_tile(acc, out, bias, seed, gate, *end, RELU)
