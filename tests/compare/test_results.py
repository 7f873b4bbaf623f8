# SPDX-License-Identifier: Apache-2.0
"""What the runs left behind, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import Compared

from sniper.compare.results import _machines, collect, mean_sd
from sniper.training import checkpoint
from sniper.tts.corpus.dataset import FeatureDataset


@pytest.fixture(scope="module")
def collected(compared: Compared, demo_corpus: Path) -> dict[str, Any]:
    valid = FeatureDataset(demo_corpus / "valid.safetensors")
    return collect(compared.matrix, compared.runs, "the command", valid)


def _history(compared: Compared, arm: str, seed: int) -> list[dict]:
    found = checkpoint.find(compared.run(arm, seed).folder)
    return checkpoint.read_meta(found)["progress"]["history"]


def test_arms_and_their_curves(compared: Compared, collected: dict[str, Any]):
    assert [arm["name"] for arm in collected["arms"]] == ["block", "dense", "broken"]
    assert (collected["epochs"], collected["seeds"], collected["sentences"]) == ("3", [0, 1], 3)
    assert len(collected["spoken"]) == 3 and collected["spoken"][0]["text"]
    block = collected["arms"][0]
    for run, seed in zip(block["runs"], (0, 1), strict=True):
        history = _history(compared, "block", seed)
        assert run["status"] == "trained" and run["sparsity"] == [0.6, 0.3, 0.0]
        assert run["loss"] == pytest.approx([row["valid"]["total"] for row in history], abs=1e-4)
        assert run["seconds"][-1] == pytest.approx(sum(r["seconds"] for r in history), abs=0.01)
        assert set(run["terms"]) == set(history[0]["valid"]) - {"total"}
    losses = [_history(compared, "block", seed)[-1]["valid"]["total"] for seed in (0, 1)]
    assert block["final_loss"]["mean"] == pytest.approx(np.mean(losses))
    assert block["final_loss"]["sd"] == pytest.approx(np.std(losses, ddof=1))
    assert [stage["sparsity"] for stage in block["stages"]] == [0.6, 0.3, 0.0]
    assert all(stage["frames_per_second"] > 0 for stage in block["stages"])
    assert block["accounts"]["scoring"] > 0 and block["accounts"]["changes"] > 0


def test_differences_to_the_reference(collected: dict[str, Any]):
    block, dense, _ = collected["arms"]
    for which in ("final", "best"):
        loss = block["metrics"][which]["loss"]
        expected = loss["mean"] - dense["metrics"][which]["loss"]["mean"]
        assert loss["difference"] == pytest.approx(expected)
        assert loss["low"] <= loss["difference"] <= loss["high"] and loss["pairs"] == 2
        assert dense["metrics"][which]["loss"]["pairs"] == 0
    assert [t["speedup"] for t in dense["time_to_loss"]] == [1.0] * 4
    assert dense["early"] == [] and len(block["early"]) == 3
    for reached in block["time_to_loss"]:
        full = reached["reached"] == reached["seeds"] == 2
        assert (reached["speedup"] is not None) == full and len(reached["by_seed"]) == 2


def test_an_arm_that_diverged_has_no_figures(collected: dict[str, Any]):
    broken = collected["arms"][2]
    assert {run["status"] for run in broken["runs"]} == {"diverged"}
    assert broken["stages"] == broken["time_to_loss"] == [] and broken["layers"] == {}
    assert broken["final_loss"]["mean"] is None
    assert np.isnan(broken["metrics"]["final"]["mcd"]["mean"])


def test_layers_to_draw(compared: Compared, collected: dict[str, Any], demo_corpus: Path):
    layers = collected["arms"][0]["layers"]
    densities = [sum(layers[name]["density"].values()) for name in collected["drawn"]]
    assert len(densities) == 4 and densities == sorted(densities)
    largest = max(np.prod(layer["blocks"]) for layer in layers.values())
    assert all(4 * np.prod(layers[name]["blocks"]) >= largest for name in collected["drawn"])


def test_machines_that_differ(collected: dict[str, Any]):
    (machine,) = collected["machines"]
    assert machine["threads"] == 1 and machine["date"]
    one = {"cpu": "x", "commit": "a", "date": "d"}
    changes = ({}, {"commit": "b", "losses": "GPU"}, {"cpu": "y"}, {"losses": "CPU"})
    runs = [{"machine": {**one, **change}} for change in changes]
    assert _machines({"arm": [*runs, {"machine": None}]}) == [
        {"cpu": "x", "commit": "a, b", "date": "d", "losses": "GPU, CPU"},
        {"cpu": "y", "commit": "a", "date": "d"},
    ]


def test_mean_sd():
    assert mean_sd([]) == (None, None)
    assert mean_sd([2.0]) == (2.0, None)
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
