# SPDX-License-Identifier: Apache-2.0
"""The weight gradient of Linear and Conv1d on the active blocks of a block-sparse weight.

`dw[r, tap, k] = sum over b, t of dy[b, t, r] * x[b, t + shift + tap * step, k]`. A program takes up
to G active blocks of one block row over one split of the tokens; a second pass adds the splits in
their order, so that equal inputs give equal bits. The bias's gradient, the sum of dy, comes along
as a product with ones: tensor cores have dy's tile already, registers would have to fetch it.
"""

import triton
import triton.language as tl

from .common import SIZES, outer_sum


@triton.jit
def pick_blocks(crow, row_indices, order, rows, entries, programs, G: tl.constexpr):
    """Block row, first of the program's entries, end of its row's entries, its split, and whether
    it has the first of the row's entries, and with it the row's bias.

    Chunk c of a row holds its entries c * G, c * G + 1, ...; most rows have fewer chunks than the
    longest possible one, and programs past the end have nothing to do. Where a chunk is an entry
    there is a program for each of them, and behind them, where a bias is asked for, one for each
    row, which is idle where the row has entries.
    """
    pid, split = tl.program_id(0) % programs, tl.program_id(0) // programs
    if G == 1:
        active = pid < entries
        row = tl.where(active, tl.load(row_indices + pid, mask=active, other=0), pid - entries)
        end = tl.load(crow + row + 1)
        entry = tl.where(active, pid, end)
    else:
        row = tl.load(order + pid % rows)
        end = tl.load(crow + row + 1)
        entry = tl.load(crow + row) + pid // rows * G
    return row, entry, end, split, entry == tl.load(crow + row)


