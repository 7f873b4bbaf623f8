# SPDX-License-Identifier: Apache-2.0
"""The generator: what a frame hears, pieces that are the whole, sizes that are refused."""

from __future__ import annotations

import pytest
import torch

from sniper.tts.audio.hifigan import HifiGan, HifiGanConfig

V1 = HifiGanConfig(80, 512, (8, 8, 2, 2), (16, 16, 4, 4), (3, 7, 11), ((1, 3, 5),) * 3)
SMALL = HifiGanConfig(4, 8, (4, 2), (8, 6), (3, 5), ((1, 3), (2, 4)))
ONE_SIDED = HifiGanConfig(4, 8, (5, 3), (10, 6), (3,), ((1, 2),), two_convs=False, kernel_size=5)

pytestmark = pytest.mark.usefixtures("one_thread")


def _random(config: HifiGanConfig) -> HifiGan:
    model = HifiGan(config).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.uniform_(0.01, 0.05)  # none hides what it is given, and tanh stays far from 1
    return model


def test_the_size_of_the_paper():
    with torch.device("meta"):
        model = HifiGan(V1)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(13.92e6, rel=2e-3)
    assert V1.hop_length == 256


@pytest.mark.parametrize("config", [SMALL, ONE_SIDED])
def test_context_is_what_a_frame_depends_on(config: HifiGanConfig):
    """By the gradient: no frame further away has one, the outermost of the context do."""
    frames, middle, hop = 61, 30, config.hop_length
    mel = torch.full((1, frames, config.n_mels), 1e-4, dtype=torch.float64, requires_grad=True)
    _random(config)(mel)[0, middle * hop : (middle + 1) * hop].sum().backward()
    heard = mel.grad[0].abs().sum(1).nonzero()[:, 0].tolist()
    before, after = config.context()
    assert (middle - heard[0], heard[-1] - middle) == (before, after)


@pytest.mark.parametrize("config", [SMALL, ONE_SIDED])
@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_pieces_are_the_whole(config: HifiGanConfig, chunk: int):
    model = _random(config)
    mel = torch.randn(37, config.n_mels, dtype=torch.float64)
    pieces = list(model.stream(mel, chunk))
    assert len(pieces) == -(-37 // chunk)
    assert all(len(piece) == chunk * config.hop_length for piece in pieces[:-1])
    torch.testing.assert_close(torch.cat(pieces), model(mel[None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 0}, "channels: expected integers from 1, got 0"),
        ({"channels": 10}, "channels: expected a multiple of 4, got 10"),
        ({"upsample_rates": (4,)}, "upsample_kernel_sizes: expected 1, got 2"),
        ({"upsample_kernel_sizes": (8, 1)}, "upsample_kernel_sizes: expected at least 2, got 1"),
        ({"resblock_kernel_sizes": (4, 5)}, "resblock_kernel_sizes: expected odd sizes"),
        ({"resblock_dilations": ((1,), ("2",))}, "resblock_dilations: expected integers"),
        ({"slope": float("nan")}, "slope: expected a finite number"),
    ],
)
def test_sizes_that_do_not_work(change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        HifiGanConfig(**{**vars(SMALL), **change})
