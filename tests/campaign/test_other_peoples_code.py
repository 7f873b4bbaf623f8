# SPDX-License-Identifier: Apache-2.0
"""Models and optimizers that we did not write, under events drawn at random: all backends compute
the same, what is pruned is zero after each update, and what is not supported says so.
"""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable

import pytest
import torch
from campaigning import seeded
from torch import Tensor, nn

from sniper import BlockSparseConv1d, BlockSparseLinear, Sniper, ops, optim, sparsify

BLOCK = 16


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Reader(nn.Module):
    """It reads a layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.linear(x, self.project.weight).tanh())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(32, 48, 3, padding=1), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x[None].transpose(1, 2)).relu_()  # in place: an output is fresh
        return self.out(y.transpose(1, 2))[0]


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(inplace=True), nn.Linear(64, 32)),
    "tied": Tied,
    "reader": Reader,
    "convolutions": Convolutions,
    "twice": Twice,
    "norms": lambda: nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.Dropout(0.0)),
    "frozen": lambda: nn.Sequential(nn.Linear(32, 32).requires_grad_(False), nn.Linear(32, 32)),
}


class SignDescent(torch.optim.Optimizer):
    """Somebody's own: moves every entry by the same length, pruned or not."""

    def __init__(self, params, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign() + 0.1, alpha=group["lr"])


OPTIMIZERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1, foreach=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.01),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=0.01),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.05, max_iter=3),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2], lr=0.05),
    "sign": SignDescent,
    "ours": lambda ps: optim.AdamW(ps, lr=0.01, max_norm=1.0),
}


def masked_layers(model: nn.Module) -> list:
    kinds = (BlockSparseLinear, BlockSparseConv1d)
    return [m for m in model.modules() if isinstance(m, kinds) and m.layout is not None]


def pruned(layer: BlockSparseLinear | BlockSparseConv1d) -> Tensor:
    mask = layer.layout.element_mask()
    mask = mask[:, 0] if layer.weight.dim() == 2 else mask.permute(0, 2, 1)
    return layer.weight.detach()[~mask]


def outcome(model: nn.Module, x: Tensor, backend: str) -> list[Tensor]:
    model.zero_grad()
    with ops.use_backend(backend):
        y = model(x)
        y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def agree(model: nn.Module) -> None:
    model.eval()
    x = torch.randn(7, 32)
    wanted = outcome(model, x, "reference")
    for backend in ("cpu", "dense"):
        for got, expected in zip(outcome(model, x, backend), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    model.zero_grad()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, noise: bool = False) -> None:
    x = torch.randn(9, 32)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        for p in model.parameters():
            if noise and p.grad is not None:
                p.grad.add_(torch.randn_like(p))
        return loss

    optimizer.step(closure)
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in masked_layers(model):  # another optimizer's, or nobody's, stay as they are
        if layer.weight.requires_grad and id(layer.weight) in own:
            assert not pruned(layer).any()


def _events(draw: random.Random) -> dict[str, Callable]:
    def swapped(model, optimizer):
        for layer in masked_layers(model)[:1]:
            layer.weight = nn.Parameter(torch.randn_like(layer.weight))

    def each(change: Callable) -> Callable:
        return lambda model, optimizer: [change(layer) for layer in masked_layers(model)]

    def remasked(layer) -> None:
        mask = torch.rand(layer.block_mask_shape) < draw.choice((0.0, 0.25, 0.75, 1.0))
        layer.set_block_mask(mask)

    return {
        "update": update,
        "noisy update": lambda model, optimizer: update(model, optimizer, noise=True),
        "remask": each(remasked),
        "reset": each(lambda layer: layer.reset_parameters()),
        "fill": each(lambda layer: nn.init.normal_(layer.weight)),
        "data": each(lambda layer: layer.weight.data.add_(1.0)),
        "swap": swapped,
        "reload": lambda model, o: model.load_state_dict(copy.deepcopy(model.state_dict())),
        "half": lambda model, o: model.double().float(),
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_whatever_happens_all_backends_agree(model: str, optimizer: str):
    draw = seeded(model, optimizer)
    torch.manual_seed(draw.randrange(2**31))
    made = MODELS[model]()
    if model == "tied":
        with pytest.raises(ValueError, match=r"(?s)expected .*got .*tied"):
            sparsify(made, BLOCK)
        return
    sparsify(made, BLOCK)
    chosen = OPTIMIZERS[optimizer](list(made.parameters()))
    events = _events(draw)
    events["remask"](made, chosen)
    for layer in [
        m for m in made.modules() if isinstance(m, BlockSparseLinear | BlockSparseConv1d)
    ]:
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    for name in ("update", *draw.choices(sorted(events), k=4)):
        events[name](made, chosen)
        agree(made)
        for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            agree(twin)
    torch.testing.assert_close(copy.deepcopy(made)(x := torch.randn(3, 32)), made(x))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scaled", [True, False], ids=["rates scaled", "rates as they are"])
def test_sniper_with_any_optimizer(optimizer: str, scaled: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    more = {} if scaled else {"lr_scale": None}
    snip = Sniper(model, {0: 0.5, 1: 0.0}, block_size=BLOCK, **more)
    chosen = OPTIMIZERS[optimizer](list(model.parameters()))
    snip.score([torch.randn(9, 32)], lambda m, x: m(x).square().mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the cap keeps more than was asked for
        try:
            snip.step(0, chosen)
        except ValueError as error:
            assert scaled and "expected" in str(error) and "lr_scale" in str(error)
            return
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            update(model, chosen, noise=True)
        zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.dim() == 2)
        assert zeros >= 0.4 * 2 * 32 * 64
        assert any((p - q).any() for p, q in zip(model.parameters(), before, strict=True))
        with pytest.raises(TypeError, match=r"expected .*got .*state_dict"):
            pickle.dumps(snip)
        assert repr(snip)
        snip.step(1, chosen)
        update(model, chosen)


def test_two_snipers_on_one_model_are_refused():
    model = MODELS["plain"]()
    first = Sniper(model, {0: 0.5}, block_size=BLOCK)
    with pytest.raises(ValueError, match=r"expected .*got"):
        Sniper(model, {0: 0.5}, block_size=BLOCK)
    del first


def test_an_optimizer_of_another_model_is_refused():
    model, other = MODELS["plain"](), MODELS["plain"]()
    snip = Sniper(model, {0: 0.5}, block_size=BLOCK)
    snip.score([torch.randn(9, 32)], lambda m, x: m(x).square().mean())
    with pytest.raises(ValueError, match=r"expected .*got"):
        snip.step(0, torch.optim.Adam(other.parameters()))
