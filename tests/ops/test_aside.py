# SPDX-License-Identifier: Apache-2.0
"""Work beside the rest of a step: in line where nobody asks for it, right where it runs late."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sniper.layers import BlockSparseLinear, layer_norm
from sniper.ops import aside
from sniper.ops.aside import Aside
from sniper.optim import Adam


def test_without_a_step_that_has_it_everything_is_in_line():
    x = torch.ones(2)
    assert aside.run(lambda: 3, (x,)) == 3
    # A CPU's tensors have no streams, whatever a step has.
    with aside.weight_gradients_aside(Late()):
        assert aside.run(lambda: 4, (x,)) == 4


class Late(Aside):
    """Computes all that it was given at the end, on what has become of the operands by then."""

    def __init__(self):
        self.waiting: list = []

    def run(self, compute, reads):
        self.waiting.append((compute, [t.clone() for t in reads], reads))
        return None

    def join(self):
        for compute, before, reads in self.waiting:
            assert all(torch.equal(a, b) for a, b in zip(before, reads, strict=True))
            compute()

    def forget(self):
        self.waiting.clear()


def test_a_pass_that_fails_leaves_nothing_to_wait_for():
    there, x, ran = Late(), torch.ones(2), []
    with pytest.raises(RuntimeError, match="out of memory"), aside.weight_gradients_aside(there):
        there.run(lambda: ran.append(1), (x,))
        raise RuntimeError("out of memory")
    # It is joined all the same, or a recording that it was part of could not end.
    assert ran and not there.waiting
    assert aside.run(lambda: 5, (x,)) == 5


def test_what_a_weight_gradient_reads_is_not_written_before_the_end(monkeypatch):
    """A device may run it as late as that."""

    def gradients(late: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        # Biases apart: their gradients are what `run` gives, which is late too.
        layers = [BlockSparseLinear(32, 32, bias=False, block_size=16) for _ in range(4)]
        for layer in layers:
            layer.set_block_mask(torch.eye(2, dtype=torch.bool))
        model = nn.Sequential(*layers)
        Adam(model.parameters())  # gradients may be added to their places
        x = torch.randn(3, 5, 32)
        y = model(x)
        y = layers[0](y + model[1](y)).relu()  # one of them twice
        there = Late()
        if late:
            monkeypatch.setattr(aside, "run", there.run)
        (y * torch.randn(3, 5, 32)).sum().backward()
        number = len(there.waiting)
        there.join()
        monkeypatch.undo()
        return [p.grad for p in model.parameters() if p.grad is not None], number

    (now, none), (late, many) = gradients(False), gradients(True)
    assert none == 0 and many == 6
    assert len(now) == len(late) == 4 and all(
        torch.equal(a, b) for a, b in zip(now, late, strict=True)
    )


def test_a_bias_that_others_compute_is_not_late():
    leaf = torch.ones(2, requires_grad=True)
    computed = leaf * 2
    assert aside.is_unread(leaf) and aside.is_unread(None) and not aside.is_unread(computed)
    aside.unread(computed)
    assert aside.is_unread(computed)


@pytest.mark.gpu
def test_memory_is_not_given_away_while_it_is_read():
    device = torch.device("cuda")
    there = Aside(torch.cuda.Stream())
    place = SimpleNamespace(sums=[])
    with aside.weight_gradients_aside(there):
        for i in range(40):
            x = torch.full((1 << 22,), float(i), device=device)

            def compute(x=x):
                torch.cuda._sleep(2_000_000)
                place.sums.append(x.sum())

            aside.run(compute, (x,))
            del x, compute
            torch.full((1 << 22,), -1.0, device=device)  # would take x's place
    assert [float(s) for s in place.sums] == [float(i) * (1 << 22) for i in range(40)]


@pytest.mark.gpu
def test_biases_and_norms_have_their_gradients_however_late_they_come():
    def gradients(late: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer, norm = BlockSparseLinear(128, 128, block_size=64).cuda(), nn.LayerNorm(128).cuda()
        layer.set_block_mask(torch.eye(2, dtype=torch.bool))
        Adam(layer.parameters())
        layer.weight.grad = torch.zeros_like(layer.weight)
        stream = torch.cuda.Stream()
        y = layer_norm(layer(torch.randn(3, 50, 128, device="cuda")), norm, relu=True)
        factors = torch.randn_like(y)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000 if late else 1)
        with aside.weight_gradients_aside(Aside(stream) if late else None):
            (y * factors).sum().backward()
        found = [p.grad for p in (*layer.parameters(), *norm.parameters())]
        assert all(g is not None for g in found)
        return [g for g in found if g is not None]

    gradients(False)  # kernels are chosen
    for late, now in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(late, now)
