# SPDX-License-Identifier: Apache-2.0
"""BatchNorm of ranks that share a batch is BatchNorm of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor, nn

from sniper.training.batch_norm import (
    SharedBatchNorm1d,
    absent_loss,
    share_batch_norms,
    statistics_apart,
)
from sniper.training.graphs import CudaRecorder
from sniper.training.ranks import Ranks, _Store

# Rank 0 has two rows, rank 1 three, rank 2 none.
PARTS = (2, 3, 0)


def net(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.BatchNorm1d(4, momentum=momentum), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)
    model = nn.Sequential(*layers)
    for p in model.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return model


def whole() -> Tensor:
    # Far from 0, where a variance by squares would lose most digits.
    return torch.randn(sum(PARTS), 4, 6, generator=torch.Generator().manual_seed(1)) + 100


def trained(model: nn.Module, x: Tensor | None) -> dict[str, Tensor]:
    """Two steps' gradients (with respect to x too) and buffers."""
    for _ in range(2):
        model.zero_grad()
        if x is None:
            absent_loss(model).backward()
            continue
        x.grad = None
        (model(x).tanh().square() * torch.arange(4.0)[:, None]).sum().backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in grads(model).items()}
    found |= {n: b.clone() for n, b in model.named_buffers()}
    return found if x is None else {**found, "x": x.grad}


def grads(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    found = {}
    for momentum in (0.1, None):
        model = net(momentum)
        share_batch_norms(model)
        x = whole().split(PARTS)[rank].clone().requires_grad_()
        found[str(momentum)] = trained(model, x if len(x) else None)
    half = SharedBatchNorm1d(4)
    if rank < 2:
        y = half(whole().split(PARTS)[rank].bfloat16())
        found["half"] = {"dtype": torch.tensor(y.dtype == torch.bfloat16)}
    else:
        half.absent(torch.device("cpu"))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("norms")
    spawn(one_process, 3, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_parts_are_normalised_as_the_whole_is(momentum, found):
    x = whole().requires_grad_()
    expected = trained(net(momentum), x)
    parts = [each[str(momentum)] for each in found]
    for name in grads(net()):
        torch.testing.assert_close(
            sum(p[name] for p in parts), expected[name], rtol=1e-4, atol=1e-3
        )
    dx = torch.cat([p["x"] for p in parts[:2]])
    torch.testing.assert_close(dx, expected["x"], rtol=1e-4, atol=1e-4)
    for name, _ in net().named_buffers():
        torch.testing.assert_close(parts[0][name], expected[name])
        # Checkpoints are rank 0's, and validation is everybody's.
        assert torch.equal(parts[0][name], parts[1][name])
        assert torch.equal(parts[0][name], parts[2][name])


def _recorded(rank: int, folder: str) -> None:
    """A rank alone, which still has NCCL exchange within a recorded graph."""
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    ranks = Ranks(0, 1, 0, _Store(dist.FileStore(f"{folder}/store", 1)))
    ranks.connect(device, 1.0)
    model, plain = net().to(device), net().to(device)
    share_batch_norms(model)
    x = whole().to(device)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)

    def step(net: nn.Module = model) -> dict[str, Tensor]:
        loss = (net(x).tanh().square() * torch.arange(4.0, device=device)[:, None]).sum()
        loss.backward()
        return {"loss": loss.detach()}

    recorder = CudaRecorder(device)
    with statistics_apart():
        recorder.warm_up(step)
    for tensor in (*(p.grad for p in model.parameters()), *model.buffers()):
        tensor.zero_()
    for (_, b), (_, own) in zip(plain.named_buffers(), model.named_buffers(), strict=True):
        own.copy_(b)
    replay, values = recorder.record(step)
    for _ in range(2):
        replay()
        expected = step(plain)["loss"]
        torch.testing.assert_close(values["loss"], expected)
    pairs = zip([*model.named_parameters()], [*plain.parameters()], strict=True)
    for (name, p), other in pairs:
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-2, msg=name)
    for name, b in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), b)
    dist.destroy_process_group()


@pytest.mark.gpu
def test_recorded_as_a_graph_it_exchanges_by_nccl(tmp_path: Path):
    spawn(_recorded, 1, str(tmp_path))


def test_half_precision_comes_out_as_it_went_in(found):
    assert found[0]["half"]["dtype"] and found[1]["half"]["dtype"]


def test_evaluated_or_apart_it_needs_no_other_rank():
    plain, model = net(), net()
    share_batch_norms(model)
    assert type(model[0]) is SharedBatchNorm1d
    assert model.state_dict().keys() == plain.state_dict().keys()
    with statistics_apart():
        assert torch.equal(model(whole()), plain(whole()))
    assert torch.equal(model.eval()(whole()), plain.eval()(whole()))
    assert absent_loss(model).item() == 0
