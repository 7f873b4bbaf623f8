# SPDX-License-Identifier: Apache-2.0
"""The tile sizes that ship, chosen from what the compiler reports; nothing here needs Triton.

The first of a list is the default; the others serve short sequences and
`sniper.ops.backends.triton.tune`.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK_SIZES = (16, 32, 64, 128)

# Shared memory that one program may take, in bytes, by compute capability.
SHARED_MEMORY = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448}
SMALLEST_SHARED_MEMORY = 101376


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


C = Config
# By path and block size, for two-byte values, for float32 as tf32, and for true float32.
PRODUCT = {
    ("tma", 64, "half"): (C(256, 64, 4, 2), C(128, 64, 4, 3), C(256, 64, 4, 3), C(64, 64, 4, 4)),
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
    ("pointer", 64, "fp32"): (C(64, 16, 4, 2),),
    ("pointer", 128, "half"): (C(128, 64, 8, 3), C(64, 64, 8, 3)),
    ("pointer", 128, "tf32"): (C(128, 32, 8, 3), C(64, 32, 8, 3)),
    ("pointer", 128, "fp32"): (C(64, 16, 8, 2),),
}
WGRAD = {
    ("tma", 64, "half"): (C(64, 4, 4, 3), C(64, 2, 4, 4), C(64, 1, 4, 4)),
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
# Where four warps would spill registers on an sm_100.
EIGHT_WARPS_ON_SM_100 = {
    ("wgrad", "tma", 64, "half"),
    ("wgrad", "tma", 64, "tf32"),
    ("product", "pointer", 64, "fp32"),
}
# Token tiles whose activations a group of programs shares through L2.
GROUP = 32


def arch_of(capability: tuple[int, int]) -> int:
    """`(9, 0)` -> 90."""
    return 10 * capability[0] + capability[1]


def has_tma(arch: int) -> bool:
    """Whether the TMA path pays: a copy engine, and tensor cores that read shared memory. NVIDIA's
    alone: an AMD gfx942 calls itself (9, 4).
    """
    return arch in (90, 100, 103)


def candidates(op: str, path: str, block: int, kind: str, arch: int) -> list[Config]:
    """What ships for a case, the default first.

    Args:
        op: `product` or `wgrad`.
        path: `tma` or `pointer`.
        block: block size.
        kind: `half`, `tf32` or `fp32`.
        arch: compute capability, as 90.
    """
    table = PRODUCT if op == "product" else WGRAD
    limit = SHARED_MEMORY.get(arch, SMALLEST_SHARED_MEMORY)
    fitting = []
    for config in table[path, block, kind]:
        if arch // 10 == 10 and (op, path, block, kind) in EIGHT_WARPS_ON_SM_100:
            config = config._replace(warps=8)
        while _pipeline_bytes(op, block, kind, config) > limit and config.stages > 1:
            config = config._replace(stages=config.stages - 1)
        if config not in fitting:
            fitting.append(config)
    return fitting


def for_length(configs: list[Config], length: int) -> Config:
    """The first whose tiles waste little more of a sequence than the least wasteful ones."""
    padded = [-(-length // c.tokens) * c.tokens for c in configs]
    return next(c for c, p in zip(configs, padded, strict=True) if p <= 1.15 * min(padded))


def _pipeline_bytes(op: str, block: int, kind: str, config: Config) -> int:
    """Shared memory of the pipeline's buffers, with room for the tile on its way out."""
    values = (block + config.tokens) * config.width
    if op == "wgrad":
        values = config.tokens * block * (1 + config.width)
    return config.stages * values * (2 if kind == "half" else 4) + 2048
