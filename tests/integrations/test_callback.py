# SPDX-License-Identifier: Apache-2.0
"""What every callback is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper import Following
from sniper.integrations.callback import SniperSettings, refuse

SCHEDULE = {0: 0.8, 2: 0.0}


def test_one_sniper_a_model():
    settings = SniperSettings(SCHEDULE, block_size=16, lr_scale=None)
    assert settings.sniper is None
    model = nn.Linear(32, 32)
    assert settings.attach_to(model)
    first = settings.sniper
    assert first.model is model and first.block_size == 16 and first.lr_scale is None
    assert not settings.attach_to(model) and settings.sniper is first
    assert settings.attach_to(nn.Linear(32, 32)) and settings.sniper is not first


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_bad_counts(count):
    with pytest.raises(ValueError, match="score_batches: expected a whole number >= 1, got"):
        SniperSettings(SCHEDULE, score_batches=count)


def test_bad_options_are_refused_at_once():
    with pytest.raises(TypeError, match="'blocksize'"):
        SniperSettings(SCHEDULE, blocksize=16)
    with pytest.raises(ValueError, match="write 0.8 for 80 %"):
        SniperSettings({0: 80})
    with pytest.raises(ValueError, match="loss_fn: expected .*, got 'mse'"):
        SniperSettings(SCHEDULE, loss_fn="mse")
    with pytest.raises(ValueError, match="exchange: expected torch.float32, .* got torch.float16"):
        SniperSettings(SCHEDULE, exchange=torch.float16)
    for taken in ("model", "schedule"):
        with pytest.raises(TypeError, match=f"{taken}"):
            SniperSettings(SCHEDULE, **{taken: nn.Linear(16, 16)})
    with pytest.warns(DeprecationWarning, match="spread: old names; write cap=Following"):
        assert SniperSettings(SCHEDULE, spread=0.2).options == {"cap": Following(0.2)}
    assert "got FSDP, which shards them" in str(refuse("FSDP"))
