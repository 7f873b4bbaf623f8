# SPDX-License-Identifier: Apache-2.0
"""Where the extension computes for tensors of each device."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator

import pytest
import torch

from sniper.ops import extension
from sniper.ops.bits import pack_bits
from sniper.sparsity.masking import Fixed, Following, nested_masks

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with one GPU of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    extension._has_kernels.cache_clear()
    yield
    extension._has_kernels.cache_clear()


def test_the_cpu_is_its_own_home():
    assert extension.home(CPU) == CPU
    assert not extension.uses_cuda(CPU)


def test_a_gpu_with_kernels_is_its_own_home(one_gpu, cuda_shim, monkeypatch):
    monkeypatch.setattr(extension, "_C", cuda_shim)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extension.home(GPU) == GPU
    assert extension.uses_cuda(GPU)


def test_a_gpu_without_an_image_leaves_it_to_the_cpu_and_says_so_once(
    one_gpu, cuda_shim, monkeypatch
):
    monkeypatch.setattr(extension, "_C", cuda_shim)
    cuda_shim.set_has_image(False)
    try:
        with pytest.warns(UserWarning, match=r"other GPUs than cuda:0 \(sm_75\): masks are comp"):
            assert extension.home(GPU) == CPU
    finally:
        cuda_shim.set_has_image(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extension.home(GPU) == CPU
        assert not extension.uses_cuda(GPU)


def test_an_extension_without_cuda_leaves_it_to_the_cpu(one_gpu, monkeypatch):
    monkeypatch.setattr(extension, "_C", types.SimpleNamespace(with_cuda=False))
    with pytest.warns(UserWarning, match="built without CUDA: masks are computed on the CPU"):
        assert extension.home(GPU) == CPU


@pytest.mark.gpu
@pytest.mark.parametrize("cap", [Fixed(0.75), Following(0.1)])
def test_masks_of_a_gpu_that_has_no_kernels(cap, monkeypatch):
    scores = {"w": torch.rand(40, 3), "v": torch.rand(9)}
    expected = nested_masks(scores, [0.5], cap)
    monkeypatch.setattr(extension, "_has_kernels", lambda device: False)
    found = nested_masks({n: s.cuda() for n, s in scores.items()}, [0.5], cap)
    assert found.counts == expected.counts
    for name, mask in found.masks[0.5].items():
        assert mask.is_cuda and torch.equal(mask.cpu(), expected.masks[0.5][name])
        assert torch.equal(pack_bits(mask).cpu(), pack_bits(mask.cpu()))