@triton.jit(do_not_specialize=[*SIZES, "programs", "entries", "split_tiles"])
def wgrad_tma(
    dy,  # descriptor [batch, T_out, rows * B], tiles [1, BT, B]
    x,  # descriptor [batch, T_in, inner_blocks * B], tiles [1, BT, B]
    partial,  # float32 [splits, entries, B, B]
    sums,  # float32 [splits, rows * B], or None where no one asks for dL/db
    crow,
    col,
    row_indices,
    order,
    rows,
    programs,  # of a split
    inner_blocks,
    entries,
    length_tiles,
    tiles,
    split_tiles,
    shift,
    step,
    B: tl.constexpr,
    BT: tl.constexpr,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`partial[split, entry + g] = dy[., row]^T * x[., tap, k]` for G blocks sharing dy's tiles."""
    row, entry, end, split, is_first = pick_blocks(
        crow, row_indices, order, rows, entries, programs, G
    )
    first = split * split_tiles
    if sums is not None:
        if is_first and entry == end:
            # A row without blocks has a bias all the same.
            total = tl.zeros((B, 16), tl.float32)
            ones = tl.full((BT, 16), 1.0, dy.dtype)
            for tile in range(first, min(first + split_tiles, tiles)):
                a = dy.load([tile // length_tiles, tile % length_tiles * BT, row * B])
                total = tl.dot(a.reshape(BT, B).T, ones, total, input_precision=PRECISION)
            place = sums + (split.to(tl.int64) * rows + row) * B + tl.arange(0, B)
            tl.store(place, tl.sum(total, 1) / 16)  # pyright: ignore[reportOperatorIssue]
    if entry < end:
        ones = tl.full((BT, 16), 1.0, dy.dtype)
        total = tl.zeros((B, 16), tl.float32)
        taps = ()
        columns = ()
        accs = ()
        for g in tl.static_range(G):  # pyright: ignore[reportGeneralTypeIssues]
            # Past the row's end the last block is computed again, and not stored.
            block = tl.load(col + min(entry + g, end - 1))
            taps = taps + (shift + block // inner_blocks * step,)
            columns = columns + (block % inner_blocks * B,)
            accs = accs + (tl.zeros((B, B), tl.float32),)
        for tile in range(first, min(first + split_tiles, tiles)):
            batch, t = tile // length_tiles, tile % length_tiles * BT
            a = dy.load([batch, t, row * B]).reshape(BT, B).T
            if sums is not None:
                total = tl.dot(a, ones, total, input_precision=PRECISION)
            new = ()
            for g in tl.static_range(G):  # pyright: ignore[reportGeneralTypeIssues]
                b = x.load([batch, t + taps[g], columns[g]]).reshape(BT, B)
                new = new + (tl.dot(a, b, accs[g], input_precision=PRECISION),)
            accs = new
        i = tl.arange(0, B)
        partial += (split.to(tl.int64) * entries + entry) * B * B
        for g in tl.static_range(G):  # pyright: ignore[reportGeneralTypeIssues]
            if entry + g < end:
                tl.store(partial + g * B * B + i[:, None] * B + i[None, :], accs[g])
        if sums is not None:
            if is_first:
                place = sums + (split.to(tl.int64) * rows + row) * B + i
                tl.store(place, tl.sum(total, 1) / 16)  # pyright: ignore[reportOperatorIssue]


@triton.jit(
    do_not_specialize=[*SIZES, "programs", "entries", "split_tiles", "out_length", "in_length"]
)
def wgrad_pointer(
    dy,  # [batch, T_out, rows * B], channels contiguous
    x,  # [batch, T_in, inner_blocks * B], channels contiguous
    partial,
    sums,
    crow,
    col,
    row_indices,
    order,
    rows,
    programs,  # of a split
    inner_blocks,
    entries,
    length_tiles,
    tiles,
    split_tiles,
    shift,
    step,
    out_length,
    in_length,
    dy_stride_b,
    dy_stride_t,
    x_stride_b,
    x_stride_t,
    B: tl.constexpr,
    BT: tl.constexpr,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`wgrad_tma` by pointers, the G blocks side by side in one tile `[BT, G * B]` of x.

    A block under 64 is too small for the tensor core's M operand: there the tile of x is.
    """
    row, entry, end, split, is_first = pick_blocks(
        crow, row_indices, order, rows, entries, programs, G
    )
    first = split * split_tiles
    if sums is not None:
        if is_first and entry == end:
            k, n = tl.arange(0, BT), tl.arange(0, B)
            total = tl.zeros((BT, B), tl.float32)
            for tile in range(first, min(first + split_tiles, tiles)):
                batch, t0 = (tile // length_tiles).to(tl.int64), tile % length_tiles * BT
                place = dy + batch * dy_stride_b + t0.to(tl.int64) * dy_stride_t + row * B
                offsets = k[:, None] * dy_stride_t + n[None, :]
                present = (t0 + k < out_length)[:, None]
                total += tl.load(place + offsets, mask=present, other=0.0).to(tl.float32)
            tl.store(sums + (split.to(tl.int64) * rows + row) * B + n, tl.sum(total, 0))
    if entry < end:
        i, j, n = tl.arange(0, BT), tl.arange(0, G * B), tl.arange(0, B)
        mine = entry + j // B
        block = tl.max_constancy(tl.load(col + mine, mask=mine < end, other=0), B)
        taps = shift + block // inner_blocks * step
        offsets = taps * x_stride_t + block % inner_blocks * B + j % B
        FIRST: tl.constexpr = B < 64
        acc = tl.zeros((G * B, B) if FIRST else (B, G * B), tl.float32)
        total = tl.zeros((16, B) if FIRST else (B, 16), tl.float32)
        ones = tl.full((16, BT) if FIRST else (BT, 16), 1.0, dy.dtype.element_ty)
        for tile in range(first, min(first + split_tiles, tiles)):
            batch, t0 = (tile // length_tiles).to(tl.int64), tile % length_tiles * BT
            # 64 bits for where a tile begins, 32 within it.
            a_tile = dy + batch * dy_stride_b + t0.to(tl.int64) * dy_stride_t + row * B
            b_tile = x + batch * x_stride_b + t0.to(tl.int64) * x_stride_t
            # Read as the product takes them: a transposition would undo asynchronous copies.
            a_present = t0 + i < out_length
            a = tl.load(
                a_tile + outer_sum(i * dy_stride_t, n, not FIRST),  # pyright: ignore[reportArgumentType]
                mask=a_present[:, None] if FIRST else a_present[None, :],
                other=0.0,
            )
            t = outer_sum(t0 + i, taps, FIRST)
            present = (mine < end)[:, None] if FIRST else (mine < end)[None, :]
            b = tl.load(
                b_tile + outer_sum(i * x_stride_t, offsets, FIRST),
                mask=(t >= 0) & (t < in_length) & present,
                other=0.0,
            )
            if FIRST:
                acc = tl.dot(b, a, acc, input_precision=PRECISION)
            else:
                acc = tl.dot(a, b, acc, input_precision=PRECISION)
            if sums is not None:
                if FIRST:
                    total = tl.dot(ones, a, total, input_precision=PRECISION)
                else:
                    total = tl.dot(a, ones, total, input_precision=PRECISION)
        partial += (split.to(tl.int64) * entries + entry) * B * B
        offsets = (j // B * B * B + j % B)[None, :] + n[:, None] * B
        out = acc.T if FIRST else acc
        tl.store(partial + offsets, out, mask=(mine < end)[None, :])
        if sums is not None:
            if is_first:
                place = sums + (split.to(tl.int64) * rows + row) * B + n
                column = tl.sum(total, 0 if FIRST else 1)
                tl.store(place, column / 16)  # pyright: ignore[reportOperatorIssue]


@triton.jit(do_not_specialize=["entries", "splits", "rows"])
def wgrad_reduce(
    partial,  # float32 [splits, entries, B, B]
    dw,  # [N, K], contiguous
    sums,  # float32 [splits, N], or None
    db,  # float32 or as dw [N]
    row_indices,
    col,
    entries,
    splits,
    columns,  # K
    rows,  # N / B
    B: tl.constexpr,
    BN: tl.constexpr,
    ADD: tl.constexpr,
):
    """`dw[block] (+)= sum over splits of partial[split, entry]`, in order; BN of B rows a program,
    added to what is there if ADD. Programs past the last entry add up the bias's.
    """
    entry, part = tl.program_id(0), tl.program_id(1)
    i, j = part * BN + tl.arange(0, BN), tl.arange(0, B)
    if entry < entries:
        tile = i[:, None] * B + j[None, :]
        partial += entry.to(tl.int64) * B * B
        total = tl.zeros((BN, B), tl.float32)
        for _ in range(splits):
            total += tl.load(partial + tile)
            partial += entries.to(tl.int64) * B * B
        dw += tl.load(row_indices + entry).to(tl.int64) * B * columns + tl.load(col + entry) * B
        out = dw + i[:, None] * columns + j[None, :]
        if ADD:
            total += tl.load(out).to(tl.float32)
        tl.store(out, total.to(dw.dtype.element_ty))
    elif sums is not None:
        n = (entry - entries) * B + i
        column = tl.zeros((BN,), tl.float32)
        for _ in range(splits):
            column += tl.load(sums + n)
            sums += rows * B
        tl.store(db + n, column.to(db.dtype.element_ty))


@triton.jit
def add_blocks(
    dw,  # [N, K], contiguous; what lies in pruned blocks is not read
    into,  # float32 [N, K], contiguous
    row_indices,
    col,
    columns,  # K
    B: tl.constexpr,
    BN: tl.constexpr,
):
    """`into[block] += dw[block]` where blocks are active; BN of B rows a program."""
    entry = tl.program_id(0)
    i, j = tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, B)
    place = tl.load(row_indices + entry).to(tl.int64) * B * columns + tl.load(col + entry) * B
    offsets = place + i[:, None] * columns + j[None, :]
    total = tl.load(into + offsets) + tl.load(dw + offsets).to(tl.float32)
    tl.store(into + offsets, total)
