# SPDX-License-Identifier: Apache-2.0
"""Where the C++/CUDA extension computes, and calls into it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from sniper import _C

# Index arrays and positions in masks are int32.
MOST_VALUES = 2**31 - 1


def home(device: torch.device) -> torch.device:
    """Where the extension computes for tensors on `device`: there, or else on the CPU.

    A GPU that the extension was not built for (it has no CUDA, or none for this architecture) gets
    one warning; whoever calls copies there and back.
    """
    return device if device.type == "cpu" or uses_cuda(device) else torch.device("cpu")


def uses_cuda(device: torch.device) -> bool:
    """Whether the CUDA kernels of the extension run on `device`."""
    return device.type == "cuda" and _has_kernels(device)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    if _C.with_cuda:
        with torch.cuda.device(device):
            if _C.cuda_usable():
                return True
        major, minor = torch.cuda.get_device_capability(device)
        reason = f"was built for other GPUs than {device} (sm_{major}{minor})"
    else:
        reason = "was built without CUDA"
    warnings.warn(
        f"the extension of sniper {reason}: masks are computed on the CPU and copied; "
        "build it on this machine with SNIPER_CUDA=on to avoid that",
        stacklevel=2,
    )
    return False


def call(name: str, device: torch.device, *args: object) -> object:
    """Runs the function `name` on memory of `device`: on torch's threads, or on the GPU's current
    stream without waiting for it.

    Args:
        name: of the function for the CPU; the one for CUDA has `_cuda` at its end.
        device: what `home` returned.
        args: what both take; the thread count, or the stream, is added.
    """
    if not uses_cuda(device):
        return getattr(_C, name)(*args, torch.get_num_threads())
    with _on_stream(device) as stream:
        return getattr(_C, f"{name}_cuda")(*args, stream)


@contextlib.contextmanager
def _on_stream(device: torch.device) -> Iterator[int]:
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on `device`, without waiting for what is queued there."""
    # From pageable memory a copy would wait for the stream.
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)
