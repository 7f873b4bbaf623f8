# SPDX-License-Identifier: Apache-2.0
"""What is exchanged equals the plain sum of all gradients, and costs what is active."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import sniper
from sniper import Sniper
from sniper.distributed import GradientExchange, compress_gradients
from sniper.ops.layout import BlockLayout
from sniper.sparsity.exchange import _Blocks

SCHEDULE = {0: 0.8, 1: 0.5, 2: 0.0}


class Net(nn.Module):
    """A convolution, whose weight changes its order in memory, and layers that stay dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(64, 128, 3, padding=1)
        self.norm = nn.LayerNorm(128)
        self.out = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x).transpose(1, 2)))


def batch(seed: int) -> Tensor:
    return torch.randn(4, 64, 20, generator=torch.Generator().manual_seed(seed))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def steps(rank: int, block_size: int | None, dtype: torch.dtype | None, **options: Any) -> dict:
    """Weights, bytes and gradients after updates at each sparsity; dtype None: DDP's own way."""
    torch.manual_seed(0)
    model = Net()
    snip = Sniper(model, SCHEDULE, block_size=block_size, **options)
    ddp = DistributedDataParallel(model)
    exchange = None if dtype is None else compress_gradients(ddp, snip, dtype)
    optimizer = torch.optim.SGD(snip.param_groups(lr=0.1), momentum=0.9)
    snip.score([batch(rank)], loss_fn)
    sent, dense = [], sum(4 * p.numel() for p in model.parameters())
    for epoch in SCHEDULE:
        snip.step(epoch, optimizer)
        for i in range(3):
            optimizer.zero_grad(set_to_none=i == 1)
            if exchange is not None:
                exchange.bytes = 0
            loss_fn(ddp, batch(10 * epoch + 2 * i + rank)).backward()
            optimizer.step()
        sent.append(None if exchange is None else exchange.bytes / dense)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"weights": model.state_dict(), "grads": grads, "sent": sent, "reached": snip.reached}


def compiled(rank: int) -> dict[str, Tensor]:
    """Gradients of a compiled DDP, by its name and by that of the plain one."""
    torch.manual_seed(0)
    model = Net()
    snip = Sniper(model, SCHEDULE, block_size=16)
    snip.score([batch(rank)], loss_fn)
    snip.step(0, torch.optim.SGD(model.parameters()))
    ddp = DistributedDataParallel(model)
    fast = torch.compile(ddp, backend="aot_eager")
    compress_gradients(fast, snip)
    found = {}
    for name, each in (("plain", ddp), ("compiled", fast)):
        model.zero_grad()
        loss_fn(each, batch(rank)).backward()
        found |= {f"{name} {n}": p.grad.clone() for n, p in model.named_parameters()}
    return found


def other_hook() -> str:
    model = Net()
    snip, ddp = Sniper(model, SCHEDULE, block_size=16), DistributedDataParallel(model)
    ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    try:
        compress_gradients(ddp, snip)
    except ValueError as error:
        return str(error)
    return "nothing"


def sums(rank: int) -> tuple[list[list[Tensor]], list[int]]:
    """What each parameter's gradient is before and after the trainer's exchange."""
    torch.manual_seed(0)
    model = Net()
    snip = Sniper(model, SCHEDULE, block_size=16)
    snip.score([batch(rank)], loss_fn)
    snip.step(0, torch.optim.SGD(model.parameters()))
    params = list(model.parameters())
    found, counted = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        if rank == 0:  # the other has no part of this batch
            loss_fn(model, batch(0)).backward()
        exchange = GradientExchange(snip, dtype)
        exchange.sum(params)
        found.append([p.grad.clone() for p in params])
        counted.append(exchange.bytes)
    return found, counted


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, block_size in (("blocks", 16), ("weights", None)):
        for dtype in (None, torch.float32, torch.bfloat16):
            found[f"{name} {dtype}"] = steps(rank, block_size, dtype)
    exact = {"paper_exact": True}
    found["paper None"] = steps(rank, None, None, **exact)
    found["paper torch.float32"] = steps(rank, None, torch.float32, **exact)
    found["sums"] = sums(rank)
    found["compiled"], found["other hook"] = compiled(rank), other_hook()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("exchange")
    spawn(one_process, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["blocks", "weights", "paper"])
