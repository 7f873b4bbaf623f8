# SPDX-License-Identifier: Apache-2.0
"""Small HiFi-GANs with random weights, written as the programs that train them do, each with a
reference of its own: torch's modules under the names of that program, after the paper.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

N_MELS = 80
# The hop must be 256, the features' default; wide kernels, dilations and an odd number of stages.
RATES, KERNELS = [8, 8, 4], [16, 20, 8]
SIZES, DILATIONS = [3, 7], [[1, 3, 5], [1, 2, 4]]
CHANNELS = 32


def _normed(conv: nn.Module, old: bool = True) -> nn.Module:
    """With weight normalisation, under torch's old names (`weight_g`) or its new ones."""
    if not old:
        return nn.utils.parametrizations.weight_norm(conv)
    # The old function warns at every call; its names are what matters.
    g = conv.weight.detach().flatten(1).norm(dim=1).reshape(-1, 1, 1)
    conv.weight_g, conv.weight_v = nn.Parameter(g), nn.Parameter(conv.weight.detach().clone())
    del conv._parameters["weight"]

    def fold(module: nn.Module, _: Any) -> None:
        module.weight = torch._weight_norm(module.weight_v, module.weight_g, 0)

    conv.register_forward_pre_hook(fold)
    return conv


def _randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        magnitude = name.endswith(("_g", "original0"))
        parameter.data = 0.9 + 0.5 * values.abs() if magnitude else 0.2 * values
    return model.requires_grad_(False)


class Jik876(nn.Module):
    """Names of jik876/hifi-gan; `kind` is its residual block, 1 or 2."""

    def __init__(self, kind: int, old: bool = True):
        super().__init__()
        self.conv_pre = _normed(nn.Conv1d(N_MELS, CHANNELS, 7, padding=3), old)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        width = CHANNELS
        for rate, kernel in zip(RATES, KERNELS, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2)
            self.ups.append(_normed(up, old))
            width //= 2
            for size, dilations in zip(SIZES, DILATIONS, strict=True):
                block = nn.Module()
                used = dilations if kind == 1 else dilations[:2]
                names = {"convs1": used, "convs2": [1] * 3} if kind == 1 else {"convs": used}
                for name, spread in names.items():
                    convs = [
                        nn.Conv1d(width, width, size, padding="same", dilation=d) for d in spread
                    ]
                    setattr(block, name, nn.ModuleList([_normed(conv, old) for conv in convs]))
                self.resblocks.append(block)
        self.conv_post = _normed(nn.Conv1d(width, 1, 7, padding=3), old)
        _randomise(self)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.mT)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(self._block(self.resblocks[2 * stage + j], x) for j in range(2)) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0]

    @staticmethod
    def _block(block: nn.Module, x: Tensor) -> Tensor:
        if hasattr(block, "convs"):
            for conv in block.convs:
                x = x + conv(F.leaky_relu(x, 0.1))
            return x
        for one, two in zip(block.convs1, block.convs2, strict=True):
            x = x + two(F.leaky_relu(one(F.leaky_relu(x, 0.1)), 0.1))
        return x


