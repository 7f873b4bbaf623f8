# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2's loss: all terms in two visits forward, and all gradients in one.

An utterance's unpadded frames lie at its beginning, as one run of values: programs take chunks of
such runs, and the first program of each utterance takes its tokens. No sum is atomic, so that each
run has the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def known_length(lengths, b, length, MASKED: tl.constexpr):
    """Entries of utterance b that count, at most `length`; all of them if not MASKED."""
    known = length
    if MASKED:
        known = tl.minimum(tl.load(lengths + b), length).to(tl.int32)
    return known


@triton.jit
def token_distances(
    first,  # of the utterance, in [B, tokens]
    i,
    known,
    inside,
    log_durations,
    pitch,
    energy,
    durations,
    pitch_target,
    energy_target,
    EMPTY: tl.constexpr,
    MASKED: tl.constexpr,
):
    """At tokens i: how far each prediction is from its target where it counts, else 0, and where
    pitch and energy count.
    """
    at = first + i
    frames = tl.load(durations + at, mask=inside, other=0)
    counts = inside & (i < known)
    spoken = counts
    if MASKED and not EMPTY:
        spoken = counts & (frames > 0)
    distance = tl.load(log_durations + at, mask=counts, other=0.0).to(tl.float32)
    distance = tl.where(counts, distance - tl.log(frames.to(tl.float32) + 1.0), 0.0)
    pitch_by = tl.load(pitch + at, mask=spoken, other=0.0).to(tl.float32)
    pitch_by -= tl.load(pitch_target + at, mask=spoken, other=0.0)
    energy_by = tl.load(energy + at, mask=spoken, other=0.0).to(tl.float32)
    energy_by -= tl.load(energy_target + at, mask=spoken, other=0.0)
    return distance, pitch_by, energy_by, spoken


