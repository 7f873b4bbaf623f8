# SPDX-License-Identifier: Apache-2.0
"""Device, SNIPER and learning rate as a config has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper.ops import dispatch
from sniper.training.config import ConfigError, SparsityConfig, TrainConfig, from_dict
from sniper.training.parts import make_sniper, noam, pick_device, set_up_torch


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))


def test_noam_is_the_formula():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = noam(optimizer, d_model=64, warmup=4)
    used = []
    for _ in range(16):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 2 * 64^-0.5 * min(s^-0.5, s * 4^-1.5): up to s = 4, then down with the root.
    assert used[:4] == [0.03125, 0.0625, 0.09375, 0.125]
    assert used[15] == 0.0625
    assert used[8] == pytest.approx(0.25 / 3)


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="expected a CUDA device, found none"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


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


@pytest.mark.parametrize(
    "sparsity",
    [
        {"schedule": {0: 0.0}},
        {"schedule": {0: 0.0, 3: 0.0}},
        {"schedule": {0: 0.5}, "schedule_fractions": {0.0: 0.0}},
    ],
)
def test_a_dense_run_has_no_sniper(sparsity: dict):
    model = _model()
    assert make_sniper(model, from_dict({"sparsity": sparsity})) is None
    assert type(model[0]) is nn.Linear


def test_sniper_takes_every_setting():
    settings = SparsityConfig(
        schedule={0: 0.5, 2: 0.25},
        block_size=None,
        max_param_sparsity=0.6,
        restore_init=False,
        scale_lr=False,
        max_lr_scale=3.0,
        paper_exact=True,
        exclude=["0."],
    )
    sniper = make_sniper(_model(), from_dict({"sparsity": vars(settings)}))
    for name in ("block_size", "max_param_sparsity", "restore_init", "scale_lr", "max_lr_scale"):
        assert getattr(sniper, name) == getattr(settings, name)
    assert sniper.paper_exact
    assert set(sniper.densities()) == {"1.weight", "1.bias"}
    assert dict(sniper.schedule) == {0: 0.5, 2: 0.25}


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"block_size": 48}, "64 x 32 does not divide by 48"),
        ({"block_size": 0}, "block_size: expected a whole number >= 1"),
        ({"paper_exact": True}, "expected block_size=None, got 64"),
        ({"max_param_sparsity": 75}, "max_param_sparsity: expected a fraction"),
        ({"max_lr_scale": 0.5}, "max_lr_scale: expected 1 or more"),
        ({"exclude": ["weight", "bias"]}, "no trainable parameter is left"),
    ],
)
def test_settings_that_do_not_fit_are_the_users(sparsity: dict, said: str):
    config = from_dict({"sparsity": {"schedule": {0: 0.5}, **sparsity}})
    with pytest.raises(ConfigError, match="^sparsity: ") as error:
        make_sniper(_model(), config)
    assert said in str(error.value)
