# SPDX-License-Identifier: Apache-2.0
"""Devices that are there and those that are not, and what is set for the whole process."""

from __future__ import annotations

import pytest
import torch

from sniper.ops import dispatch
from sniper.training.device import pick_device, set_up_torch
from sniper.training.sections import TrainConfig
from sniper.training.settings import ConfigError


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [pick_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    assert chosen == []  # as the environment has it
    assert pick_device("cuda:1") == torch.device("cuda", 1) and chosen == [1]
    with pytest.raises(ConfigError, match="device: expected one of cuda:0, cuda:1, got cuda:7"):
        pick_device("cuda:7")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("built", "visible", "why"),
    [
        (None, None, "this torch was built without CUDA"),
        ("13.0", "", "CUDA_VISIBLE_DEVICES is ''"),
        ("13.0", None, "torch sees no GPU or no driver"),
    ],
)
def test_why_there_is_no_gpu(
    name: str, built: str | None, visible: str | None, why: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match="device: expected a CUDA device, found none") as error:
        pick_device(name)
    assert f"found none: {why}" in str(error.value) and "\n" not in str(error.value)


def test_threads_and_matmul_precision():
    before = torch.get_float32_matmul_precision()
    try:
        set_up_torch(TrainConfig(threads=1, precision="tf32"))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "high")
        set_up_torch(TrainConfig(threads=None, precision="bf16"))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "highest")
        assert not dispatch._autotune
        set_up_torch(TrainConfig(autotune=True))
        assert dispatch._autotune
    finally:
        torch.set_float32_matmul_precision(before)
        dispatch.autotune(False)


@pytest.mark.parametrize("name", ["mps", "", "cuda:x", "gpu"])
def test_what_is_no_device(name: str):
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N, got"):
        pick_device(name)
