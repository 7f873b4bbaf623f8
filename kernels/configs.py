# SPDX-License-Identifier: Apache-2.0
"""The tile sizes that ship, chosen from what the compiler reports; nothing here needs Triton.

The first of a list is the default; the others serve short sequences and
`sniper.ops.backends.triton.tune`.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK_SIZES = (16, 32, 64, 128)

# Of every launch. Triton fuses a product and a sum into one instruction by default up to version
# 3.9, which warns that 3.10 will not: kernels would be slower, and runs get other bits.
OPTIONS = {"enable_fp_fusion": True}

# Shared memory that one program may take, in bytes, by compute capability (CUDA C++ Programming
# Guide, "Technical Specifications per Compute Capability": 99, 163 or 227 KiB).
SHARED_MEMORY = {
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    103: 232448,
    120: 101376,
    121: 101376,
}
# What every chip from sm_80 has: taken for one that is not listed, unless it says itself.
SMALLEST_SHARED_MEMORY = min(SHARED_MEMORY.values())


class Config(NamedTuple):
    """One way to launch a product or a weight gradient.

    Args:
        tokens: rows of x or dy in a tile.
        width: product: channels a turn; weight gradient: blocks that share a tile of dy.
        warps: per program.
        stages: of the software pipeline.
    """

    tokens: int
    width: int
    warps: int
    stages: int


class AttentionTile(NamedTuple):
    """One way to launch a kernel of attention.

    Args:
        queries, keys: of a tile. Random words are drawn for 64 keys at a time, of which a tile of
            fewer uses a part.
        warps: per program.
        stages: of the software pipeline.
        tail: keys at a time that fill no whole tile, or do not lie one behind the other.
        registers: of a thread, at most, so that more programs share a multiprocessor; None: as many
            as the compiler takes.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    tail: int = 32
    registers: int | None = None


