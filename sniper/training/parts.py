# SPDX-License-Identifier: Apache-2.0
"""What a run is made of, as its config says: device, precision, SNIPER, learning rate."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from sniper.layers.selection import unmatched
from sniper.ops import autotune, keep_freed_memory
from sniper.sparsity import Fixed, Following, LearningRateScale, NewWeights, Sniper
from sniper.training.config import Config, ConfigError, TrainConfig


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device.

    Raises:
        ConfigError: cuda, where there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device: expected a CUDA device, found none; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def set_up_torch(settings: TrainConfig) -> None:
    """Threads, memory, matmul precision and tuning, for the whole process."""
    keep_freed_memory()
    autotune(settings.autotune)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"


def make_sniper(model: nn.Module, config: Config) -> Sniper | None:
    """SNIPER as the config has it, or None for a dense run.

    Raises:
        ConfigError: settings that do not fit each other or the model.
    """
    schedule, settings = config.sparsity_schedule(), config.sparsity
    if schedule.sparsities == (0.0,):
        return None
    lost = unmatched(model, settings.exclude)
    if lost:  # a preset names parts that an override may have taken away
        warnings.warn(
            f"sparsity.exclude: no parameter matches {', '.join(lost)}", UserWarning, stacklevel=2
        )
    try:
        spread, scale_lr = settings.spread, settings.scale_lr
        return Sniper(
            model,
            schedule,
            block_size=settings.block_size,
            exclude=[pattern for pattern in settings.exclude if pattern not in lost],
            cap=Fixed(settings.max_param_sparsity) if spread is None else Following(spread),
            new_weights=NewWeights(settings.restore_init, float(settings.prime_moments)),
            lr_scale=LearningRateScale(settings.max_lr_scale) if scale_lr else None,
            paper_exact=settings.paper_exact,
        )
    except ValueError as error:
        raise ConfigError(f"sparsity: {error}") from None


def noam(
    optimizer: torch.optim.Optimizer, d_model: int, warmup: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """`lr * d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)` at update s, counted from 1.

    Source: Attention Is All You Need, arXiv 1706.03762, eq. 3.
    """

    def factor(done: int) -> float:
        s = done + 1
        return d_model**-0.5 * min(s**-0.5, s * warmup**-1.5)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
