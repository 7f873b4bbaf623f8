# SPDX-License-Identifier: Apache-2.0
"""Two processes that train one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from torch import Tensor, nn

from sniper import Sniper
from sniper.sparsity import distributed

SCHEDULE = {0: 0.75, 1: 0.4, 2: 0.0}


def make_sniper(block_size: int | None) -> Sniper:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    return Sniper(model, SCHEDULE, block_size=block_size)


class Experts(nn.Module):
    """A layer of several is called, as the batch says."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.experts[which](x)


def batch(seed: int) -> Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


def weights(sniper: Sniper) -> list[Tensor]:
    return [p.detach().clone() for p in sniper.model.parameters()]


def refusal(call) -> str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def one_process(rank: int, folder: str) -> None:
    """What each of the two does; its findings lie in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for block_size in (16, None):
        sniper = make_sniper(block_size)
        scores = sniper.score([batch(rank)], loss_fn)
        sniper.step(0), sniper.step(1)
        found[block_size] = (scores, weights(sniper), sniper.densities())

    sniper = make_sniper(16)
    sniper.score([batch(rank)], loss_fn)
    sniper.step(0)
    if rank == 1:  # a checkpoint of another run, say
        name, mask = next(iter(sniper._scheduled.masks[0.4].items()))
        mask[0, 0] = ~mask[0, 0]
        sniper._scheduled.counts[0.4][name] = int(mask.sum())
    found["other masks"] = refusal(lambda: sniper.step(1))

    sniper = make_sniper(16)
    found["no batches"] = refusal(lambda: sniper.score([batch(0)][rank:], loss_fn))
    other = make_sniper(16 if rank else None)
    found["other parameters"] = refusal(lambda: other.score([batch(0)], loss_fn))

    experts = Sniper(Experts(), {0: 0.5}, block_size=16, lr_scale=None)
    with torch.no_grad():
        for p in experts.model.parameters():
            p.fill_(0.1)
    experts.score([batch(rank)], lambda m, x: m(x, rank).square().sum())
    found["each calls its expert"] = list(experts.densities())

    halves = [torch.full((3, 2), 1.0 + rank), torch.full((5,), 2.0**rank, dtype=torch.bfloat16)]
    halves.append(torch.arange(4.0).view(2, 2).t() * (rank + 1))
    distributed.sum_over_ranks(halves)
    found["sums"] = [t.tolist() for t in halves]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(one_process, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("block_size", [16, None])
def test_both_score_what_one_would(found, block_size):
    alone = make_sniper(block_size)
    expected = alone.score([batch(0), batch(1)], loss_fn)
    alone.step(0), alone.step(1)
    for scores, values, densities in (f[block_size] for f in found):
        for name, score in expected.items():
            torch.testing.assert_close(scores[name], score)
        assert densities == alone.densities()
        for a, b in zip(values, weights(alone), strict=True):
            assert torch.equal(a, b)
    assert all(
        torch.equal(found[0][block_size][0][n], found[1][block_size][0][n]) for n in expected
    )


def test_masks_that_differ_stop_every_rank_with_both_values(found):
    messages = [f["other masks"] for f in found]
    assert messages[0] == messages[1]
    assert messages[0].startswith("RanksDiffer: masks of sparsity 0.4: expected the same")
    values = [word for word in messages[0].split() if word.startswith("0x")]
    assert len(set(values)) == 2
    assert "on rank 0" in messages[0] and "on rank 1" in messages[0]


def test_a_rank_without_batches_stops_every_rank(found):
    assert {f["no batches"] for f in found} == {
        "ValueError: batches: expected at least one batch on every rank to score on, got none"
    }


def test_a_layer_that_some_rank_calls_is_masked_on_all(found):
    """Where it was found uncalled on the others, it was left dense there alone."""
    assert [f["each calls its expert"] for f in found] == [
        ["experts.0.weight", "experts.1.weight"]
    ] * 2


def test_ranks_that_prune_other_parameters_stop(found):
    assert all("parameters to score: expected the same" in f["other parameters"] for f in found)


def test_sums(found):
    for f in found:
        assert f["sums"] == [[[3.0, 3.0]] * 3, [3.0] * 5, [[0.0, 6.0], [3.0, 9.0]]]


def test_checksum():
    a, b = torch.tensor([1, 2]), torch.tensor([True])
    value = distributed.checksum({"a": [a, b], "b": []})
    assert 0 <= value < 2**63
    assert value == distributed.checksum({"b": [], "a": [a.clone(), b]})
    others = [
        {"a": [b, a], "b": []},
        {"a": [a], "b": [b]},
        {"a": [a.int(), b], "b": []},
        {"a": [torch.tensor([1, 3]), b], "b": []},
        {"a": [a.view(2, 1), b], "b": []},
    ]
    assert len({value, *(distributed.checksum(o) for o in others)}) == 6


def test_one_process_is_not_several(tmp_path):
    assert not distributed.several()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert not distributed.several()
    finally:
        dist.destroy_process_group()
