# SPDX-License-Identifier: Apache-2.0
"""The length regulator: each token's channels, as often as it has frames; one kernel each way.

A token's frames lie side by side, so that the gradient is a sum over one run of rows, in their
order, by one program.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["frames", "tokens"])
def repeat_tokens(
    x,  # [B, tokens, columns], contiguous
    durations,  # int64 [B, tokens], frames, 0 or more
    y,  # [B, frames, columns]
    frames,
    tokens,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
):
    """`y[b, t] = x[b, token at frame t]`, 0 past the last token's end; BL tokens at once."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BM + tl.arange(0, BM)
    # The token at t comes behind all that end by then; one without frames ends where it begins.
    token, end = tl.zeros((BM,), tl.int32), tl.zeros((), tl.int32)
    for i0 in range(0, tokens, BL):
        i = i0 + tl.arange(0, BL)
        lasts = tl.load(durations + b * tokens + i, mask=i < tokens, other=0).to(tl.int32)
        ends = end + tl.cumsum(lasts, 0)
        gone = (ends[None, :] <= t[:, None]) & (i < tokens)[None, :]
        token += tl.sum(gone.to(tl.int32), 1)
        end += tl.sum(lasts)
    rows, inside = b * tokens + token, t < frames
    known = inside & (token < tokens)
    for n0 in range(0, columns, BN):
        n = n0 + tl.arange(0, BN)
        from_there = rows[:, None] * columns + n[None, :]
        value = tl.load(x + from_there, mask=known[:, None] & (n < columns)[None, :], other=0.0)
        to_there = (b * frames + t)[:, None] * columns + n[None, :]
        tl.store(y + to_there, value, mask=inside[:, None] & (n < columns)[None, :])


@triton.jit(do_not_specialize=["frames", "tokens"])
def repeat_tokens_backward(
    dy,  # [B, frames, columns], contiguous
    durations,  # int64 [B, tokens]
    dx,  # [B, tokens, columns]
    frames,
    tokens,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
):
    """`dx[b, i]` = sum of dy over the frames of token i, in float32; BM frames at once."""
    b, token = tl.program_id(1).to(tl.int64), tl.program_id(0)
    durations += b * tokens
    begin = tl.zeros((), tl.int32)
    for i0 in range(0, token, BL):
        i = i0 + tl.arange(0, BL)
        begin += tl.sum(tl.load(durations + i, mask=i < token, other=0).to(tl.int32))
    # Past the end where the batch is cut.
    end = tl.minimum(begin + tl.load(durations + token).to(tl.int32), frames)
    for n0 in range(0, columns, BN):
        n = n0 + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        for t0 in range(begin, end, BM):
            t = t0 + tl.arange(0, BM)
            there = (b * frames + t)[:, None] * columns + n[None, :]
            inside = (t < end)[:, None] & (n < columns)[None, :]
            total += tl.load(dy + there, mask=inside, other=0.0).to(tl.float32)
        at = (b * tokens + token) * columns + n
        tl.store(dx + at, tl.sum(total, 0).to(dx.dtype.element_ty), mask=n < columns)
