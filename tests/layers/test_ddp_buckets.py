# SPDX-License-Identifier: Apache-2.0
"""A convolution's gradient comes out of DDP as it went in, whenever its mask was put on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sniper import BlockSparseConv1d, Sniper
from sniper.layers.ddp_buckets import make_buckets_anew
from sniper.sparsity.ddp import compress_gradients

OPTIONS = {
    "usual": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


def batch(seed: int) -> Tensor:
    return torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(seed))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def differences(options: dict, way: str) -> list[bool]:
    """Whether DDP's gradient, of equal batches on all ranks, is that of one rank, update by update;
    the masks come after the DDP was made, in the second update.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 32, 3))
    if way == "layer":
        model[2] = BlockSparseConv1d(64, 32, 3, block_size=16)
    ddp = DistributedDataParallel(model, **options)
    snip = None if way == "layer" else Sniper(model, {0: 0.6}, block_size=16)
    if way == "packed":
        compress_gradients(ddp, snip)
    same = []
    for i in range(4):
        if i == 1 and snip is not None:
            snip.score([batch(0)], loss_fn)
            snip.step(0, torch.optim.SGD(model.parameters()))
        elif i == 1:
            model[2].set_block_mask(torch.rand(2, 3, 4) < 0.5)
        model.zero_grad()
        loss_fn(model, batch(i)).backward()
        alone = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        loss_fn(ddp, batch(i)).backward()
        pairs = zip(alone, model.parameters(), strict=True)
        same.append(all(torch.equal(a, p.grad) for a, p in pairs))
    return same


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {
        (name, way): differences(options, way)
        for name, options in OPTIONS.items()
        for way in ("sniper", "packed", "layer")
    }
    model = nn.Conv1d(16, 16, 3)
    ddp = DistributedDataParallel(model, process_group=dist.new_group([0, 1]))
    try:
        make_buckets_anew([model.weight])
        found["group"] = "nothing"
    except ValueError as error:
        found["group"] = str(error)
    del ddp
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ddp")
    spawn(one_process, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("way", ["sniper", "packed", "layer"])
@pytest.mark.parametrize("name", OPTIONS)
def test_masks_that_come_after_ddp(found, name, way):
    assert [each[name, way] for each in found] == [[True] * 4] * 2


def test_what_cannot_be_made_anew_is_refused(found):
    assert "expected DistributedDataParallel over all processes" in found[0]["group"]
