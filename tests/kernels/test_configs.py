# SPDX-License-Identifier: Apache-2.0
"""The table of tile sizes."""

from __future__ import annotations

import itertools

import pytest
from sniper.kernels import configs
from sniper.kernels.configs import Config


@pytest.mark.parametrize("arch", [*configs.SHARED_MEMORY, 130])
@pytest.mark.parametrize("op", ["product", "wgrad"])
def test_every_case_has_a_configuration_that_fits(arch, op):
    paths = ("tma", "pointer") if configs.has_tma(arch) else ("pointer",)
    limit = configs.shared_memory(arch)
    for path, block, kind in itertools.product(
        paths, configs.BLOCK_SIZES, ("half", "tf32", "fp32")
    ):
        if path == "tma" and (block < 64 or kind == "fp32"):
            continue
        found = configs.candidates(op, path, block, kind, arch)
        assert found and len(set(found)) == len(found)
        for config in found:
            assert configs._shared_bytes(op, block, kind, config) <= limit


def test_what_chips_have():
    kibibytes = {arch: size // 1024 for arch, size in configs.SHARED_MEMORY.items()}
    assert kibibytes == {
        **dict.fromkeys((80, 87), 163),
        **dict.fromkeys((86, 89, 120, 121), 99),
        **dict.fromkeys((90, 100, 103), 227),
    }
    # One that came after this list has what every chip has.
    assert configs.shared_memory(130) == 99 * 1024
    with pytest.raises(ValueError, match="arch: expected a compute capability from 80 on, got 75"):
        configs.candidates("product", "pointer", 64, "half", 75)


def test_what_does_not_fit_with_one_stage_is_left_out():
    case = ("wgrad", "pointer", 64, "half", 80)
    assert configs.candidates(*case, limit=35 * 1024) == [Config(64, 2, 4, 1), Config(64, 1, 4, 2)]
    assert configs.candidates(*case, limit=20 * 1024) == [Config(64, 1, 4, 1)]
    assert configs.candidates(*case, limit=8 * 1024) == []


def test_a_small_chip_takes_fewer_stages():
    large = configs.candidates("product", "pointer", 64, "half", 80)[0]
    small = configs.candidates("product", "pointer", 64, "half", 86)[0]
    assert small.stages <= large.stages and small.tokens == large.tokens


@pytest.mark.parametrize(
    ("length", "tokens"), [(1, 64), (64, 64), (256, 256), (540, 128), (560, 128), (10**6, 256)]
)
def test_short_sequences_take_small_tiles(length, tokens):
    shipped = [Config(256, 64, 4, 2), Config(128, 64, 4, 3), Config(64, 64, 4, 4)]
    assert configs.for_length(shipped, length).tokens == tokens


def test_which_chips_copy_tiles():
    assert [a for a in (80, 86, 89, 90, 94, 100, 103, 120) if configs.has_tma(a)] == [90, 100, 103]
    assert configs.arch_of((8, 6)) == 86


def test_a_head_is_one_power_of_two_or_two():
    pieces = {channels: configs.powers_of_two(channels) for channels in range(16, 257, 16)}
    assert pieces[192] == (128, 64) and pieces[96] == (64, 32) and pieces[256] == (256, 0)
    assert pieces[112] == (64, 64) and pieces[16] == (16, 0)
    for channels, (first, second) in pieces.items():
        # Tiles of a power of two that a tensor core takes, wide enough and no wider than needed.
        assert first <= channels <= first + second and {first, second or 16} <= {
            1 << i for i in range(4, 9)
        }


@pytest.mark.parametrize("arch", [*configs.SHARED_MEMORY, 130])
def test_attention_has_a_tile_for_every_head(arch):
    for channels in range(16, configs.MOST_HEAD_CHANNELS + 1, 16):
        forward, backward, sums = (
            configs.attention(op, channels, arch) for op in ("forward", "backward", "sums")
        )
        # Where whole tiles end, words of a draw begin; what is left goes in tiles of the tail.
        for tile in (forward, backward):
            assert tile.keys % tile.tail == 0 and tile.tail in (16, 32) and tile.keys in (32, 64)
        assert sums.keys % backward.keys == 0 and sums.queries % 16 == 0
