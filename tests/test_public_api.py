# SPDX-License-Identifier: Apache-2.0
"""The public API as a stranger meets it: every symbol is documented, and a bad argument gets one
error that says what was expected and what came.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sniper
from sniper import (
    BlockSparseConv1d,
    BlockSparseLinear,
    Fixed,
    Following,
    LearningRateScale,
    NewWeights,
    Sniper,
    SparsitySchedule,
    distributed,
    layers,
    ops,
)
from sniper.integrations import huggingface, lightning

ROOMS = (
    "",
    ".sparsity",
    ".layers",
    ".ops",
    ".optim",
    ".distributed",
    ".integrations.huggingface",
    ".integrations.lightning",
)


def symbols() -> dict[str, Any]:
    """Everything that a room lists in its `__all__`, once each, by the first name that has it."""
    found: dict[str, Any] = {}
    for room in ROOMS:
        module = importlib.import_module(f"sniper{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if not any(value is other for other in found.values()):
                found[f"{module.__name__}.{name}"] = value
    return found


def callables() -> Iterator[tuple[str, Callable, Callable]]:
    """Name, function and its documentation's bearer, for functions, constructors and methods."""
    for name, value in symbols().items():
        if not inspect.isclass(value):
            yield name, value, value
            continue
        yield name, value.__init__, value
        for key, member in vars(value).items():
            function = getattr(member, "__func__", member)
            if not key.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{key}", function, function


SYMBOLS, CALLABLES = symbols(), list(callables())


def test_rooms_list_what_they_offer():
    assert {"sniper.Sniper", "sniper.sparsify", "sniper.ops.explain"} <= set(SYMBOLS)
    assert not any(isinstance(value, types.ModuleType) for value in SYMBOLS.values())
    for name in sniper.__all__:
        assert getattr(sniper, name) is not None
    assert inspect.isfunction(sniper.saliency) and inspect.isfunction(sniper.masks)


@pytest.mark.parametrize("name", SYMBOLS)
def test_every_symbol_has_a_docstring(name):
    value = SYMBOLS[name]
    assert value.__doc__ and value.__doc__.strip(), f"{name} has no docstring"


# Called by the trainers or by torch; what they take is those libraries' to document.
HOOKS = ("on_", "forward", "extra_repr", "state_dict", "load_state_dict")
DOCUMENTED = {
    name: (function, bearer)
    for name, function, bearer in CALLABLES
    if not (".integrations." in name and name.rpartition(".")[2].startswith(HOOKS))
    and not name.endswith((".forward", ".extra_repr"))
}


