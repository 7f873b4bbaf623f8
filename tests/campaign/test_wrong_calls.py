# SPDX-License-Identifier: Apache-2.0
"""Every public callable, called with each argument in turn replaced by what it is not, made from
its signature: it takes the value, or says in one sentence what it expected and what it got.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_public_api import CALLABLES
from torch import nn

import sniper
from sniper import layers, ops


class Foreign:
    """An object of somebody else."""


JUNK: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "text",
    "nothing": lambda: "",
    "bytes": lambda: b"bytes",
    "true": lambda: True,
    "-1": lambda: -1,
    "huge": lambda: 10**30,
    "half": lambda: 0.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "list": lambda: [],
    "dict": lambda: {},
    "list of None": lambda: [None],
    "dict of text": lambda: {"a": "b"},
    "object": Foreign,
    "class": lambda: Foreign,
    "tensor": lambda: torch.ones(3, 5),
    "empty tensor": lambda: torch.ones(0),
    "module": lambda: nn.ReLU(),
}


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def _scored() -> sniper.Sniper:
    snip = sniper.Sniper(_net(), {0: 0.5, 1: 0.0}, lr_scale=None)
    snip.score([torch.ones(2, 64)], _loss)
    return snip


def _layer() -> sniper.BlockSparseLinear:
    layer = sniper.BlockSparseLinear(64, 64, block_size=32)
    layer.set_block_mask(torch.eye(2) > 0)
    return layer


def _conv() -> sniper.BlockSparseConv1d:
    layer = sniper.BlockSparseConv1d(64, 64, 3, block_size=32)
    layer.set_block_mask(torch.ones(layer.block_mask_shape) > 0)
    return layer


BATCHES = [torch.ones(2, 64)]
# A right call of each, whose arguments are then made wrong one at a time.
RIGHT: dict[str, tuple[Callable[[], Callable], Callable[[], dict[str, Any]]]] = {
    "Sniper": (lambda: sniper.Sniper, lambda: {"model": _net(), "schedule": {0: 0.5}}),
    "Sniper.score": (
        lambda: sniper.Sniper(_net(), {0: 0.5}).score,
        lambda: {"batches": BATCHES, "loss_fn": _loss},
    ),
    "Sniper.step": (lambda: _scored().step, lambda: {"epoch": 0}),
    "Sniper.masks": (lambda: _scored().masks, lambda: {"sparsity": 0.5}),
    "Sniper.param_groups": (lambda: _scored().param_groups, lambda: {"lr": 0.1}),
    "Sniper.load_state_dict": (
        lambda: _scored().load_state_dict,
        lambda: {"state": _scored().state_dict()},
    ),
    "SparsitySchedule": (lambda: sniper.SparsitySchedule, lambda: {"stages": {0: 0.5}}),
    "saliency": (
        lambda: sniper.saliency,
        lambda: {"model": _net(), "batches": BATCHES, "loss_fn": _loss},
    ),
    "masks": (lambda: sniper.masks, lambda: {"scores": {"w": torch.rand(4, 4)}, "sparsity": 0.5}),
    "sparsify": (lambda: sniper.sparsify, lambda: {"model": _net()}),
    "densify": (lambda: sniper.densify, lambda: {"model": _net()}),
    "BlockSparseLinear": (
        lambda: sniper.BlockSparseLinear,
        lambda: {"in_features": 64, "out_features": 64},
    ),
    "BlockSparseLinear.forward": (lambda: _layer(), lambda: {"x": torch.ones(2, 64)}),
    "BlockSparseLinear.set_block_mask": (
        lambda: _layer().set_block_mask,
        lambda: {"mask": torch.ones(2, 2) > 0},
    ),
    "BlockSparseConv1d": (
        lambda: sniper.BlockSparseConv1d,
        lambda: {"in_channels": 64, "out_channels": 64, "kernel_size": 3},
    ),
    "BlockSparseConv1d.forward": (lambda: _conv(), lambda: {"x": torch.ones(1, 64, 9)}),
    "BlockLayout": (
        lambda: layers.BlockLayout,
        lambda: {"block_mask": torch.ones(2, 2) > 0, "block_size": 8},
    ),
    "dropout": (lambda: ops.dropout, lambda: {"x": torch.ones(3), "p": 0.5}),
    "relu_dropout": (lambda: ops.relu_dropout, lambda: {"x": torch.ones(3), "p": 0.5}),
    "attention": (
        lambda: ops.attention,
        lambda: {**{k: torch.ones(1, 3, 8) for k in "qkv"}, "heads": 2},
    ),
    "block_matmul": (
        lambda: ops.block_matmul,
        lambda: {
            "x": torch.ones(1, 2, 64),
            "weight": (layer := _layer()).weight,
            "bias": None,
            "layout": layer.layout,
            "geometry": ops.Geometry(),
        },
    ),
    "explain": (lambda: ops.explain, lambda: {"model": nn.Sequential(_layer())}),
    "use_backend": (lambda: lambda name: ops.use_backend(name).__enter__(), lambda: {"name": "x"}),
    "NewWeights": (lambda: sniper.NewWeights, dict),
    "Fixed": (lambda: sniper.Fixed, dict),
    "Following": (lambda: sniper.Following, dict),
    "LearningRateScale": (lambda: sniper.LearningRateScale, dict),
}
# What the caller's own loss makes of the caller's own batches is the caller's; `bias` is torch's.
THEIRS = {("loss_fn", "class"), ("loss_fn", "module"), ("bias", "tensor"), ("bias", "empty tensor")}
THEIRS |= {("training", "tensor"), ("training", "empty tensor")}
THEIRS |= {("batches", junk) for junk in ("list of None", "dict of text", "tensor")}
CASES = [(name, junk) for name in RIGHT for junk in JUNK]


def _parameters(function: Callable) -> list[str]:
    """Names of arguments; a layer's call is its forward."""
    target = function.forward if isinstance(function, nn.Module) else function
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind not in kinds]


@pytest.mark.parametrize("name, junk", CASES)
def test_a_wrong_argument_is_one_sentence(name: str, junk: str):
    make, right = RIGHT[name]
    for argument in _parameters(make()):
        if (argument, junk) in THEIRS:
            continue
        arguments = {**dict(zip(_parameters(make()), right().values(), strict=False))}
        arguments[argument] = JUNK[junk]()
        try:
            make()(**arguments)
        except (ValueError, TypeError) as error:
            said = str(error)
            assert "expected" in said and "got" in said, f"{argument}={junk}: {said}"
            assert len(said) < 1500
        # Any other exception, such as AttributeError from inside, fails the case by itself.


def test_what_is_called_is_public():
    names = {name for name, *_ in CALLABLES}
    missing = [n for n in RIGHT if not any(f".{n}" in f".{full}" for full in names)]
    assert missing in ([], ["BlockSparseLinear.set_block_mask"])
