# SPDX-License-Identifier: Apache-2.0
"""Runs the extension's CUDA functions on the CPU's memory."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_shim.build import COMPILER, build

from sniper.ops import extension
from sniper.sparsity import masking

# A module that was built already, possibly from sources with something changed.
MODULE = "SNIPER_CUDA_SHIM"


def load(path: Path) -> ModuleType:
    """The module `_cuda_shim` that `build` made."""
    spec = importlib.util.spec_from_file_location("_cuda_shim", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cuda_shim() -> ModuleType:
    """Built once; again only when a source has changed."""
    if os.environ.get(MODULE):
        return load(Path(os.environ[MODULE]))
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return load(build())


@contextlib.contextmanager
def running(shim: ModuleType) -> Iterator[None]:
    """CPU tensors go to the CUDA functions, which may touch no memory but that whose address was
    taken for the call.
    """
    call, data_ptr = extension.call, torch.Tensor.data_ptr

    def noted(tensor: torch.Tensor) -> int:
        address = data_ptr(tensor)
        if tensor.numel() and tensor.device.type == "cpu":
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            shim.allow(address, (last + 1) * tensor.element_size())
        return address

    def forgetting(*args: object) -> object:
        try:
            return call(*args)
        finally:
            shim.forget()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "data_ptr", noted)
        patch.setattr(extension, "_C", shim)
        patch.setattr(masking, "_C", shim)
        patch.setattr(extension, "call", forgetting)
        patch.setattr(extension, "uses_cuda", lambda device: device.type == "cpu")
        patch.setattr(extension, "_on_stream", lambda device: contextlib.nullcontext(0))
        yield
