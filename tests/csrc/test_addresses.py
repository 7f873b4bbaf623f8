# SPDX-License-Identifier: Apache-2.0
"""Addresses of many tensors in one call: what each says itself, and nothing for no tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sniper import _C

NAMES = ("step", "exp_avg")


def test_the_address_that_each_tensor_gives_itself():
    x = torch.zeros(4, 6)
    tensors = [x, x[1:, 2:], nn.Parameter(x.t()), torch.zeros((), dtype=torch.bfloat16)]
    tensors += [torch.empty(0), torch.empty(3, device="meta"), x.requires_grad_() * 2]
    found = memoryview(_C.addresses([*tensors, None])).cast("q").tolist()
    assert found == [*(t.data_ptr() for t in tensors), 0]
    assert _C.addresses([]) == b""


@pytest.mark.parametrize("value", ["x", 3, [torch.zeros(1)]], ids=str)
def test_what_is_no_tensor_is_refused(value):
    with pytest.raises(TypeError, match=f"'data_ptr'.*'{type(value).__name__}'"):
        _C.addresses([torch.zeros(2), value])
    with pytest.raises(TypeError, match=f"'data_ptr'.*'{type(value).__name__}'"):
        _C.optimizer_places([], {torch.zeros(1): {"step": value}}, NAMES)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.addresses(torch.zeros(2))


class Optimized:
    """Two parameters with gradients, and their states."""

    def __init__(self):
        self.params = [nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
        for p in self.params:
            p.grad = torch.zeros(4, 6)
        self.states = {
            p: {"step": torch.zeros(()), "exp_avg": torch.zeros(4, 6)} for p in self.params
        }
        self.kept = [s["exp_avg"] for s in self.states.values()]  # their memory stays taken

    def places(self) -> bytes:
        return _C.optimizer_places(self.params, self.states, NAMES)


def move_weight(o: Optimized) -> None:
    o.kept.append(o.params[0].data)
    o.params[0].data = torch.zeros(4, 6)


def take_gradient(o: Optimized) -> None:
    o.params[1].grad = None


def turn_gradient(o: Optimized) -> None:
    o.params[1].grad = torch.zeros(6, 4).t()


def replace_moment(o: Optimized) -> None:
    o.states[o.params[1]]["exp_avg"] = torch.zeros(4, 6)


def move_moment(o: Optimized) -> None:
    o.states[o.params[0]]["exp_avg"].data = torch.zeros(4, 6)


def take_moment(o: Optimized) -> None:
    del o.states[o.params[0]]["exp_avg"]


def swap_states(o: Optimized) -> None:
    a, b = o.params
    o.states[a], o.states[b] = o.states[b], o.states[a]


def take_state(o: Optimized) -> None:
    del o.states[o.params[1]]


CHANGES = (
    move_weight,
    take_gradient,
    turn_gradient,
    replace_moment,
    move_moment,
    take_moment,
    swap_states,
    take_state,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_places_of_an_optimizer_change_with_what_moves(change):
    optimized = Optimized()
    before = optimized.places()
    kept = [s.data for s in optimized.kept]
    assert optimized.places() == before
    change(optimized)
    assert optimized.places() != before and kept


def test_gradients_on_a_cpu_may_lie_elsewhere():
    """There they are made anew for each step, and each step is told where they are."""
    optimized = Optimized()
    before, kept = optimized.places(), optimized.params[0].grad
    optimized.params[0].grad = torch.ones(4, 6)
    assert optimized.places() == before and kept is not None
