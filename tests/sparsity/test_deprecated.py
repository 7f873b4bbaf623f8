# SPDX-License-Identifier: Apache-2.0
"""Old keywords of `Sniper`."""

from __future__ import annotations

import inspect
import warnings

import pytest
from torch import nn

from sniper import Fixed, Following, LearningRateScale, NewWeights, Sniper


def make(**settings) -> Sniper:
    return Sniper(nn.Linear(64, 64), {0: 0.5}, **settings)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"max_param_sparsity": 0.6}, {"cap": Fixed(0.6)}),
        ({"spread": None}, {"cap": Fixed(0.75)}),
        ({"spread": 0.2, "max_param_sparsity": 0.6}, {"cap": Following(0.2)}),
        ({"restore_init": True}, {"new_weights": NewWeights(True, 16.0)}),
        ({"restore_init": True, "prime_moments": 0}, {"new_weights": NewWeights(True, 0)}),
        ({"scale_lr": False, "max_lr_scale": 3.0}, {"lr_scale": None}),
        ({"scale_lr": True}, {"lr_scale": LearningRateScale(2.0)}),
        ({"max_lr_scale": 3.0, "block_size": 32}, {"lr_scale": LearningRateScale(3.0)}),
    ],
)
def test_old_names_mean_the_new_settings(old, new):
    with pytest.warns(DeprecationWarning) as warned:
        snip = make(**old)
    (warning,) = warned
    ((name, value),) = new.items()
    assert f"old names; write {name}={value}" in str(warning.message)
    assert warning.filename == __file__
    assert getattr(snip, name) == value
    assert snip.block_size == old.get("block_size", 64)


def test_the_signature_has_the_new_names_only():
    assert list(inspect.signature(Sniper).parameters) == [
        *("model", "schedule", "block_size", "exclude"),
        *("cap", "new_weights", "lr_scale", "paper_exact", "growth", "prune"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cap=Fixed(0.6), lr_scale=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocksize": 32}, "got 'blocksize': did you mean block_size?"),
        ({"restor_init": True}, "did you mean restore_init?"),
        ({"colour": 1}, "expected keywords among model, schedule, block_size.*got 'colour'$"),
        ({"cap": Fixed(0.6), "spread": 0.1}, "expected cap alone, got spread too"),
    ],
)
def test_unknown_keywords(settings, said):
    with pytest.raises(TypeError, match=said):
        make(**settings)
