# SPDX-License-Identifier: Apache-2.0
"""Device, SNIPER and learning rate as a config has them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper import Fixed, Following, LearningRateScale, NewWeights
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
    assert sniper.block_size is None and sniper.paper_exact
    assert (sniper.cap, sniper.lr_scale) == (Fixed(0.6), None)
    assert sniper.new_weights == NewWeights(restore_init=False, prime_moments=0.0)
    assert set(sniper.densities()) == {"1.weight", "1.bias"}
    assert dict(sniper.schedule) == {0: 0.5, 2: 0.25}
    settings = {"schedule": {0: 0.5}, "block_size": 32, "spread": 0.2, "prime_moments": True}
    sniper = make_sniper(_model(), from_dict({"sparsity": {**settings, "max_lr_scale": 3.0}}))
    assert (sniper.cap, sniper.lr_scale) == (Following(0.2), LearningRateScale(3.0))
    assert sniper.new_weights == NewWeights(restore_init=True, prime_moments=1.0)


def test_a_pattern_of_a_preset_that_matches_nothing_is_said():
    settings = {"schedule": {0: 0.5}, "block_size": 32, "exclude": ["norm", "postnet", "0."]}
    with pytest.warns(UserWarning, match="no parameter matches postnet"):
        sniper = make_sniper(_model(), from_dict({"sparsity": settings}))
    assert set(sniper.densities()) == {"1.weight"}


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        ({"block_size": 48}, "64 x 32 does not divide by 48"),
        ({"block_size": 0}, "block_size: expected a whole number >= 1"),
        ({"paper_exact": True}, "expected block_size=None, got 64"),
        ({"max_param_sparsity": 75}, "max_param_sparsity: expected a fraction"),
        ({"max_lr_scale": 0.5}, "LearningRateScale.max: expected 1 or more"),
        ({"exclude": ["weight", "bias"]}, "no trainable parameter is left"),
    ],
)
def test_settings_that_do_not_fit_are_the_users(sparsity: dict, said: str):
    config = from_dict({"sparsity": {"schedule": {0: 0.5}, **sparsity}})
    with pytest.raises(ConfigError, match="^sparsity: ") as error:
        make_sniper(_model(), config)
    assert said in str(error.value)