@triton.jit(do_not_specialize=["batch", "frames", "tokens"])
def loss_parts(
    before,  # [batch, frames, columns], contiguous
    after,  # the same, or None
    log_durations,  # [batch, tokens], contiguous
    pitch,
    energy,
    mel,  # float32 [batch, frames, columns]
    durations,  # int64 [batch, tokens]
    pitch_target,  # float32 [batch, tokens]
    energy_target,
    mel_lengths,  # int64 [batch]
    token_lengths,
    mel_sums,  # float32 [2, batch, chunks]
    token_sums,  # float32 [4, batch]: durations, pitch, energy, and how many tokens are spoken
    batch,
    frames,
    tokens,
    columns,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    EMPTY: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Sums over what counts: of |y - target| of a chunk of an utterance's frames, of
    (y - target)^2 of its tokens.
    """
    b, chunk = tl.program_id(1), tl.program_id(0) - 1
    if chunk < 0:
        first = b.to(tl.int64) * tokens
        known = known_length(token_lengths, b, tokens, MASKED)
        of_durations, of_pitch = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        of_energy, heard = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for i0 in range(0, known, TILE):
            i = i0 + tl.arange(0, TILE)
            d, p, e, spoken = token_distances(
                first,
                i,
                known,
                i < tokens,
                log_durations,
                pitch,
                energy,
                durations,
                pitch_target,
                energy_target,
                EMPTY,
                MASKED,
            )
            of_durations += d * d
            of_pitch += p * p
            of_energy += e * e
            heard += spoken.to(tl.float32)
        tl.store(token_sums + b, tl.sum(of_durations))
        tl.store(token_sums + batch + b, tl.sum(of_pitch))
        tl.store(token_sums + 2 * batch + b, tl.sum(of_energy))
        tl.store(token_sums + 3 * batch + b, tl.sum(heard))
    else:
        first = b.to(tl.int64) * frames * columns
        known = known_length(mel_lengths, b, frames, MASKED) * columns
        of_before, of_after = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for i0 in range(chunk * CHUNK, min((chunk + 1) * CHUNK, known), TILE):
            i = i0 + tl.arange(0, TILE)
            target = tl.load(mel + first + i, mask=i < known, other=0.0)
            value = tl.load(before + first + i, mask=i < known, other=0.0).to(tl.float32)
            of_before += tl.abs(value - target)
            if after is not None:
                value = tl.load(after + first + i, mask=i < known, other=0.0).to(tl.float32)
                of_after += tl.abs(value - target)
        chunks = tl.num_programs(0) - 1
        mel_sums += b * chunks + chunk
        tl.store(mel_sums, tl.sum(of_before))
        if after is not None:
            tl.store(mel_sums + batch * chunks, tl.sum(of_after))


@triton.jit
def share(counts, of_all, rows, length, MASKING: tl.constexpr):
    """What one entry of utterances with so many entries weighs."""
    if MASKING == "entries":
        over = tl.zeros_like(counts) + tl.maximum(of_all, 1).to(tl.float32)
    elif MASKING == "utterances":
        over = tl.maximum(counts, 1.0) * rows
    else:
        over = tl.zeros_like(counts) + rows * length
    return 1.0 / over


@triton.jit(do_not_specialize=["batch", "frames", "tokens", "chunks"])
def loss_terms(
    mel_sums,  # float32 [2, batch, chunks]
    token_sums,  # float32 [4, batch]
    mel_lengths,  # int64 [batch]
    token_lengths,
    totals,  # int64 [4]: utterances, frames, tokens, spoken tokens of the whole batch; or None
    weights,  # float32 [3, batch]: what a value of a mel, a token, a spoken token weighs
    terms,  # float32 [5]: mel before and after, duration, pitch, energy
    total,  # float32 []
    batch,
    frames,
    tokens,
    columns,
    chunks,
    AFTER: tl.constexpr,
    EMPTY: tl.constexpr,
    MASKING: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Weighs and adds up what `loss_parts` left, in an order that the shape decides."""
    rows = batch.to(tl.float32)
    all_frames, all_tokens, all_spoken = 0, 0, 0
    if totals is not None:
        rows = tl.load(totals).to(tl.float32)
        all_frames, all_tokens = tl.load(totals + 1), tl.load(totals + 2)
        all_spoken = tl.load(totals + 3)
    elif MASKING == "entries":
        for b0 in range(0, batch, BM):
            b = b0 + tl.arange(0, BM)
            known = tl.load(mel_lengths + b, mask=b < batch, other=0)
            all_frames += tl.sum(tl.minimum(known, frames).to(tl.int32))  # pyright: ignore[reportOperatorIssue]
            known = tl.load(token_lengths + b, mask=b < batch, other=0)
            all_tokens += tl.sum(tl.minimum(known, tokens).to(tl.int32))  # pyright: ignore[reportOperatorIssue]
            known = tl.load(token_sums + 3 * batch + b, mask=b < batch, other=0.0)
            all_spoken += tl.sum(known.to(tl.int32))  # pyright: ignore[reportOperatorIssue]
    if EMPTY:
        all_spoken = all_tokens
    of_before, of_after = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    of_durations, of_pitch = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    of_energy = tl.zeros((BM,), tl.float32)
    for b0 in range(0, batch, BM):
        b = b0 + tl.arange(0, BM)
        inside = b < batch
        known = tl.load(mel_lengths + b, mask=inside, other=0)
        known = tl.minimum(known, frames).to(tl.float32)
        frame = share(known, all_frames, rows, frames, MASKING) / columns
        known = tl.load(token_lengths + b, mask=inside, other=0)
        known = tl.minimum(known, tokens).to(tl.float32)
        token = share(known, all_tokens, rows, tokens, MASKING)
        known = tl.load(token_sums + 3 * batch + b, mask=inside, other=0.0)
        spoken = share(known, all_spoken, rows, tokens, MASKING)
        tl.store(weights + b, frame, mask=inside)
        tl.store(weights + batch + b, token, mask=inside)
        tl.store(weights + 2 * batch + b, spoken, mask=inside)
        for c0 in range(0, chunks, BN):
            c = c0 + tl.arange(0, BN)
            at = b[:, None] * chunks + c[None, :]
            there = inside[:, None] & (c < chunks)[None, :]
            of_before += tl.load(mel_sums + at, mask=there, other=0.0) * frame[:, None]
            if AFTER:
                at += batch * chunks
                of_after += tl.load(mel_sums + at, mask=there, other=0.0) * frame[:, None]
        of_durations += tl.load(token_sums + b, mask=inside, other=0.0) * token
        of_pitch += tl.load(token_sums + batch + b, mask=inside, other=0.0) * spoken
        of_energy += tl.load(token_sums + 2 * batch + b, mask=inside, other=0.0) * spoken
    first, second = tl.sum(tl.sum(of_before, 1)), tl.sum(tl.sum(of_after, 1))
    third, fourth, fifth = tl.sum(of_durations), tl.sum(of_pitch), tl.sum(of_energy)
    tl.store(terms, first)
    tl.store(terms + 1, second)
    tl.store(terms + 2, third)
    tl.store(terms + 3, fourth)
    tl.store(terms + 4, fifth)
    tl.store(total, first + second + third + fourth + fifth)


@triton.jit
def store_slope(at, out, y, target, inside, counts, weight):
    """`out = weight * sign(y - target)` where it counts, else 0."""
    distance = tl.load(y + at, mask=counts, other=0.0).to(tl.float32) - target
    slope = tl.where(distance > 0, weight, tl.where(distance < 0, -weight, 0.0))
    slope = tl.where(counts, slope, 0.0)
    tl.store(out + at, slope.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "frames", "tokens"])