C = Config
# By path and block size, for two-byte values, for float32 as tf32, and for true float32.
PRODUCT = {
    # On an H200, a fifth of the blocks, 560 frames: 384 to 1536 channels, three taps, 33 and 37 us
    # with two and three stages, 1536 to 384 37 and 32; with tiles of 128 39 and 35, of 256 44 and
    # 42. Of few turns a deep pipeline is filled in vain.
    ("tma", 64, "half"): (C(192, 64, 4, 2), C(192, 64, 4, 3), C(128, 64, 4, 3), C(64, 64, 4, 3)),
    ("tma", 64, "tf32"): (C(128, 32, 4, 4), C(64, 32, 4, 4)),
    ("tma", 128, "half"): (C(256, 64, 8, 3), C(128, 64, 8, 4), C(64, 64, 8, 4)),
    ("tma", 128, "tf32"): (C(256, 32, 8, 3), C(128, 32, 8, 4), C(64, 32, 8, 4)),
    ("pointer", 16, "half"): (C(128, 64, 4, 4), C(64, 64, 4, 4)),
    ("pointer", 16, "tf32"): (C(128, 32, 4, 4), C(64, 32, 4, 4)),
    ("pointer", 16, "fp32"): (C(64, 16, 4, 2),),
    ("pointer", 32, "half"): (C(128, 64, 4, 4), C(64, 64, 4, 4)),
    ("pointer", 32, "tf32"): (C(128, 32, 4, 4), C(64, 32, 4, 4)),
    ("pointer", 32, "fp32"): (C(64, 16, 4, 2),),
    ("pointer", 64, "half"): (C(128, 64, 4, 4), C(64, 64, 4, 4)),
    ("pointer", 64, "tf32"): (C(128, 32, 4, 4), C(64, 32, 4, 4)),
    # 64 rows spill, with four warps in the input gradient and with eight in the forward pass.
    ("pointer", 64, "fp32"): (C(32, 16, 4, 2),),
    # With 128 rows Triton 3.6 has no registers for dropout at the end.
    ("pointer", 128, "half"): (C(64, 64, 8, 3),),
    ("pointer", 128, "tf32"): (C(64, 32, 8, 3),),
    ("pointer", 128, "fp32"): (C(64, 16, 8, 2),),
}
WGRAD = {
    # On an H200, 384 to 1536 channels and three taps: 35 and 37 us at a fifth of the blocks, 79 and
    # 59 at a half. Of few blocks in a row, what a group computes past the row's end is lost.
    ("tma", 64, "half"): (C(64, 1, 4, 4), C(64, 2, 4, 3)),
    ("tma", 64, "tf32"): (C(32, 2, 4, 3), C(32, 1, 4, 4)),
    ("tma", 128, "half"): (C(64, 1, 8, 4),),
    ("tma", 128, "tf32"): (C(32, 1, 8, 3),),
    ("pointer", 16, "half"): (C(64, 8, 4, 3),),
    ("pointer", 16, "tf32"): (C(32, 8, 4, 3),),
    ("pointer", 16, "fp32"): (C(16, 4, 4, 2),),
    ("pointer", 32, "half"): (C(64, 4, 4, 3),),
    ("pointer", 32, "tf32"): (C(32, 4, 4, 3),),
    ("pointer", 32, "fp32"): (C(16, 2, 4, 2),),
    ("pointer", 64, "half"): (C(64, 2, 4, 3), C(64, 1, 4, 4)),
    ("pointer", 64, "tf32"): (C(32, 2, 4, 3),),
    ("pointer", 64, "fp32"): (C(16, 1, 4, 2),),
    ("pointer", 128, "half"): (C(64, 1, 8, 3),),
    ("pointer", 128, "tf32"): (C(32, 1, 8, 3),),
    ("pointer", 128, "fp32"): (C(16, 1, 8, 2),),
}
# Where four warps would spill registers, by op, path, block size and kind: on these chips.
EIGHT_WARPS = {
    ("product", "pointer", 64, "half"): (80, 86, 87, 89),
    ("wgrad", "tma", 64, "half"): (100, 103),
    ("wgrad", "tma", 64, "tf32"): (100, 103),
    ("wgrad", "pointer", 64, "fp32"): (86, 87, 89, 90, 120, 121),
    ("wgrad", "pointer", 64, "half"): (120, 121),
}
# The active blocks in a row, on average, from which a product takes more stages than two.
DEEP_FROM = 10
# The share of active blocks from which a weight gradient takes several of a row at a time.
GROUPED_FROM = 1 / 3
# Token tiles whose activations a group of programs shares through L2.
GROUP = 32
# Elements that a program of the optimizer takes: a block of 32, a quarter of one of 64.
ADAM_TILE = 1024
# A program of LayerNorm holds whole rows in its registers.
MOST_NORM_COLUMNS = 4096
# Tile of the sum of its programs' partial gradients: narrow, so that many programs share them.
NORM_SUMS = Config(256, 8, 4, 3)
# A head has a multiple of 16 channels, up to this.
MOST_HEAD_CHANNELS = 256
# By the most channels of a head. In the order of their times on an H200.
ATTENTION_TMA = {
    "forward": {
        128: AttentionTile(64, 64, 4, 2),
        192: AttentionTile(64, 32, 4, 2, tail=16, registers=168),
        256: AttentionTile(128, 64, 8, 2),
    },
    "backward": {
        128: AttentionTile(64, 64, 4, 2),
        192: AttentionTile(64, 32, 4, 2, tail=16),
        256: AttentionTile(64, 64, 8, 1, tail=16),
    },
    "sums": {192: AttentionTile(64, 64, 4, 2), 256: AttentionTile(64, 64, 8, 2)},
}
# Flags of a mask that a program reads at a time.
KEY_ORDER_TILE = 256
# Where tensor cores read registers, which do not suffice for more.
ATTENTION_POINTER = {
    "forward": {64: AttentionTile(64, 32, 4, 1, 16), 256: AttentionTile(32, 32, 4, 2, 16)},
    "backward": {64: AttentionTile(64, 32, 4, 2, 16), 256: AttentionTile(32, 32, 4, 2, 16)},
    "sums": {256: AttentionTile(64, 64, 4, 2)},
}
# The loss: values of a mel that a program adds up, and how many of them at once. A batch of 21 by
# 540 frames makes some 200 programs, with few sums for the one program behind them, whose tile is
# of utterances and chunks.
LOSS_CHUNK, LOSS_TILE = 4096, 1024
LOSS_TERMS = Config(32, 16, 4, 3)
# The length regulator: frames and channels at once, and tokens whose ends are added up at once.
# A token has some five frames: one warp adds them up without a barrier.
REPEAT, REPEAT_BACKWARD, REPEAT_TOKENS = Config(16, 128, 4, 3), Config(4, 128, 1, 3), 128


def arch_of(capability: tuple[int, int]) -> int:
    """`(9, 0)` -> 90."""
    return 10 * capability[0] + capability[1]


