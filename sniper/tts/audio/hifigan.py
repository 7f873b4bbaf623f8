# SPDX-License-Identifier: Apache-2.0
"""HiFi-GAN's generator: mel frames to samples by transposed convolutions and residual blocks.

One network for every way in which its weights are passed around (`hifigan_files` reads those).

Source: Kong, Kim, Bae, HiFi-GAN (arXiv 2010.05646), section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the last activation; the published code has torch's default there, so all weights expect it.
_LAST_SLOPE = 0.01
# No generator has a size near this; a larger one comes from a damaged description.
_LARGEST = 65_536


@dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of a generator.

    Args:
        n_mels: mel bands that come in.
        channels: after the first convolution; each stage halves them.
        upsample_rates, upsample_kernel_sizes: one transposed convolution a stage; the rates
            multiply to the hop.
        resblock_kernel_sizes, resblock_dilations: residual blocks of a stage; their mean counts.
        two_convs: whether each dilated convolution is followed by one without dilation.
        slope: of the leaky ReLUs.
        kernel_size: of the first and the last convolution.
        bias: whether convolutions have one.

    Raises:
        ValueError: a size out of range, by name.
    """

    n_mels: int
    channels: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    two_convs: bool = True
    slope: float = 0.1
    kernel_size: int = 7
    bias: bool = True

    def __post_init__(self) -> None:
        stages, blocks = len(self.upsample_rates), len(self.resblock_kernel_sizes)
        sizes = {
            "n_mels": [self.n_mels],
            "channels": [self.channels],
            "kernel_size": [self.kernel_size],
            "upsample_rates": self.upsample_rates,
            "upsample_kernel_sizes": self.upsample_kernel_sizes,
            "resblock_kernel_sizes": self.resblock_kernel_sizes,
            "resblock_dilations": [d for block in self.resblock_dilations for d in block],
        }
        for name, values in sizes.items():
            for value in values:
                # Not isinstance: JSON's true is an int to Python.
                if type(value) is not int or not 1 <= value <= _LARGEST:
                    raise ValueError(f"{name}: expected integers from 1, got {value!r}")
            if not values:
                raise ValueError(f"{name}: expected at least one, got none")
        for name, expected in (("upsample_kernel_sizes", stages), ("resblock_dilations", blocks)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name}: expected {expected}, got {len(getattr(self, name))}")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            # Some samples would come from no frame at all.
            if kernel < rate:
                raise ValueError(f"upsample_kernel_sizes: expected at least {rate}, got {kernel}")
        for name in ("kernel_size", "resblock_kernel_sizes"):
            # An even kernel has no middle: its output would be one sample longer or shorter than
            # its input.
            if any(size % 2 == 0 for size in sizes[name]):
                raise ValueError(f"{name}: expected odd sizes, got {list(sizes[name])}")
        if self.channels % 2**stages:
            raise ValueError(f"channels: expected a multiple of {2**stages}, got {self.channels}")
        if not (isinstance(self.slope, float) and math.isfinite(self.slope)):
            raise ValueError(f"slope: expected a finite number, got {self.slope!r}")

    @property
    def hop_length(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.upsample_rates)

    def context(self) -> tuple[int, int]:
        """Mel frames before and after a frame that its samples depend on.

        From the samples of one frame back to the mel, layer by layer, as an interval.
        """
        first, last = -(self.kernel_size // 2), self.hop_length - 1 + self.kernel_size // 2
        reach = max(
            sum((kernel // 2) * (dilation + self.two_convs) for dilation in dilations)
            for kernel, dilations in zip(
                self.resblock_kernel_sizes, self.resblock_dilations, strict=True
            )
        )
        stages = list(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True))
        for rate, kernel in reversed(stages):
            # Input i of a transposed convolution touches outputs i * rate - padding + [0, kernel).
            padding = (kernel - rate + 1) // 2
            first = -(-(first - reach + padding - kernel + 1) // rate)
            last = (last + reach + padding) // rate
        return self.kernel_size // 2 - first, last + self.kernel_size // 2


class HifiGan(nn.Module):
    """The generator, with plain convolutions: weight normalisation is folded when it is loaded."""

    def __init__(self, config: HifiGanConfig):
        super().__init__()
        self.config = config
        c, width, bias = config, config.kernel_size, config.bias
        self.pre = nn.Conv1d(c.n_mels, c.channels, width, padding=width // 2, bias=bias)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        channels = c.channels
        for rate, kernel in zip(c.upsample_rates, c.upsample_kernel_sizes, strict=True):
            # An odd surplus of the kernel is cut in front and made up for behind, so that every
            # frame gives `rate` outputs.
            self.ups.append(
                nn.ConvTranspose1d(
                    channels,
                    channels // 2,
                    kernel,
                    rate,
                    padding=(kernel - rate + 1) // 2,
                    output_padding=(kernel - rate) % 2,
                    bias=bias,
                )
            )
            channels //= 2
            for size, dilations in zip(c.resblock_kernel_sizes, c.resblock_dilations, strict=True):
                self.blocks.append(_ResidualBlock(channels, size, dilations, c))
        self.post = nn.Conv1d(channels, 1, width, padding=width // 2, bias=bias)

    def forward(self, mel: Tensor) -> Tensor:
        """Samples `[B, T * hop_length]` within [-1, 1] of mels `[B, T, n_mels]`."""
        x = self.pre(mel.transpose(1, 2))
        count = len(self.config.resblock_kernel_sizes)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, self.config.slope))
            first, *others = self.blocks[stage * count : (stage + 1) * count]
            total = first(x)
            for block in others:
                total = total + block(x)
            x = total / count
        return self.post(F.leaky_relu(x, _LAST_SLOPE)).tanh()[:, 0]

    @torch.no_grad()
    def stream(self, mel: Tensor, chunk: int) -> Iterator[Tensor]:
        """The samples of `mel` `[T, n_mels]` in pieces of `chunk` frames, the last one shorter.

        Each piece is computed with as many frames around it as its samples depend on, so the
        pieces are what all of the mel at once would give.
        """
        before, after = self.config.context()
        hop = self.config.hop_length
        for start in range(0, len(mel), chunk):
            end, begin = min(start + chunk, len(mel)), max(0, start - before)
            samples = self(mel[None, begin : end + after])[0]
            yield samples[(start - begin) * hop : (end - begin) * hop]


class _ResidualBlock(nn.Module):
    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], config: HifiGanConfig
    ):
        super().__init__()
        self.slope = config.slope

        def conv(dilation: int) -> nn.Conv1d:
            same = kernel // 2 * dilation
            return nn.Conv1d(
                channels, channels, kernel, padding=same, dilation=dilation, bias=config.bias
            )

        self.first = nn.ModuleList([conv(dilation) for dilation in dilations])
        self.second = nn.ModuleList([conv(1) for _ in dilations] if config.two_convs else [])

    def forward(self, x: Tensor) -> Tensor:
        for number, conv in enumerate(self.first):
            y = conv(F.leaky_relu(x, self.slope))
            if len(self.second):
                y = self.second[number](F.leaky_relu(y, self.slope))
            x = x + y
        return x
