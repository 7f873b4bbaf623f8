# SPDX-License-Identifier: Apache-2.0
"""Patterns over names, and what is left out by its type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper.layers.selection import (
    excluded_by,
    kind_left_out,
    left_out_by_type,
    matches,
    names_of,
    unmatched,
)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("norm", "encoder.norm1.weight", True),
        ("norm", "encoder.Norm1.weight", False),
        ("encoder.*", "encoder.0.weight", True),
        ("encoder.*", "my.encoder.0", False),
        ("*.[01].*", "encoder.1.weight", True),
        ("*.[01].*", "encoder.2.weight", False),
        ("h.?", "h.1", True),
        ("h.?", "h.12", False),
    ],
)
def test_matches(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_a_pattern_may_name_the_module_or_the_parameter():
    assert names_of("encoder.0.weight") == ("encoder.0.weight", "encoder.0")
    assert excluded_by(["*.1", "*.0"], names_of("encoder.0.weight")) == "*.0"
    assert excluded_by(["*.bias"], names_of("encoder.0.weight")) is None
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    patterns = ["0", "*.bias", "scale", "norm", "embed", "1", "decoder.*"]
    assert unmatched(model, patterns) == ["1", "decoder.*"]  # a ReLU holds nothing


class Derived(nn.GroupNorm):
    pass


class T5LayerNorm(nn.Module):
    pass


class PreNorm(nn.Module):
    """A normalisation with a layer in it, which is none itself."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))
        self.fn = nn.Linear(2, 2)


class Normal(nn.Linear):
    pass


def test_types():
    norms = [nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.RMSNorm(2), nn.LocalResponseNorm(2)]
    norms += [nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.InstanceNorm3d(2), Derived(1, 2)]
    for module in [*norms, T5LayerNorm(), PreNorm()]:
        assert kind_left_out(module) == "normalisation layer", module
    for module in (nn.Embedding(2, 2), nn.EmbeddingBag(2, 2)):
        assert kind_left_out(module) == "embedding"
    for module in (nn.Linear(2, 2), Normal(2, 2), nn.LSTM(2, 2), nn.Identity()):
        assert kind_left_out(module) == ""


def test_only_what_such_a_module_holds_itself_wherever_else_it_is_used():
    model = nn.ModuleDict(
        {"head": nn.Linear(2, 3, bias=False), "wte": nn.Embedding(3, 2), "pre": PreNorm()}
    )
    model["head"].weight = model["wte"].weight
    left = left_out_by_type(model)
    assert {name for name, p in model.named_parameters() if id(p) in left} == {
        "head.weight",
        "pre.gain",
    }