def has_tma(arch: int) -> bool:
    """Whether the TMA path pays: a copy engine, and tensor cores that read shared memory. NVIDIA's
    alone: an AMD gfx942 calls itself (9, 4).
    """
    return arch in (90, 100, 103)


def shared_memory(arch: int) -> int:
    """Bytes that one program may take on a chip; what every chip has, if it is not listed.

    Raises:
        ValueError: a chip older than sm_80, which the kernels are not for.
    """
    if arch < 80:
        raise ValueError(
            f"arch: expected a compute capability from 80 on, got {arch}; older chips run dense"
        )
    return SHARED_MEMORY.get(arch, SMALLEST_SHARED_MEMORY)


def candidates(
    op: str, path: str, block: int, kind: str, arch: int, limit: int | None = None
) -> list[Config]:
    """What ships for a case and fits the chip, the default first.

    Args:
        op: `product` or `wgrad`.
        path: `tma` or `pointer`.
        block: block size.
        kind: `half`, `tf32` or `fp32`.
        arch: compute capability, as 90.
        limit: bytes of shared memory that a program may take; None: `shared_memory(arch)`.

    Returns:
        Configurations with as many pipeline stages as fit, up to the table's; what does not fit
        with one stage is left out, so that the list may be empty.

    Raises:
        ValueError: a chip older than sm_80.
    """
    table = PRODUCT if op == "product" else WGRAD
    limit = shared_memory(arch) if limit is None else limit
    fitting = []
    for config in table[path, block, kind]:
        if arch in EIGHT_WARPS.get((op, path, block, kind), ()):
            config = config._replace(warps=8)
        while _shared_bytes(op, block, kind, config) > limit and config.stages > 1:
            config = config._replace(stages=config.stages - 1)
        if _shared_bytes(op, block, kind, config) <= limit and config not in fitting:
            fitting.append(config)
    return fitting


def norm(columns: int) -> Config:
    """Rows and width (a power of two) of LayerNorm's tile: 8 values a thread."""
    width = _row_width(columns)
    return Config(max(1, min(16, 1024 // width)), width, max(4, width // 256), 3)


def norm_backward(columns: int) -> Config:
    """The same of its gradient: a row up to 512 wide is one warp's, whose lanes add up without a
    barrier. With four warps to a tile a program waited 33 times a turn, and read at half the
    memory's rate.
    """
    width = _row_width(columns)
    return Config(max(1, min(16, 512 // width)), width, max(1, width // 512), 3)


def powers_of_two(size: int) -> tuple[int, int]:
    """A head's channels, or a tile's tokens, as one power of two or as two: `192` -> `(128, 64)`.
    The second is 0 or at least 16, and may be more than what is left.
    """
    first = 1 << (size.bit_length() - 1)
    rest = size - first
    return first, 0 if not rest else max(16, 1 << (rest - 1).bit_length())


def attention(op: str, channels: int, arch: int) -> AttentionTile:
    """The tile of a kernel of attention.

    Args:
        op: `forward`, `backward` (the gradients of queries and scores) or `sums` (of keys and
            values).
        channels: of a head.
        arch: compute capability, as 90.
    """
    table = ATTENTION_TMA if has_tma(arch) else ATTENTION_POINTER
    return next(tile for most, tile in table[op].items() if channels <= most)


def _row_width(columns: int) -> int:
    return max(16, 1 << (columns - 1).bit_length())


def for_length(configs: list[Config], length: int) -> Config:
    """The first whose tiles waste little more of a sequence than the least wasteful ones."""
    if len(configs) == 1:
        return configs[0]
    padded = [-(-length // c.tokens) * c.tokens for c in configs]
    return next(c for c, p in zip(configs, padded, strict=True) if p <= 1.15 * min(padded))


def _shared_bytes(op: str, block: int, kind: str, config: Config) -> int:
    """No less than what the compiler takes: the pipeline's buffers, or the float32 tile on its way
    out, whose memory is the same. Only tf32 on an sm_100, with memory to spare, takes up to two
    turns more; the report holds what is true to the chip's limit.
    """
    turn, out = (block + config.tokens) * config.width, block * config.tokens
    if op == "wgrad":
        turn, out = config.tokens * block * (1 + config.width), block * block
    size = 2 if kind == "half" else 4
    # Barriers, and the ones that dy is multiplied with for the bias.
    return max(config.stages * turn * size, 4 * out) + 2304