# Records that functions hand out; nobody makes them.
RECORDS = ("ModuleReport", "SparsifyReport")
# They take what their callers were given by us, and refuse nothing themselves.
TRUSTING = (
    *("BlockLayout.unwritten", "BlockLayout.rewritten", "BlockLayout.to"),
    *("BlockLayout.mark_zeros", "BlockLayout.zeros_known", "BlockLayout.marked"),
    "BlockLayout.weight_shape",
    "Adam.has_gradient",
    *("ops.Geometry", "Geometry.out_length"),
    "GradientExchange.average",
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_callable_says_what_it_takes_gives_and_raises(name):
    function, bearer = DOCUMENTED[name]
    text = inspect.getdoc(bearer) or ""
    parameters = inspect.signature(function).parameters.values()
    named = [
        p.name
        for p in parameters
        if p.name not in ("self", "cls") and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not named:
        return
    heading = "Attributes:" if name.endswith(RECORDS) else "Args:"
    assert heading in text, f"{name}: no {heading}"
    for argument in named:
        assert argument in text[text.index(heading) :], f"{name}: {argument} is not documented"
    if name.endswith((*RECORDS, *TRUSTING)):
        return
    assert "Raises:" in text, f"{name}: no Raises"
    returns = str(inspect.signature(function).return_annotation)
    if not inspect.isclass(bearer) and not returns.startswith(("None", "Iterator", "<class")):
        assert "Returns:" in text or text.startswith("`"), f"{name}: no Returns"


NAN = float("nan")
NOT_FLOATING = [torch.ones(3, dtype=dtype) for dtype in (torch.long, torch.bool, torch.cfloat)]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.Conv1d(64, 64, 3))


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model[0](x).square().mean()


def snip(**settings: Any) -> Sniper:
    return Sniper(net(), {0: 0.5, 2: 0.0}, **settings)


def scored() -> Sniper:
    it = snip(lr_scale=None)
    it.score([torch.ones(2, 64)], plain)
    return it


def masked(kind: type = BlockSparseLinear) -> nn.Module:
    layer = kind(64, 64, *[3] * (kind is BlockSparseConv1d))
    layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    return layer


def other_adam() -> torch.optim.Optimizer:
    return torch.optim.Adam(net().parameters())


def adam(kind: type = sniper.optim.Adam, **options: Any) -> Any:
    return kind(net().parameters(), **options)


def meta() -> nn.Module:
    return net().to("meta")


def matmul(x=None, weight=None, bias=None, layout=None, geometry=ops.Geometry(), **more):  # noqa: B008
    layer = masked()
    x = torch.ones(1, 2, 64) if x is None else x
    weight = layer.weight if weight is None else weight
    layout = layer.layout if layout is None else layout
    return ops.block_matmul(x, weight, bias, layout, geometry, **more)


def attend(q=None, k=None, v=None, heads=2, **more):
    one = torch.ones(1, 3, 8)
    return ops.attention(*(one if t is None else t for t in (q, k, v)), heads, **more)


SCORES = {"w": torch.rand(4, 4)}
ONE = [torch.ones(2, 64)]
HF, PL = huggingface.SniperCallback, lightning.SniperCallback

# Calls that must be refused, by what is called.
BAD: dict[str, list[Callable[[], Any]]] = {
    "sniper.Sniper": [
        lambda: Sniper("model", {0: 0.5}),
        lambda: Sniper(meta(), {0: 0.5}),
        lambda: Sniper(nn.ReLU(), {0: 0.5}),
        lambda: Sniper(net(), 0.5),
        lambda: Sniper(net(), {0: 80}),
        lambda: Sniper(net(), {1: 0.5}),
        *[lambda v=v: snip(block_size=v) for v in ("64", 0, -1, 64.0, True, NAN)],
        *[lambda v=v: snip(exclude=v) for v in ("norm", 3, [3], ["decoder"], [None])],
        *[lambda v=v: snip(cap=v) for v in (0.5, "fixed", None)],
        *[lambda v=v: snip(new_weights=v) for v in (True, None, 16.0)],
        *[lambda v=v: snip(lr_scale=v) for v in (True, 2.0, "2")],
        *[lambda v=v: snip(paper_exact=v) for v in (True, "yes", None)],
        lambda: snip(blocksize=64),
    ],
    "sniper.Sniper.paper": [
        lambda: Sniper.paper("model", {0: 0.5}),
        lambda: Sniper.paper(net(), {0: 40}),
        lambda: Sniper.paper(net(), {0: 0.5}, exclude="norm"),
        *[lambda v=v: Sniper.paper(net(), {0: 0.5}, max_param_sparsity=v) for v in (75, NAN, "1")],
    ],
    "sniper.Sniper.score": [
        lambda: snip().score(None, plain),
        lambda: snip().score("batches", plain),
        lambda: snip().score([], plain),
        lambda: snip().score(ONE, None),
        lambda: snip().score(ONE, lambda m, x: 1.0),
        lambda: snip().score(ONE, lambda m, x: m[0](x)),
        lambda: snip().score(ONE, lambda m, x: plain(m, x).detach()),
        lambda: snip().score([ONE[0] * NAN], plain),
    ],
    "sniper.Sniper.step": [
        *[lambda v=v: scored().step(v) for v in (NAN, "2", -1, None, True, float("inf"), [0])],
        *[lambda v=v: scored().step(0, v) for v in ("adam", 3, [None], other_adam())],
        lambda: snip().step(0),
    ],
    "sniper.Sniper.param_groups": [
        lambda v=v: snip().param_groups(v) for v in ("1e-3", NAN, -1.0, None, True)
    ],
    "sniper.Sniper.masks": [
        lambda: snip().masks(),
        *[lambda v=v: scored().masks(v) for v in (0.3, 50, "0.5", NAN)],
    ],
    "sniper.Sniper.load_state_dict": [
        *[lambda v=v: snip().load_state_dict(v) for v in (None, "state", {}, {"version": 9})],
        lambda: snip().load_state_dict({**scored().state_dict(), "shapes": {"x": [2]}}),
    ],
    "sniper.SparsitySchedule": [
        lambda v=v: SparsitySchedule(v)
        for v in (None, 0.5, "0.5", [], {}, {1: 0.5}, {0: 80}, {0: -1}, {0: NAN}, {0: "0.5"})
        + ({0: 0.1, 1: 0.5}, {0: 0.5, 1.5: 0.2}, {0: 0.5, "1": 0.2}, {0: True})
    ],
    "sniper.SparsitySchedule.from_fractions": [
        *[lambda v=v: SparsitySchedule.from_fractions({0: 0.5}, v) for v in (0, "9", 2.5, True)],
        *[lambda v=v: SparsitySchedule.from_fractions(v, 9) for v in (None, {1: 0.5}, {"0": 0.5})],
    ],
    "sniper.SparsitySchedule.sparsity_at": [
        lambda v=v: SparsitySchedule({0: 0.5}).sparsity_at(v) for v in (-1, NAN, "0", None)
    ],
    "sniper.SparsitySchedule.changes_at": [
        lambda v=v: SparsitySchedule({0: 0.5}).changes_at(v) for v in (-1, NAN, "0", None)
    ],
    "sniper.Fixed": [lambda v=v: Fixed(v) for v in (75, -0.1, NAN, "0.5", None, True)],
    "sniper.Following": [lambda v=v: Following(v) for v in (75, -0.1, NAN, "0.5", None, True)],
    "sniper.NewWeights": [
        *[lambda v=v: NewWeights(restore_init=v) for v in ("no", 1, None)],
        *[lambda v=v: NewWeights(prime_moments=v) for v in (-1, NAN, float("inf"), "16", True)],
    ],
    "sniper.LearningRateScale": [
        lambda v=v: LearningRateScale(v) for v in (0.5, NAN, "2", None, True, -2)
    ],
    "sniper.LearningRateScale.factor": [
        lambda v=v: LearningRateScale().factor(v) for v in (-0.5, 1.5, NAN, "1", None)
    ],
    "sniper.saliency": [
        lambda: sniper.saliency("model", ONE, plain),
        lambda: sniper.saliency(meta(), ONE, plain),
        lambda: sniper.saliency(net(), 3, plain),
        lambda: sniper.saliency(net(), [], plain),
        lambda: sniper.saliency(net(), ONE, "loss"),
        lambda: sniper.saliency(net(), ONE, lambda m, x: None),
        lambda: sniper.saliency(net(), [ONE[0] * NAN], plain),
        *[lambda v=v: sniper.saliency(net(), ONE, plain, v) for v in ("norm", 3, ["decoder"])],
    ],
    "sniper.masks": [
        *[lambda v=v: sniper.masks(v, 0.5) for v in (None, 3, {}, {"w": [1.0]}, SCORES["w"])],
        *[lambda v=v: sniper.masks({"w": SCORES["w"] + v}, 0.5) for v in (NAN, -9)],
        lambda: sniper.masks({"w": SCORES["w"], "v": SCORES["w"].to("meta")}, 0.5),
        *[lambda v=v: sniper.masks(SCORES, v) for v in (50, -0.1, NAN, "0.5", None)],
        *[lambda v=v: sniper.masks(SCORES, 0.5, v) for v in (50, -0.1, NAN, "0.5", None)],
        *[lambda v=v: sniper.masks(SCORES, 0.5, block_size=v) for v in (3, 0, "4", 4.0)],
    ],
    "sniper.sparsify": [
        lambda: sniper.sparsify("model"),
        lambda: sniper.sparsify(nn.ReLU()),
        lambda: sniper.sparsify(nn.Sequential(nn.LazyLinear(64))),
        *[lambda v=v: sniper.sparsify(net(), v) for v in (0, "64", 64.0, None, 48)],
        *[lambda v=v: sniper.sparsify(net(), include=v) for v in ("*", 3, ["decoder"], [0])],
        *[lambda v=v: sniper.sparsify(net(), exclude=v) for v in ("0", 3, ["decoder"], ["*"])],
        *[lambda v=v: sniper.sparsify(net(), fast_dropout=v) for v in ("no", None)],
        *[lambda v=v: sniper.sparsify(net(), fast_depthwise=v) for v in ("no", None)],
        *[lambda v=v: sniper.sparsify(net(), fast_attention=v) for v in (1, None)],
    ],
    "sniper.densify": [lambda v=v: sniper.densify(v) for v in (None, "model", torch.ones(2))],
    "sniper.BlockSparseLinear": [
        *[lambda v=v: BlockSparseLinear(64, 64, block_size=v) for v in (48, 0, "64", 64.0)],
        *[lambda v=v: BlockSparseLinear(v, 64) for v in (32, -64, "64", 64.0)],
    ],
    "sniper.BlockSparseLinear.forward": [
        lambda v=v: masked()(v)
        for v in (
            None,
            [1.0],
            torch.ones(2, 32),
            torch.ones(2, 64).long(),
            torch.ones(2, 64).half(),
        )
        + (torch.ones(2, 64, device="meta"), torch.ones(()))
    ],
    "sniper.BlockSparseConv1d": [
        *[lambda v=v: BlockSparseConv1d(64, 64, 3, block_size=v) for v in (48, 0, "64", 64.0)],
        lambda: BlockSparseConv1d(64, 64, 3, stride=2),
        lambda: BlockSparseConv1d(64, 64, 3, groups=64),
        *[lambda v=v: BlockSparseConv1d(64, 64, v) for v in (0, -1, "3")],
    ],
    "sniper.BlockSparseConv1d.forward": [
        lambda v=v: masked(BlockSparseConv1d)(v)
        for v in (None, torch.ones(64), torch.ones(1, 32, 9), torch.ones(1, 64, 9).long())
        + (torch.ones(1, 64, 2), torch.ones(1, 64, 9, device="meta"))
    ],
    "sniper.Fixed.of": [lambda v=v: Fixed(0.5).of(v) for v in (2, "0.5", None, NAN)],
    "sniper.Following.of": [lambda v=v: Following(0.1).of(v) for v in (2, "0.5", None, NAN)],
    "sniper.layers.BlockLayout": [
        *[lambda v=v: layers.BlockLayout(torch.ones(2, 2).bool(), v) for v in (0, "8", None)],
        *[
            lambda v=v: layers.BlockLayout(v, 8)
            for v in (None, torch.ones(2, 2), torch.ones(2) > 0, torch.ones(0, 2) > 0)
        ],
    ],
    "sniper.layers.BlockLayout.update": [
        lambda v=v: layers.BlockLayout(torch.ones(2, 2) > 0, 8).update(v)
        for v in (None, torch.ones(2, 2), torch.ones(3, 2) > 0, [[True]])
    ],
    "sniper.layers.Dropout": [lambda v=v: layers.Dropout(v) for v in (-0.1, 1.5, "0.5", NAN)],
    "sniper.layers.layout_versions": [lambda v=v: layers.layout_versions(v) for v in (None, "m")],
    "sniper.layers.relu_dropout": [
        lambda: layers.relu_dropout("layer", ONE[0], nn.Dropout(0.1)),
        lambda: layers.relu_dropout(nn.Linear(64, 64), "x", nn.Dropout(0.1)),
        lambda: layers.relu_dropout(nn.Linear(64, 64), ONE[0], 0.1),
    ],
    "sniper.layers.batch_norm": [
        lambda: layers.batch_norm("x", nn.BatchNorm1d(64), nn.Dropout(0.1), True),
        lambda: layers.batch_norm(ONE[0], 64, nn.Dropout(0.1), True),
        lambda: layers.batch_norm(ONE[0], nn.BatchNorm1d(64), 0.1, True),
    ],
    "sniper.layers.add_norm": [
        lambda: layers.add_norm("x", ONE[0], nn.Dropout(0.1), nn.LayerNorm(64)),
        lambda: layers.add_norm(ONE[0], None, nn.Dropout(0.1), nn.LayerNorm(64)),
        lambda: layers.add_norm(ONE[0], ONE[0], 0.1, nn.LayerNorm(64)),
        lambda: layers.add_norm(ONE[0], ONE[0], nn.Dropout(0.1), 64),
    ],
    "sniper.layers.layer_norm": [
        lambda: layers.layer_norm("x", nn.LayerNorm(64)),
        lambda: layers.layer_norm(ONE[0], None),
    ],
    "sniper.ops.block_matmul": [
        *[lambda v=v: matmul(v) for v in ("x", torch.ones(2, 64), torch.ones(1, 2, 32))],
        *[lambda v=v: matmul(torch.ones(1, 2, 64, **v)) for v in ({"device": "meta"},)],
        *[lambda v=v: matmul(torch.ones(1, 2, 64).to(v)) for v in (torch.half, torch.long)],
        *[lambda v=v: matmul(weight=v) for v in ("w", torch.ones(64), torch.ones(32, 64))],
        *[lambda v=v: matmul(bias=v) for v in ("b", torch.ones(3), torch.ones(64).half())],
        *[lambda v=v: matmul(layout=v) for v in ("h", -1, 1.5)],
        *[lambda v=v: matmul(geometry=v) for v in ("g", 3, ops.Geometry(3), ops.Geometry(1, 0))],
        *[lambda v=v: matmul(relu_dropout=v) for v in ("p", 1.5, -1.0, NAN)],
    ],
    "sniper.ops.attention": [
        *[lambda v=v: attend(q=v) for v in ("q", torch.ones(3, 8), torch.ones(2, 3, 8))],
        *[lambda v=v: attend(k=v) for v in ("k", torch.ones(1, 4, 8), torch.ones(1, 3, 6))],
        *[lambda v=v: attend(q=torch.ones(1, 3, 8).to(v)) for v in (torch.half, "meta")],
        *[lambda v=v: attend(*[v.expand(1, 3, 3)] * 3, 1) for v in NOT_FLOATING],
        *[lambda v=v: attend(heads=v) for v in (0, 3, "2", 2.0)],
        *[lambda v=v: attend(key_mask=v) for v in ("m", torch.ones(1, 3), torch.ones(3) > 0)],
        *[lambda v=v: attend(dropout_p=v) for v in ("p", 1.0, -0.1, NAN)],
    ],
    "sniper.ops.dropout": [
        *[lambda v=v: ops.dropout(torch.ones(3), v) for v in (1.5, -0.1, NAN, "0.5", None)],
        *[lambda v=v: ops.dropout(v, 0.5) for v in (None, [1.0], 3, *NOT_FLOATING)],
    ],
    "sniper.ops.cast_once": [lambda v=v: ops.cast_once(v) for v in (None, "x", 3.0)],
    "sniper.ops.relu_dropout": [
        *[lambda v=v: ops.relu_dropout(torch.ones(3), v) for v in (1.5, -0.1, NAN, "0.5", None)],
        *[lambda v=v: ops.relu_dropout(v, 0.5) for v in (None, [1.0], 3, *NOT_FLOATING)],
    ],
    "sniper.ops.use_backend": [
        lambda v=v: ops.use_backend(v).__enter__() for v in ("cuda", None, 3, ["dense"])
    ],
    "sniper.ops.autotune": [lambda v=v: ops.autotune(v) for v in ("yes", None, 1)],
    "sniper.ops.explain": [lambda v=v: ops.explain(v) for v in (None, "model", torch.ones(2))],
    "sniper.distributed.GradientExchange": [
        *[lambda v=v: distributed.GradientExchange(v) for v in ("sniper", 3, net())],
        *[lambda v=v: distributed.GradientExchange(None, v) for v in (torch.half, "bf16", None)],
    ],
    "sniper.distributed.GradientExchange.sum": [
        lambda v=v: distributed.GradientExchange(None).sum(v)
        for v in (None, torch.ones(2), [3], net().named_parameters())
    ],
    "sniper.distributed.compress_gradients": [
        lambda: distributed.compress_gradients(net(), snip()),
    ],
    "sniper.optim.Adam": [
        *[lambda v=v: adam(max_norm=v) for v in (0.0, -1, NAN, "1", True)],
        *[lambda v=v: adam(clear=v) for v in (1, "yes", None)],
        *[lambda v=v: adam(foreach=v) for v in (True, "yes")],
        lambda: adam(fused=False),
        lambda: adam(differentiable=True),
    ],
    "sniper.optim.Adam.add_param_group": [
        *[lambda v=v: adam().add_param_group(v) for v in (None, "group", [net()])],
        lambda: adam().add_param_group({"params": net().parameters(), "fused": False}),
    ],
    "sniper.optim.Adam.clip": [lambda v=v: adam().clip(v) for v in (0, -1, NAN, "1", None, True)],
    "sniper.optim.Adam.step": [lambda v=v: adam().step(v) for v in ("closure", 3)],
    "sniper.optim.Adam.zero_grad": [lambda v=v: adam().zero_grad(v) for v in ("no", None, 1)],
    "sniper.optim.AdamW": [
        lambda: adam(sniper.optim.AdamW, max_norm=0.0),
        lambda: adam(sniper.optim.AdamW, decoupled_weight_decay=True),
    ],
    "sniper.integrations.huggingface.SniperCallback": [
        *[lambda v=v: HF(v) for v in (None, {0: 80}, {1: 0.5}, "0.5")],
        *[lambda v=v: HF({0: 0.5}, score_batches=v) for v in (0, 2.5, "8", True, None)],
        lambda: HF({0: 0.5}, loss_fn="mse"),
        lambda: HF({0: 0.5}, blocksize=64),
        *[lambda v=v: HF({0: 0.5}, resume_from=v) for v in (3, True)],
    ],
    "sniper.integrations.lightning.SniperCallback": [
        *[lambda v=v: PL(v) for v in (None, {0: 80}, {1: 0.5}, "0.5")],
        *[lambda v=v: PL({0: 0.5}, score_batches=v) for v in (0, 2.5, "8", True, None)],
        lambda: PL({0: 0.5}, loss_fn="mse"),
        lambda: PL({0: 0.5}, blocksize=64),
    ],
}
CALLS = {f"{name}, {i}": call for name, calls in BAD.items() for i, call in enumerate(calls)}

# Take nothing, or only what the library itself hands over.
TRUSTED = (
    *TRUSTING,
    *RECORDS,
)


def test_every_callable_is_called_wrongly():
    for name, (function, _) in DOCUMENTED.items():
        takes = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        assert not takes or name in BAD or name.endswith(TRUSTED), name


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_argument_gets_one_error_that_says_expected_and_got(case):
    with pytest.raises((ValueError, TypeError)) as raised:
        CALLS[case]()
    said = str(raised.value)
    assert "expected" in said and "got" in said, said
    assert raised.value.__cause__ is None