def test_ddp_with_it_has_the_bits_of_ddp_without(name, found):
    for each in found:
        plain, packed = each[f"{name} None"], each[f"{name} torch.float32"]
        for kind in ("weights", "grads"):
            assert plain[kind].keys() == packed[kind].keys()
            for key, value in plain[kind].items():
                assert torch.equal(value, packed[kind][key]), key
    a, b = (each[f"{name} torch.float32"]["weights"] for each in found)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_compiled_ddp(found):
    for each in (found[0]["compiled"], found[1]["compiled"]):
        for name in ("conv.weight", "out.weight", "norm.bias"):
            assert each[f"plain {name}"].abs().sum() > 0
            torch.testing.assert_close(each[f"compiled {name}"], each[f"plain {name}"])


def test_another_communication_hook_is_refused(found):
    assert "ddp: expected one without a communication hook" in found[0]["other hook"]


def test_it_sends_what_is_active(found):
    for kind in ("blocks", "weights"):
        first, second, last = found[0][f"{kind} torch.float32"]["sent"]
        assert first <= 0.3 and second < 0.6 and last == 1
        halves = found[0][f"{kind} torch.bfloat16"]["sent"]
        assert halves == [first / 2, second / 2, 0.5]
    # Gradients of pruned weights move Adam's moments there, so all of them travel.
    assert found[0]["paper torch.float32"]["sent"] == [1, 1, 1]


def test_half_precision_rounds_and_stays_the_same_on_all_ranks(found):
    a, b = (each["blocks torch.bfloat16"]["weights"] for each in found)
    exact = found[0]["blocks None"]["weights"]
    for key in a:
        assert torch.equal(a[key], b[key])
        torch.testing.assert_close(a[key], exact[key], rtol=0.05, atol=0.01)
    assert not torch.equal(a["out.weight"], exact["out.weight"])


def test_a_rank_without_a_gradient_gets_the_sum(found):
    (ours, counted), (others, _) = (each["sums"] for each in found)
    for a, b in zip(ours[0], others[0], strict=True):
        assert torch.equal(a, b) and a.abs().sum() > 0
    for a, b in zip(ours[1], ours[0], strict=True):
        assert torch.equal(a, b.bfloat16().float())
    assert counted[0] == 2 * counted[1]


def test_blocks_of_any_memory_order():
    mask = torch.tensor([[[1, 0], [0, 0], [1, 1]], [[0, 0], [0, 1], [0, 0]]]).bool()
    packing = _Blocks(BlockLayout(mask, 2))
    values = torch.arange(4 * 4 * 3.0).view(4, 4, 3)
    orders = [values, values.permute(0, 2, 1).contiguous().permute(0, 2, 1)]
    # In the gradient's dtype, and in another.
    packed = [torch.full((16,), torch.nan, dtype=d) for d in (torch.float32, torch.float64)]
    for each in packed:
        for g in orders:
            packing.take(g, each)
            assert torch.equal(each.float(), packed[0])
    assert packing.numel == 16
    first = values[:2, :2, 0].reshape(-1)
    assert torch.equal(packed[0][:4], first)
    for g in orders:
        written = torch.zeros_like(g)
        version = written._version
        packing.put(written, packed[0])
        assert written._version > version  # or an optimizer takes it for a gradient it has cleared
        kept = mask.permute(0, 2, 1).repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert torch.equal(written, g * kept)


def test_a_future_of_means_holds_them(monkeypatch):
    """On a GPU whoever waits for a future waits for the devices of its value."""
    done: torch.futures.Future[Any] = torch.futures.Future()
    done.set_result(None)
    work = SimpleNamespace(get_future=lambda: done)
    monkeypatch.setattr(dist, "all_reduce", lambda flat, async_op: work)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    p, grad = nn.Parameter(torch.zeros(4)), torch.ones(4)
    value = GradientExchange(None).average([(p, grad)]).wait()
    assert isinstance(value, Tensor) and value.tolist() == grad.tolist() == [0.5] * 4


def test_the_models_own_parameters_are_summed_and_frozen_ones_left_alone(monkeypatch):
    """`model.parameters()` can be read once: nothing was exchanged, in silence."""

    def doubled(flat: Tensor, async_op: bool) -> SimpleNamespace:
        flat.mul_(2)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", doubled)
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    model.weight.grad = torch.ones(3, 2)
    exchange = GradientExchange(None)
    exchange.sum(model.parameters())
    assert model.weight.grad.tolist() == [[2.0, 2.0]] * 3 and exchange.bytes == 4 * 6
    assert model.bias.grad is None  # an optimizer with weight decay would move it


def test_what_it_does_not_take():
    snip = Sniper(Net(), SCHEDULE, block_size=16)
    with pytest.raises(ValueError, match="ddp: expected a DistributedDataParallel, got Net"):
        sniper.distributed.compress_gradients(snip.model, snip)
    with pytest.raises(ValueError, match="dtype: expected torch.float32 or torch.bfloat16"):
        GradientExchange(snip, torch.float16)
