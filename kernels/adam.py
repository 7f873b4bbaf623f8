# SPDX-License-Identifier: Apache-2.0
"""Adam over a table of parameters: one launch for all of them, pruned blocks left out."""

import triton
import triton.language as tl

# Columns of the table of a parameter: addresses, the width of a run and the distance of two runs,
# what kind of update, and the number of its group.
FIELDS = 10
# And of its rates: factor of the learning rate, betas, their logarithms, eps, weight decay.
RATES = 7
DECOUPLED, MAXIMIZE, DECAYS, AMSGRAD = 1, 2, 4, 8


@triton.jit
def places(offsets, table, i, TILE: tl.constexpr):
    """Where the elements of tile i lie in their parameter.

    A tile is a stretch of a parameter without a mask, or some rows of a block.
    """
    j = tl.arange(0, TILE)
    log_width, distance = tl.load(table + 6).to(tl.int32), tl.load(table + 7)
    place = tl.load(offsets + i) + (j >> log_width).to(tl.int64) * distance
    place += j & ((1 << log_width) - 1)
    # Runs begin at multiples of 16 and are as long, which the compiler cannot see in a shift.
    return tl.max_contiguous(tl.multiple_of(place, 16), 16)


@triton.jit
def tensor_at(table, field):
    """The float32 tensor whose address lies in a field of the table."""
    return tl.multiple_of(tl.load(table + field).to(tl.pointer_type(tl.float32)), 16)


# Each kernel asks first whether its tile is whole, as nearly all are: a mask whose end is not known
# to the compiler would have each number loaded by itself.


@triton.jit
def sum_squares(
    owners,  # int32 [tiles]: the tile's parameter
    offsets,  # int64 [tiles]: its first element
    counts,  # int32 [tiles]: its elements
    table,  # int64 [parameters, FIELDS]
    sums,  # float32 [tiles]
    FIELDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """`sums[i]`: of the squares of the gradients in tile i."""
    i = tl.program_id(0)
    table += tl.load(owners + i) * FIELDS
    place, count = tensor_at(table, 1) + places(offsets, table, i, TILE), tl.load(counts + i)
    if count == TILE:
        gradient = tl.load(place)
    else:
        gradient = tl.load(place, mask=tl.arange(0, TILE) < count, other=0.0)
    tl.store(sums + i, tl.sum(gradient * gradient, 0))


@triton.jit
def clear_gradients(owners, offsets, counts, table, FIELDS: tl.constexpr, TILE: tl.constexpr):
    """Zeroes the gradients of all tiles."""
    i = tl.program_id(0)
    table += tl.load(owners + i) * FIELDS
    place, count = tensor_at(table, 1) + places(offsets, table, i, TILE), tl.load(counts + i)
    if count == TILE:
        tl.store(place, tl.zeros((TILE,), tl.float32))
    else:
        tl.store(place, tl.zeros((TILE,), tl.float32), mask=tl.arange(0, TILE) < count)


@triton.jit
def adam_update(
    owners,
    offsets,
    counts,
    table,
    rates,  # float64 [parameters, RATES]
    learning_rates,  # float64 [groups]
    scale,  # float32 [] that gradients are multiplied by, or None
    FIELDS: tl.constexpr,
    RATES: tl.constexpr,
    TILE: tl.constexpr,
    CLEAR: tl.constexpr,
):
    """One step of Adam or AdamW, whose number has been counted already; the gradients are zero
    afterwards (CLEAR) or scaled.
    """
    i = tl.program_id(0)
    owner = tl.load(owners + i)
    table += owner * FIELDS
    rates += owner * RATES
    place, count = places(offsets, table, i, TILE), tl.load(counts + i)
    if count == TILE:
        update_tile(table, rates, learning_rates, scale, place, count, TILE, CLEAR, True)  # pyright: ignore[reportArgumentType]
    else:
        update_tile(table, rates, learning_rates, scale, place, count, TILE, CLEAR, False)  # pyright: ignore[reportArgumentType]


@triton.jit
def update_tile(
    table,
    rates,
    learning_rates,
    scale,
    place,
    count,
    TILE: tl.constexpr,
    CLEAR: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """`adam_update` of the elements at `place`, of which the first `count` are there."""
    # Rates in float64, rounded once: at the first steps 1 - beta^step loses its digits in float32.
    step = tl.load(tl.load(table + 5).to(tl.pointer_type(tl.float32))).to(tl.float64)
    lr = tl.load(learning_rates + tl.load(table + 9)) * tl.load(rates)
    beta1, beta2 = tl.load(rates + 1), tl.load(rates + 2)
    size = (-lr / (1.0 - tl.exp2(step * tl.load(rates + 3)))).to(tl.float32)
    root = tl.sqrt(1.0 - tl.exp2(step * tl.load(rates + 4))).to(tl.float32)
    eps, decay = tl.load(rates + 5).to(tl.float32), tl.load(rates + 6)
    kind = tl.load(table + 8)
    if WHOLE:
        mask = tl.full((TILE,), 1, tl.int1)
    else:
        mask = tl.arange(0, TILE) < count
    w_place, g_place = tensor_at(table, 0) + place, tensor_at(table, 1) + place
    m_place, v_place = tensor_at(table, 2) + place, tensor_at(table, 3) + place
    w, g = tl.load(w_place, mask=mask), tl.load(g_place, mask=mask)
    m, v = tl.load(m_place, mask=mask), tl.load(v_place, mask=mask)
    if scale is not None:
        g *= tl.load(scale)
    if CLEAR:
        tl.store(g_place, tl.zeros((TILE,), tl.float32), mask=mask)
    elif scale is not None:
        tl.store(g_place, g, mask=mask)
    if kind & 2:
        g = -g
    if kind & 4:
        if kind & 1:
            w *= (1.0 - lr * decay).to(tl.float32)
        else:
            g += decay.to(tl.float32) * w
    m += (1.0 - beta1).to(tl.float32) * (g - m)
    v = v * beta2.to(tl.float32) + (1.0 - beta2).to(tl.float32) * g * g
    largest = v
    if kind & 8:
        most_place = tensor_at(table, 4) + place
        largest = tl.maximum(tl.load(most_place, mask=mask), v)
        tl.store(most_place, largest, mask=mask)
    # Root and quotients as IEEE has them and torch computes them, not the hardware's faster ones.
    w += tl.div_rn(size * m, tl.div_rn(tl.sqrt_rn(largest), root) + eps)
    tl.store(w_place, w, mask=mask)
    tl.store(m_place, m, mask=mask)
    tl.store(v_place, v, mask=mask)
