# SPDX-License-Identifier: Apache-2.0
"""Where a run computes: the device, and how torch is set up for the whole process."""

from __future__ import annotations

import os

import torch

from sniper.ops import autotune, keep_freed_memory
from sniper.training.sections import TrainConfig
from sniper.training.settings import ConfigError


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; `cuda:N` becomes the process's GPU.

    Args:
        local_rank: which of this machine's processes this is, and so which GPU `cuda` means; None:
            it is the only one.

    Raises:
        ConfigError: a GPU that is not there, and why.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if number and local_rank is not None:
        raise ConfigError(
            f"device: expected auto, cuda or cpu for several ranks, got {name}: LOCAL_RANK says "
            "which GPU is whose"
        )
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device: expected a CUDA device, found none: {why_no_cuda()}; use cpu or auto"
        )
    if not number and local_rank is None:
        return torch.device("cuda")
    number = number or str(local_rank)
    count = torch.cuda.device_count()
    if int(number) >= count:
        there = ", ".join(f"cuda:{i}" for i in range(count))
        got = name if local_rank is None else f"LOCAL_RANK {local_rank}: start one process a GPU"
        raise ConfigError(f"device: expected one of {there}, got {got}")
    # Kernels and recordings run on the current GPU.
    torch.cuda.set_device(int(number))
    return torch.device("cuda", int(number))


def check_precision(device: torch.device, precision: str) -> None:
    """Refuses a precision that a GPU computes only in software.

    Raises:
        ConfigError: `bf16` on a GPU older than sm_80.
    """
    if device.type != "cuda" or precision != "bf16":
        return
    with torch.cuda.device(device):
        # Without that argument torch says yes where bf16 is only emulated.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return
    major, minor = torch.cuda.get_device_capability(device)
    raise ConfigError(
        f"train.precision: bf16 expects a GPU from sm_80, got {torch.cuda.get_device_name(device)} "
        f"(sm_{major}{minor}); use fp32"
    )


def why_no_cuda() -> str:
    """Why torch finds no GPU, in a few words."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}"
    return "torch sees no GPU or no driver (nvidia-smi says more)"


def set_up_torch(settings: TrainConfig) -> None:
    """Threads, memory, matmul precision and tuning, for the whole process."""
    keep_freed_memory()
    autotune(settings.autotune)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    # cuDNN has a switch of its own, and torch leaves it on.
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
