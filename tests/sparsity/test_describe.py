# SPDX-License-Identifier: Apache-2.0
"""What a Sniper says of itself."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from sniper import Fixed, Following, LearningRateScale, Sniper

SCHEDULE = {0: 0.75, 2: 0.5, 4: 0.0}


def net() -> nn.Sequential:
    """Two linears, the first with much larger saliencies."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight.mul_(10)
    return model


def make(block_size: int | None = 8, **settings) -> Sniper:
    return Sniper(net(), SCHEDULE, block_size=block_size, **settings)


def score(snip: Sniper) -> None:
    snip.score([torch.randn(16, 32)], lambda m, x: m(x).square().mean())


def test_every_state_of_a_run():
    snip = make(cap=Following(0.0), lr_scale=LearningRateScale(2.0))
    said = []
    for act in (lambda: None, lambda: score(snip), lambda: snip.step(0), lambda: snip.step(4)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()
        assert repr(snip).startswith(
            "Sniper(Sequential, 75% from epoch 0 -> 50% from epoch 2 -> 0% from epoch 4, "
            "block_size=8, cap=Following(spread=0.0), "
        )
        said.append(repr(snip).partition("0.0), ")[2])
    snip.detach()
    assert said == [
        "not scored yet)",
        "scored, no step yet)",
        "stage 1 of 3, sparsity 75.0% asked, 75.0% reached)",
        "stage 3 of 3, sparsity 0.0% asked, 0.0% reached)",
    ]
    assert repr(snip).endswith("detached)")


def test_the_summary():
    snip = make(cap=Following(0.0), lr_scale=LearningRateScale(3.0))
    score(snip)
    snip.step(0, torch.optim.SGD(snip.model.parameters(), lr=0.1))
    assert snip.summary().splitlines() == [
        "SNIPER on Sequential, blocks of 8: stage 1 of 3, sparsity 75.0% asked, 75.0% reached",
        "schedule: 75% from epoch 0 -> 50% from epoch 2 -> 0% from epoch 4",
        "masked: 4,096 of 4,192 parameters, in 2 tensors",
        "parameter  shape  density  learning rate",
        "0.weight   64x32  0.250    x 3.00",
        "2.weight   32x64  0.250    x 3.00",
    ]


def test_the_summary_counts_active_weights_that_are_still_zero():
    """As behind a ReLU with a bias below 0, whose unit had all of its inputs pruned."""
    snip = make(cap=Following(0.0), lr_scale=None)
    score(snip)
    snip.step(0)
    assert "still 0" not in snip.summary()
    snip.step(4)  # all at once come back, at 0
    assert snip.summary().splitlines()[3] == "still 0: 3,072 of 4,096 active weights"
    with torch.no_grad():
        snip.model[0].weight.fill_(1.0)
    assert snip.summary().splitlines()[3] == "still 0: 1,536 of 4,096 active weights"


def test_the_summary_says_what_is_left_dense_and_why():
    """Also what the default of `exclude` leaves out by its name, which is no embedding."""
    model = nn.ModuleDict(
        {
            "embed_out": nn.Linear(16, 16),
            "frozen": nn.Linear(16, 16).requires_grad_(False),
            "odd": nn.Linear(16, 7),
            "table": nn.Embedding(16, 16),
            "taken": nn.Linear(16, 16),
        }
    )
    blocks = Sniper(copy.deepcopy(model), SCHEDULE, block_size=8).summary().splitlines()
    assert blocks[4:] == [
        "taken.weight  16x16  1.000    x 1.00",
        "left dense:",
        "embed_out  excluded by 'embed'",
        "frozen     frozen",
        "odd        7 x 16 does not divide by 8",
        "table      left out by its type: embedding",
    ]
    weights = Sniper(model, SCHEDULE, block_size=None).summary().splitlines()
    assert weights[-5:] == [
        "embed_out.weight  excluded by 'embed'",
        "embed_out.bias    excluded by 'embed'",
        "frozen.weight     frozen",
        "frozen.bias       frozen",
        "table.weight      left out by its type: embedding",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cap": Fixed(0.6)}, r"75\.0% was asked .* cap, Fixed\(max_param_sparsity=0\.6\).*Follow"),
        ({"block_size": 32, "cap": Following(0.05)}, "only 4 blocks of 32 to prune.*block_size"),
        ({"block_size": None, "zeros": True}, "many saliencies are equal.*score on more batches"),
    ],
)
def test_a_sparsity_that_is_not_reached(settings, said):
    zeros = settings.pop("zeros", False)
    snip = make(**{"cap": Fixed(1.0), "lr_scale": None, **settings})
    if zeros:
        nn.init.zeros_(snip.model[0].weight)
    with torch.no_grad():
        batch = torch.zeros(16, 32) if zeros else torch.randn(16, 32)
    snip.score([batch], lambda m, x: m(x).square().mean())
    with pytest.warns(UserWarning, match=said) as warned:
        reached = snip.step(0)
    (warning,) = warned
    assert warning.filename == __file__
    assert abs(reached - 0.75) > 0.01 and snip.sparsity == 0.75
    masks = snip.masks().values()
    pruned = sum(int((~m).sum()) for m in masks) / sum(m.numel() for m in masks)
    assert reached == pytest.approx(pruned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        assert snip.step(1) == reached