def loss_backward(
    dtotal,  # float32 []
    weights,  # float32 [3, batch]
    before,  # as `loss_parts` takes them
    after,
    log_durations,
    pitch,
    energy,
    mel,
    durations,
    pitch_target,
    energy_target,
    mel_lengths,
    token_lengths,
    dbefore,  # contiguous, of the prediction's dtype
    dafter,
    dlog_durations,
    dpitch,
    denergy,
    batch,
    frames,
    tokens,
    columns,
    TILE: tl.constexpr,
    EMPTY: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The gradient of every prediction, 0 in what does not count."""
    b, chunk = tl.program_id(1), tl.program_id(0) - 1
    scale = tl.load(dtotal)
    if chunk < 0:
        first = b.to(tl.int64) * tokens
        known = known_length(token_lengths, b, tokens, MASKED)
        token = 2.0 * scale * tl.load(weights + batch + b)
        spoken = 2.0 * scale * tl.load(weights + 2 * batch + b)
        for i0 in range(0, tokens, TILE):
            i = i0 + tl.arange(0, TILE)
            d, p, e, _ = token_distances(
                first,
                i,
                known,
                i < tokens,
                log_durations,
                pitch,
                energy,
                durations,
                pitch_target,
                energy_target,
                EMPTY,
                MASKED,
            )
            d, p, e = d * token, p * spoken, e * spoken
            at = first + i
            tl.store(dlog_durations + at, d.to(dlog_durations.dtype.element_ty), mask=i < tokens)
            tl.store(dpitch + at, p.to(dpitch.dtype.element_ty), mask=i < tokens)
            tl.store(denergy + at, e.to(denergy.dtype.element_ty), mask=i < tokens)
    else:
        first = b.to(tl.int64) * frames * columns
        known = known_length(mel_lengths, b, frames, MASKED) * columns
        weight = scale * tl.load(weights + b)
        i = chunk * TILE + tl.arange(0, TILE)
        inside, counts = i < frames * columns, i < known
        target = tl.load(mel + first + i, mask=counts, other=0.0)
        store_slope(first + i, dbefore, before, target, inside, counts, weight)
        if after is not None:
            store_slope(first + i, dafter, after, target, inside, counts, weight)
