# SPDX-License-Identifier: Apache-2.0
"""Models of which each process holds a part are refused: before a Sniper, and after their masks."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from sniper import Sniper, sparsify
from sniper.ops.sharded import sharding_of

SCHEDULE = {0: 0.5, 1: 0.0}
DTENSOR, FLAT = "got a DTensor (fully_shard, or tensor", "got a part of a flat parameter (FullyS"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def batch() -> Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(1))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().mean()


def flat(model: nn.Module, use_orig_params: bool) -> nn.Module:
    where = torch.device("cpu")
    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=where)


def in_rows(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


SHARD: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fully_shard": lambda model: fully_shard(model, mesh=init_device_mesh("cpu", (2,))),
    "FSDP": lambda model: flat(model, False),
    "FSDP with original parameters": lambda model: flat(model, True),
    "tensor parallelism": in_rows,
}


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def before(shard, block_size: int | None) -> dict[str, str]:
    """What is said where the model came sharded, and whether it still trains."""
    model = shard(make_model())
    said = {"Sniper": refusal(lambda: Sniper(model, SCHEDULE, block_size=block_size))}
    if block_size is not None:
        said["sparsify"] = refusal(lambda: sparsify(model, block_size))
    loss_fn(model, batch()).backward()
    torch.optim.SGD(model.parameters()).step()
    return said


def after(shard, block_size: int | None) -> dict[str, str]:
    """What is said where the model was sharded when its masks were on."""
    model = make_model()
    snip = Sniper(model, SCHEDULE, block_size=block_size)
    snip.score([batch()], loss_fn)
    snip.step(0, torch.optim.SGD(model.parameters()))
    whole = shard(model)

    def train() -> None:
        optimizer = torch.optim.Adam(whole.parameters())
        loss_fn(whole, batch()).backward()
        optimizer.step()

    return {"training": refusal(train), "step": refusal(lambda: snip.step(1))}


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    gc.freeze()  # what was imported is not looked at each time
    for name, shard in SHARD.items():
        for block_size in (16, None):
            for when in (before, after):
                found[name, block_size, when.__name__] = when(shard, block_size)
                gc.collect()  # hooks hold a model in a circle
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("sharded")
    spawn(one_process, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("block_size", [16, None])
@pytest.mark.parametrize("name", SHARD)
def test_sharded_parameters_are_refused(found, name, block_size, when):
    kind = FLAT if name.startswith("FSDP") else DTENSOR
    for each in found:
        for what, said in each[name, block_size, when].items():
            assert kind in said and "use DistributedDataParallel" in said, (what, said)


def test_what_is_whole():
    assert sharding_of(torch.zeros(2)) == sharding_of(nn.Parameter(torch.zeros(2))) == ""


@pytest.mark.parametrize("options", [{"block_size": 16}, {"block_size": None, "paper_exact": True}])
def test_replicas_of_data_parallel_are_refused(options):
    model = make_model()
    snip = Sniper(model, SCHEDULE, **options)
    snip.score([batch()], loss_fn)
    snip.step(0, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="expected one process a GPU, got DataParallel"):
        # As it copies a model to each GPU.
        [m._replicate_for_data_parallel() for m in model.modules()][0](batch())
