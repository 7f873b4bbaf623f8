# SPDX-License-Identifier: Apache-2.0
"""HiFi-GAN generators as people have them: three kinds of files, one network.

jik876/hifi-gan             `generator…` or `g_…` beside `config.json`
kan-bayashi/ParallelWaveGAN `checkpoint-….pkl` beside `config.yml` and `stats.h5` or `stats.npy`
Hugging Face                a folder of `FastSpeech2ConformerHifiGan` or `SpeechT5HifiGan`

The format of each is known from its own code; nothing in a file is executed.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sniper.tts.audio.hifigan import HifiGan, HifiGanConfig
from sniper.tts.errors import SpeechError, require
from sniper.tts.processes import held_signals


@dataclass(frozen=True)
class MelSettings:
    """The mels that a vocoder was trained on; None where its files do not say.

    Args:
        sample_rate: Hz.
        n_fft, hop_length, win_length: samples.
        n_mels, f_min, f_max: bands, between two frequencies in Hz.
        log_base: "10", "e" or "2".
        floor: smallest mel amplitude before the logarithm.
        mean, scale: `[n_mels]`, what the logarithm is normalised with; None: it is not.
    """

    hop_length: int
    n_mels: int
    log_base: str
    sample_rate: int | None = None
    n_fft: int | None = None
    win_length: int | None = None
    f_min: float | None = None
    f_max: float | None = None
    floor: float | None = None
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None


def read_hifigan(path: Path) -> tuple[HifiGan, MelSettings]:
    """Read a generator, whichever of the three kinds it is.

    Args:
        path: the file with the weights, its description beside it, or the folder of both.

    Raises:
        SpeechError: nothing there, damaged, or of a kind that is not supported.
    """
    weights, read = _find(path)
    try:
        return read(weights)
    except SpeechError:
        raise
    except KeyError as error:
        raise SpeechError(f"vocoder {path}: its description lacks {error}") from error
    except (TypeError, ValueError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpeechError(f"vocoder {path}: {reason}") from error


_Reader = Callable[[Path], tuple[HifiGan, MelSettings]]
_HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _find(path: Path) -> tuple[Path, _Reader]:
    """The file with the weights and who reads it."""
    if not path.exists():
        raise SpeechError(f"no such vocoder: {path}")
    if path.is_file():
        if path.suffix == ".pkl":
            return path, _read_parallel_wavegan
        return path, _read_hugging_face if path.name in _HF_WEIGHTS else _read_original
    kinds: tuple[tuple[tuple[str, ...], _Reader], ...] = (
        (_HF_WEIGHTS, _read_hugging_face),
        (("*.pkl",), _read_parallel_wavegan),
        (("g_*", "generator*"), _read_original),
    )
    for patterns, reader in kinds:
        found = sorted(p for pattern in patterns for p in path.glob(pattern) if p.is_file())
        # A Hugging Face folder often holds the same weights in two formats; elsewhere each file is
        # another state of the training.
        if len(found) > 1 and reader is not _read_hugging_face:
            names = ", ".join(p.name for p in found[:8])
            raise SpeechError(f"vocoder {path} holds several generators, name one: {names}")
        if found:
            return found[0], reader
    raise SpeechError(
        f"no HiFi-GAN in {path}: expected `generator` with config.json, a .pkl with config.yml, or "
        "a Hugging Face folder with model.safetensors"
    )


def _read_original(path: Path) -> tuple[HifiGan, MelSettings]:
    c = _description(path.with_name("config.json"))
    # The original's first kind of residual block uses three of the listed dilations and its second
    # kind two, however many are listed.
    two_convs = str(c["resblock"]) == "1"
    used = 3 if two_convs else 2
    config = HifiGanConfig(
        n_mels=c.get("num_mels", 80),
        channels=c["upsample_initial_channel"],
        two_convs=two_convs,
        **_stages(c, c["resblock_dilation_sizes"], used),
    )
    _refuse_odd_surplus(config)
    settings = MelSettings(
        sample_rate=c["sampling_rate"],
        n_fft=c["n_fft"],
        hop_length=c["hop_size"],
        win_length=c["win_size"],
        n_mels=config.n_mels,
        f_min=c["fmin"],
        # librosa, which makes their mels, takes null for half of the rate.
        f_max=c["sampling_rate"] / 2 if c["fmax"] is None else c["fmax"],
        # Logarithm and floor are constants of the original's code; its config has neither.
        log_base="e",
        floor=1e-5,
    )
    names = [
        (r"^conv_(pre|post)\.", r"\1."),
        (r"^resblocks\.(\d+)\.convs1?\.", r"blocks.\1.first."),
        (r"^resblocks\.(\d+)\.convs2\.", r"blocks.\1.second."),
    ]
    return _build(path, config, settings, _section(_load(path), path, "generator"), names)


def _read_hugging_face(path: Path) -> tuple[HifiGan, MelSettings]:
    c, weights = _description(path.with_name("config.json")), dict(_load(path))
    if "vocoder_config" in c:  # FastSpeech2ConformerWithHifiGan, of which this is the half
        c, prefix = c["vocoder_config"], "vocoder."
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    config = HifiGanConfig(
        n_mels=c["model_in_dim"],
        channels=c["upsample_initial_channel"],
        slope=float(c["leaky_relu_slope"]),
        **_stages(c, c["resblock_dilation_sizes"]),
    )
    _refuse_odd_surplus(config)
    mean, scale = (weights.pop(name, None) for name in ("mean", "scale"))
    normalised = c["normalize_before"]
    if normalised and (mean is None or scale is None):
        raise SpeechError(f"{path} lacks mean and scale, which normalize_before asks for")
    settings = MelSettings(
        sample_rate=c.get("sampling_rate"),
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        # Their models come from ESPnet, whose mels are base-10 logarithms; no file says it.
        log_base="10",
        mean=mean.float().numpy() if normalised and mean is not None else None,
        scale=scale.float().numpy() if normalised and scale is not None else None,
    )
    names = [
        (r"^conv_(pre|post)\.", r"\1."),
        (r"^upsampler\.", "ups."),
        (r"^resblocks\.(\d+)\.convs1\.", r"blocks.\1.first."),
        (r"^resblocks\.(\d+)\.convs2\.", r"blocks.\1.second."),
    ]
    return _build(path, config, settings, weights, names)


def _read_parallel_wavegan(path: Path) -> tuple[HifiGan, MelSettings]:
    c = _description(path.with_name("config.yml"))
    # Some published configs say "kernal", which ParallelWaveGAN's own loader mends as well.
    g = {k.replace("kernal", "kernel"): v for k, v in c["generator_params"].items()}
    only = {
        "generator_type": (c.get("generator_type"), "HiFiGANGenerator"),
        "window": (c.get("window", "hann"), "hann"),
        "out_channels": (g.get("out_channels", 1), 1),
        "use_causal_conv": (g.get("use_causal_conv", False), False),
        "nonlinear_activation": (g.get("nonlinear_activation", "LeakyReLU"), "LeakyReLU"),
    }
    for name, (got, expected) in only.items():
        if got != expected:
            raise SpeechError(f"vocoder {path}: {name}: expected {expected!r}, got {got!r}")
    activation = g.get("nonlinear_activation_params", {"negative_slope": 0.1})
    defaults = {
        "upsample_rates": g.get("upsample_scales", [8, 8, 2, 2]),
        "upsample_kernel_sizes": g.get("upsample_kernel_sizes", [16, 16, 4, 4]),
        "resblock_kernel_sizes": g.get("resblock_kernel_sizes", [3, 7, 11]),
    }
    dilations = g.get("resblock_dilations", [[1, 3, 5]] * 3)
    config = HifiGanConfig(
        n_mels=g.get("in_channels", 80),
        channels=g.get("channels", 512),
        kernel_size=g.get("kernel_size", 7),
        two_convs=bool(g.get("use_additional_convs", True)),
        slope=float(activation.get("negative_slope", 0.01)),
        bias=bool(g.get("bias", True)),
        **_stages(defaults, dilations),
    )
    rate, n_fft = c["sampling_rate"], c["fft_size"]
    mean, scale = _statistics(path, c.get("format", "hdf5"), config.n_mels)
    bases = {None: "e", 10.0: "10", 2.0: "2"}
    # Configs older than this setting meant 10; null is the natural logarithm.
    base = c.get("log_base", 10.0)
    if base not in bases:
        raise SpeechError(f"vocoder {path}: log_base: expected 10, 2 or null, got {base!r}")
    settings = MelSettings(
        sample_rate=rate,
        n_fft=n_fft,
        hop_length=c["hop_size"],
        win_length=c.get("win_length") or n_fft,
        n_mels=c["num_mels"],
        f_min=c.get("fmin") or 0,
        f_max=rate / 2 if c.get("fmax") is None else c["fmax"],
        log_base=bases[base],
        floor=float(c.get("eps", 1e-10)),
        mean=mean,
        scale=scale,
    )
    names = [
        (r"^input_conv\.", "pre."),
        # The numbers in these names come from sequences whose first member is the activation.
        (r"^output_conv\.1\.", "post."),
        (r"^upsamples\.(\d+)\.1\.", r"ups.\1."),
        (r"^blocks\.(\d+)\.convs1\.(\d+)\.1\.", r"blocks.\1.first.\2."),
        (r"^blocks\.(\d+)\.convs2\.(\d+)\.1\.", r"blocks.\1.second.\2."),
    ]
    weights = _section(_section(_load(path), path, "model"), path, "generator")
    return _build(path, config, settings, weights, names)


def _stages(c: Mapping[str, Any], dilations: Any, used: int | None = None) -> dict[str, Any]:
    """The lists of a description as `HifiGanConfig` has them."""
    lists = ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes")
    found = {name: tuple(c[name]) for name in lists}
    return {**found, "resblock_dilations": tuple(tuple(block)[:used] for block in dilations)}


def _refuse_odd_surplus(config: HifiGanConfig) -> None:
    """Refuse a kernel that exceeds its rate by an odd number: those programs have no output
    padding, and such a stage would give them one sample too many.
    """
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        if (kernel - rate) % 2:
            raise ValueError(
                "upsample_kernel_sizes: expected each to exceed its rate by an even number, got "
                f"{kernel} for {rate}: the samples would not be hop_length a frame"
            )


def _description(path: Path) -> dict[str, Any]:
    """config.json or config.yml as a dictionary."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpeechError(
            f"the vocoder's description {path} cannot be read: it belongs beside the weights "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
    try:
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            yaml = require("yaml")
            try:
                data = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(error) from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise SpeechError(f"the vocoder's description {path} is damaged: {reason}") from error
    if not isinstance(data, dict):
        raise SpeechError(f"the vocoder's description {path} holds no settings")
    return data


