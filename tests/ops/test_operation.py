# SPDX-License-Identifier: Apache-2.0
"""The short way to a kernel against torch's own, and who still sees the operation."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sniper import BlockSparseLinear
from sniper.ops.operation import operation

CALLS = []


@operation("sniper_test::scaled")
def scaled(x: Tensor, by: float, twice: bool = False) -> Tensor:
    CALLS.append("scaled")
    return x * (2 * by if twice else by)


@scaled.register_fake
def _(x, by, twice=False):
    return torch.empty_like(x)


def _save(ctx, inputs, output):
    _, ctx.by, ctx.twice = inputs


scaled.register_autograd(lambda ctx, dy: (scaled(dy, ctx.by, ctx.twice), None, None),
                         setup_context=_save)  # fmt: skip


@operation("sniper_test::add_to", mutates_args=("into",))
def add_to(into: Tensor, x: Tensor) -> Tensor:
    # As a kernel that knows an address writes: torch sees nothing of it.
    into.data.add_(x)
    return x.sum()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Told(Tensor):
    names = []

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.names.append(func.name())
        return torch.zeros(2, 3)


def in_torch(run):
    """What `run` gives where a mode keeps every call on torch's way."""
    with Seen() as seen:
        result = run()
    assert any(name.startswith("sniper") for name in seen.names)
    return result


def test_a_plain_call_skips_the_dispatcher(monkeypatch):
    monkeypatch.setattr(scaled, "op", None)
    x = torch.randn(2, 3, requires_grad=True)
    y = scaled(x, 3.0)
    y.sum().backward()
    assert torch.equal(y, 3 * x) and torch.equal(x.grad, torch.full((2, 3), 3.0))
    assert not scaled(x.detach(), 3.0).requires_grad
    with torch.no_grad():
        assert not scaled(x, 3.0).requires_grad


def test_both_ways_give_the_same_bits():
    torch.manual_seed(0)
    layer = BlockSparseLinear(64, 32, block_size=16)
    layer.set_block_mask(torch.rand(2, 4) < 0.5)

    def run():
        x = torch.linspace(-1, 1, 5 * 64).view(5, 64).requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()],
                                        create_graph=True)  # fmt: skip
        seconds = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
        return [y, *gradients, *seconds]

    for short, long in zip(run(), in_torch(run), strict=True):
        assert torch.equal(short, long)


def test_defaults_are_filled_and_gradients_of_gradients_are_there():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: scaled(x, 1.5) ** 2, x)
    assert torch.equal(scaled(x, 1.0, True), 2 * x)


def test_arguments_that_are_written_to_have_a_new_version():
    into, x = torch.zeros(3), torch.ones(3)
    before = into._version
    add_to(into, x)
    assert torch.equal(into, x) and into._version == before + 1
    in_torch(lambda: add_to(into, x))
    assert into._version == before + 2
    with pytest.raises(RuntimeError):  # torch's own: there is no gradient
        add_to(into, x.requires_grad_()).backward()


def test_who_looks_sees_the_operation():
    x = torch.randn(2, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        scaled(x, 2.0)
    assert "sniper_test::scaled" in {event.name for event in profile.events()}
    scaled(x.as_subclass(Told), 2.0)
    assert "sniper_test::scaled" in Told.names


def test_a_meta_tensor_gets_the_fake():
    before = len(CALLS)
    assert scaled(torch.empty(4, 5, device="meta"), 2.0).shape == (4, 5)
    assert len(CALLS) == before


def test_what_a_transform_has_left_is_seen_by_torch():
    left = []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(torch.ones(2, 3))
    by = torch.ones(2, 3, requires_grad=True)
    y = scaled(left[0], 2.0) * by
    y.sum().backward()
    assert torch.equal(y, torch.full((2, 3), 2.0)) and torch.equal(by.grad, y)


def test_compiled_whole():
    compiled = torch.compile(lambda x: scaled(x, 2.0) + 1, backend="eager", fullgraph=True)
    x = torch.randn(2, 3)
    assert torch.equal(compiled(x), 2 * x + 1)


def test_batched_gradients_are_as_torch_has_them():
    """`is_grads_batched` hands a backward pass tensors of `torch.func`, which know no addresses."""
    x = torch.randn(2, 3, requires_grad=True)
    y = scaled(x, 2.0)
    dy = torch.eye(6).view(6, 2, 3)
    (jacobian,) = torch.autograd.grad(y, x, dy, is_grads_batched=True)
    assert torch.equal(jacobian, 2 * dy)
