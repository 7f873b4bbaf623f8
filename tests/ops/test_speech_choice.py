# SPDX-License-Identifier: Apache-2.0
"""When the kernels of the loss, the length regulator and positions are asked at all."""

from __future__ import annotations

import pytest
import torch

from sniper.ops import loss, positions, regulator


class Sub(torch.Tensor):
    pass


MEL, TOKEN, WHOLE = torch.randn(2, 5, 3), torch.randn(2, 4), torch.ones(2, 4, dtype=torch.int64)
PREDICTED = loss.Predictions(MEL, MEL, TOKEN, TOKEN, TOKEN)
TARGETS = loss.Targets(MEL, WHOLE, TOKEN, TOKEN, WHOLE[:, 0], WHOLE[:, 0], None)


@pytest.fixture(autouse=True)
def served(monkeypatch):
    for module in (loss, positions, regulator):
        monkeypatch.setattr(module.triton, "serves", lambda x: True)


@pytest.mark.parametrize(
    "change",
    [
        {"before": MEL.double()},
        {"after": MEL[:, :1]},
        {"pitch": TOKEN[:, :1]},
        {"energy": TOKEN.as_subclass(Sub)},
        {"log_durations": TOKEN.to("meta")},
    ],
    ids=["double", "broadcast mel", "broadcast pitch", "subclass", "other device"],
)
def test_of_the_loss(change):
    assert loss.fuses_losses(PREDICTED, TARGETS)
    assert loss.fuses_losses(PREDICTED._replace(after=None), TARGETS)
    assert not loss.fuses_losses(PREDICTED._replace(**change), TARGETS)
    assert not loss.fuses_losses(PREDICTED, TARGETS._replace(durations=WHOLE.int()))
    assert not loss.fuses_losses(PREDICTED, TARGETS._replace(mel=MEL.half()))


def test_of_the_length_regulator():
    assert regulator.fuses_repeat(MEL, WHOLE.new_ones(2, 5))
    for x, durations in (
        (MEL.double(), WHOLE.new_ones(2, 5)),
        (MEL.as_subclass(Sub), WHOLE.new_ones(2, 5)),
        (MEL, WHOLE),
        (MEL, torch.ones(2, 5, dtype=torch.int32)),
    ):
        assert not regulator.fuses_repeat(x, durations)


def test_of_positions():
    one, at = torch.ones(()), MEL[0]
    assert positions.fuses_positions(MEL, at, one)
    assert positions.fuses_positions(MEL.half(), at, None)
    for x, encoding, alpha in (
        (MEL, at.half(), None),
        (MEL, at[:4], None),
        (MEL, at, one.half()),
        (MEL, at, torch.ones(1)),
        (MEL.as_subclass(Sub), at, one),
    ):
        assert not positions.fuses_positions(x, encoding, alpha)


def test_inside_of_transforms():
    asked = []

    def run(x):
        asked.append(positions.fuses_positions(x, MEL[0], None))
        asked.append(regulator.fuses_repeat(x, WHOLE.new_ones(2, 5)))
        asked.append(loss.fuses_losses(PREDICTED._replace(before=x), TARGETS))
        return x.sum()

    torch.func.grad(run)(MEL)
    assert asked == [False] * 3