def _load(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds, without executing anything in it."""
    try:
        safetensors = require("safetensors.torch") if path.suffix == ".safetensors" else None
        # Both readers swallow the exception of Ctrl-C now and then, and fail as of a damaged file.
        with held_signals():
            if safetensors is not None:
                return safetensors.load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except SpeechError:
        raise
    except pickle.UnpicklingError as error:
        raise SpeechError(
            f"{path} is damaged, or holds more than weights, which is not executed"
        ) from error
    # A damaged file fails in whichever layer meets it first, each with errors of its own.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise SpeechError(f"{path} cannot be read as weights: {reason}") from error


def _section(data: Any, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or not isinstance(data.get(name), Mapping):
        raise SpeechError(f"{path} holds no {name!r}: it is no checkpoint of a HiFi-GAN generator")
    return data[name]


def _statistics(path: Path, form: str, n_mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale `[n_mels]` of the mels that a ParallelWaveGAN vocoder was trained on."""
    stats = path.with_name("stats.h5" if form == "hdf5" else "stats.npy")
    if not stats.is_file():
        raise SpeechError(f"{path} needs {stats.name} beside it, which its mels are normalised by")
    try:
        if form == "hdf5":
            with require("h5py").File(stats) as file:
                mean, scale = (np.asarray(file[name]) for name in ("mean", "scale"))
        else:
            mean, scale = np.load(stats)[:2]
    except (OSError, KeyError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SpeechError(f"{stats} cannot be read: {reason}") from error
    mean, scale = (np.asarray(value, np.float32).reshape(-1) for value in (mean, scale))
    if len(mean) != n_mels or len(scale) != n_mels:
        raise SpeechError(f"{stats}: expected {n_mels} bands, got {len(mean)} and {len(scale)}")
    return mean, scale


def _build(
    path: Path,
    config: HifiGanConfig,
    settings: MelSettings,
    weights: Mapping[str, Tensor],
    names: list[tuple[str, str]],
) -> tuple[HifiGan, MelSettings]:
    """The generator with these weights, under the names that `names` makes of theirs."""
    for name in ("sample_rate", "n_fft", "win_length", "f_min", "f_max", "floor"):
        value = getattr(settings, name)
        if value is not None and type(value) not in (int, float):
            raise SpeechError(f"vocoder {path}: {name}: expected a number, got {value!r}")
    for name, there, here in (
        ("hop_length", settings.hop_length, config.hop_length),
        ("n_mels", settings.n_mels, config.n_mels),
    ):
        if there != here:
            raise SpeechError(f"vocoder {path}: {name} is {there}, but its network's is {here}")
    renamed = {}
    for name, value in fold_weight_norm(weights).items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.float()
    # Neither memory nor random values, which the loaded weights would replace at once.
    with torch.device("meta"):
        generator = HifiGan(config)
    own = generator.state_dict()
    # load_state_dict would list every difference, on hundreds of lines.
    for name in sorted({*own, *renamed}):
        if name not in own or name not in renamed:
            found = "has no place in it" if name in renamed else "is missing"
            raise SpeechError(f"{path} does not fit its description: {name} {found}")
        if own[name].shape != renamed[name].shape:
            there, here = list(renamed[name].shape), list(own[name].shape)
            raise SpeechError(
                f"{path} does not fit its description: {name}: expected {here}, got {there}"
            )
        if not torch.isfinite(renamed[name]).all():
            raise SpeechError(f"{path} is damaged: {name} holds NaN or infinite weights")
    # A parameter on the meta device can be replaced, but not copied into.
    generator.load_state_dict(renamed, assign=True)
    return generator.requires_grad_(False).eval(), settings


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w = g v / |v|, norm by first dimension, for weights in either of torch's two namings.

    Source: Salimans, Kingma, Weight Normalization (arXiv 1602.07868), equation 2.
    """
    pairs = {
        ".weight_g": ".weight_v",
        ".parametrizations.weight.original0": ".parametrizations.weight.original1",
    }
    folded = dict(weights)
    for name in weights:
        for magnitude, direction in pairs.items():
            stem = name.removesuffix(magnitude)
            if name.endswith(magnitude) and stem + direction in weights:
                g, v = folded.pop(name).float(), folded.pop(stem + direction).float()
                # The first dimension of a transposed convolution is its input, but torch normalises
                # by it all the same, and so did every training.
                norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
                folded[stem + ".weight"] = v * (g / norm)
    return folded
