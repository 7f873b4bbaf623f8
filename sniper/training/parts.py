# SPDX-License-Identifier: Apache-2.0
"""What a run is made of, as its config says: device, precision, SNIPER, learning rate."""

from __future__ import annotations

import torch
from torch import nn

from sniper.ops import autotune, keep_freed_memory
from sniper.sparsity import Sniper
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
    try:
        return Sniper(
            model,
            schedule,
            block_size=settings.block_size,
            exclude=settings.exclude,
            max_param_sparsity=settings.max_param_sparsity,
            spread=settings.spread,
            restore_init=settings.restore_init,
            prime_moments=settings.prime_moments,
            scale_lr=settings.scale_lr,
            max_lr_scale=settings.max_lr_scale,
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
