# SPDX-License-Identifier: Apache-2.0
"""What every callback is told."""

from __future__ import annotations

import pytest
from torch import nn

from sniper.integrations.callback import SniperSettings, refuse

SCHEDULE = {0: 0.8, 2: 0.0}


def test_one_sniper_a_model():
    settings = SniperSettings(SCHEDULE, block_size=16, restore_init=False)
    assert settings.sniper is None
    model = nn.Linear(32, 32)
    assert settings.attach_to(model)
    first = settings.sniper
    assert first.model is model and first.block_size == 16 and not first.restore_init
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
    assert "got FSDP, which shards them" in str(refuse("FSDP"))
