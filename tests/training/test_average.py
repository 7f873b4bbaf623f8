# SPDX-License-Identifier: Apache-2.0
"""The moving average of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speech import fit, make_trainer, tiny
from torch import nn

from sniper.training import checkpoint
from sniper.training.average import WeightAverage
from sniper.training.checkpoint import CheckpointError


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def _steps(net: nn.Module, average: WeightAverage, count: int) -> list[torch.Tensor]:
    seen = []
    for _ in range(count):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        average.update()
        seen.append(net[0].weight.detach().clone())
    return seen


def test_the_average_is_what_its_formula_says():
    net = _net()
    average = WeightAverage(net, 0.4)
    seen = _steps(net, average, 9)
    expected = seen[0]
    # (1 + n) / (10 + n) is below 0.4 up to n = 4.
    for n, weight in enumerate(seen[1:], start=2):
        decay = [0, 0, 3 / 12, 4 / 13, 5 / 14][n] if n < 5 else 0.4
        expected = decay * expected + (1 - decay) * weight
    with average.in_place():
        torch.testing.assert_close(net[0].weight, expected, rtol=0, atol=1e-6)
    assert torch.equal(net[0].weight, seen[-1])


def test_weights_come_back_whatever_happens_inside():
    net = _net()
    average = WeightAverage(net, 0.9)
    weight = _steps(net, average, 3)[-1]
    address = net[0].weight.data_ptr()
    with pytest.raises(RuntimeError, match="inside"), average.in_place():
        assert not torch.equal(net[0].weight, weight)
        raise RuntimeError("inside")
    assert torch.equal(net[0].weight, weight)
    assert net[0].weight.data_ptr() == address


def test_statistics_of_batch_norm_are_averaged_and_counters_are_not():
    net = _net()
    average = WeightAverage(net, 0.5)
    for value in (0.0, 4.0):
        net[1].running_mean.fill_(value)
        net[1].num_batches_tracked.fill_(int(value))
        average.update()
    with average.in_place():
        assert net[1].running_mean.tolist() == pytest.approx([3.0] * 3)  # decay 3 / 12
        assert net[1].num_batches_tracked.item() == 4
    assert net[1].running_mean.tolist() == [4.0] * 3


def test_before_the_first_update_there_is_no_average():
    net = _net()
    before = net[0].weight.detach().clone()
    average = WeightAverage(net, 0.5)
    with average.in_place():
        assert torch.equal(net[0].weight, before)
        state = average.state_dict()
    assert state == {"updates": 0, "weights": {}}
    average.load_state_dict(state)
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    "damage",
    [
        {"updates": -1},
        {"updates": 0},
        {"weights": {}},
        {"weights": {"0.weight": torch.zeros(2)}},
        {"weights": None},
    ],
    ids=str,
)
def test_weights_of_another_model_are_refused(damage: dict):
    net = _net()
    average = WeightAverage(net, 0.5)
    _steps(net, average, 2)
    with average.in_place():
        state = average.state_dict()
    with pytest.raises(ValueError, match="expected"):
        WeightAverage(_net(), 0.5).load_state_dict({**state, **damage})


def test_the_average_is_validated_and_saved_and_the_weights_are_trained(
    demo_corpus: Path, tmp_path: Path
):
    plain = fit(tiny(demo_corpus, tmp_path / "plain"))
    averaged = fit(tiny(demo_corpus, tmp_path / "averaged", train={"ema": 0.8}))
    # The same training, seen through another set of weights.
    rows = [run.progress.history for run in (plain, averaged)]
    assert [row["train"] for row in rows[0]] == [row["train"] for row in rows[1]]
    assert [row["valid"] for row in rows[0]] != [row["valid"] for row in rows[1]]
    saved = load_file(checkpoint.find(tmp_path / "averaged") / "model.safetensors")
    trained = averaged.model.state_dict()
    own = plain.model.state_dict()
    assert all(torch.equal(trained[name], own[name]) for name in own)
    differ = [n for n in own if own[n].is_floating_point() and not torch.equal(saved[n], own[n])]
    assert len(differ) > len(own) / 2
    with averaged.average.in_place():
        speaking = averaged.model.state_dict()
        assert all(torch.equal(speaking[name], saved[name]) for name in own)


def test_what_is_pruned_is_0_in_the_average(demo_corpus: Path, tmp_path: Path):
    sections = {"train": {"ema": 0.8, "epochs": 1}, "sparsity": {"schedule": {0: 0.6}}}
    trainer = fit(tiny(demo_corpus, tmp_path / "run", **sections))
    saved = load_file(checkpoint.find(tmp_path / "run") / "model.safetensors")
    masks, block = trainer.sniper.masks(), trainer.sniper.block_size
    assert any(not mask.all() for mask in masks.values())
    for name, mask in masks.items():
        weight = saved[name].unsqueeze(2) if saved[name].dim() == 2 else saved[name]
        wide = mask.unsqueeze(1) if mask.dim() == 2 else mask
        wide = wide.repeat_interleave(block, 0).repeat_interleave(block, 2).permute(0, 2, 1)
        assert not weight[~wide].any()


def test_a_checkpoint_without_the_weights_is_damaged(demo_corpus: Path, tmp_path: Path):
    config = tiny(demo_corpus, tmp_path, train={"ema": 0.8, "epochs": 1})
    fit(config)
    path = checkpoint.find(tmp_path)
    state = torch.load(path / "state.pt", weights_only=True)
    state["average"]["weights"].popitem()
    meta = checkpoint.read_meta(path)
    checkpoint.save(tmp_path, 99, load_file(path / "model.safetensors"), state, meta, False)
    with pytest.raises(CheckpointError, match="average: expected weights of"):
        make_trainer(config).resume()