class ParallelWaveGAN(nn.Module):
    """Names of kan-bayashi/ParallelWaveGAN: an activation and its convolution are a Sequential."""

    def __init__(self, rates: list[int], both: bool = True):
        super().__init__()
        self.input_conv = _normed(nn.Conv1d(N_MELS, CHANNELS, 7, padding=3))
        self.upsamples, self.blocks = nn.ModuleList(), nn.ModuleList()
        width = CHANNELS
        for rate in rates:
            shape = (2 * rate, rate, rate // 2 + rate % 2, rate % 2)
            up = nn.ConvTranspose1d(width, width // 2, *shape)
            self.upsamples.append(nn.Sequential(nn.LeakyReLU(0.1), _normed(up)))
            width //= 2
            for size, dilations in zip(SIZES, DILATIONS, strict=True):
                block = nn.Module()
                names = {"convs1": dilations, "convs2": [1] * 3} if both else {"convs1": dilations}
                for name, spread in names.items():
                    convs = [
                        nn.Conv1d(width, width, size, padding="same", dilation=d) for d in spread
                    ]
                    layers = [nn.Sequential(nn.LeakyReLU(0.1), _normed(conv)) for conv in convs]
                    setattr(block, name, nn.ModuleList(layers))
                self.blocks.append(block)
        last = _normed(nn.Conv1d(width, 1, 7, padding=3))
        self.output_conv = nn.Sequential(nn.LeakyReLU(), last, nn.Tanh())
        _randomise(self)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.input_conv(mel.mT)
        for stage, up in enumerate(self.upsamples):
            x = up(x)
            x = torch.stack([self._block(self.blocks[2 * stage + j], x) for j in range(2)]).mean(0)
        return self.output_conv(x)[:, 0]

    @staticmethod
    def _block(block: nn.Module, x: Tensor) -> Tensor:
        for j, layer in enumerate(block.convs1):
            y = layer(x)
            x = x + (block.convs2[j](y) if hasattr(block, "convs2") else y)
        return x


def write_jik876(folder: Path, kind: int = 1, old: bool = True, **changes: Any) -> Jik876:
    """`generator` and config.json; the features' defaults with `fmin=80, fmax=7600`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = Jik876(kind, old)
    config = {
        "resblock": str(kind),
        "upsample_rates": RATES,
        "upsample_kernel_sizes": KERNELS,
        "upsample_initial_channel": CHANNELS,
        "resblock_kernel_sizes": SIZES,
        "resblock_dilation_sizes": DILATIONS,
        "num_mels": N_MELS,
        "n_fft": 1024,
        "hop_size": 256,
        "win_size": 1024,
        "sampling_rate": 22050,
        "fmin": 80,
        "fmax": 7600,
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    torch.save({"generator": model.state_dict()}, folder / "generator")
    return model


def write_parallel_wavegan(
    folder: Path, rates: list[int] | None = None, both: bool = True, **changes: Any
) -> tuple[ParallelWaveGAN, np.ndarray, np.ndarray]:
    """checkpoint-10steps.pkl, config.yml and stats.h5; the model, mean and scale."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = rates or RATES
    model = ParallelWaveGAN(rates, both)
    config = {
        "generator_type": "HiFiGANGenerator",
        "generator_params": {
            "in_channels": N_MELS,
            "out_channels": 1,
            "channels": CHANNELS,
            "kernel_size": 7,
            "upsample_scales": rates,
            "upsample_kernel_sizes": [2 * rate for rate in rates],
            "resblock_kernel_sizes": SIZES,
            "resblock_dilations": DILATIONS,
            "use_additional_convs": both,
            "nonlinear_activation": "LeakyReLU",
            "nonlinear_activation_params": {"negative_slope": 0.1},
        },
        "format": "hdf5",
        "sampling_rate": 22050,
        "fft_size": 1024,
        "hop_size": int(np.prod(rates)),
        "win_length": None,
        "window": "hann",
        "num_mels": N_MELS,
        "fmin": 80,
        "fmax": 7600,
    }
    (folder / "config.yml").write_text(yaml.safe_dump({**config, **changes}))
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(-3, 1, N_MELS), rng.uniform(0.5, 2, N_MELS)
    with h5py.File(folder / "stats.h5", "w") as file:
        file["mean"], file["scale"] = mean, scale
    # The rest of what its trainer saves: a scheduler's state holds a Counter.
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    saved = {
        "model": {"generator": model.state_dict(), "discriminator": {}},
        "optimizer": {"generator": optimizer.state_dict()},
        "scheduler": {"generator": scheduler.state_dict()},
        "steps": 10,
        "epochs": 1,
    }
    torch.save(saved, folder / "checkpoint-10steps.pkl")
    return model, mean.astype(np.float32), scale.astype(np.float32)


def write_hugging_face(folder: Path, **changes: Any) -> nn.Module:
    """A saved `FastSpeech2ConformerHifiGan` with statistics."""
    from transformers import FastSpeech2ConformerHifiGan, FastSpeech2ConformerHifiGanConfig

    config = FastSpeech2ConformerHifiGanConfig(
        model_in_dim=N_MELS,
        upsample_initial_channel=CHANNELS,
        upsample_rates=RATES,
        upsample_kernel_sizes=KERNELS,
        resblock_kernel_sizes=SIZES,
        resblock_dilation_sizes=DILATIONS,
        leaky_relu_slope=0.15,
        **changes,
    )
    model = _randomise(FastSpeech2ConformerHifiGan(config))
    generator = torch.Generator().manual_seed(4)
    model.mean.copy_(torch.randn(N_MELS, generator=generator) - 3)
    model.scale.copy_(torch.rand(N_MELS, generator=generator) + 0.5)
    model.save_pretrained(folder)
    return model.eval()
