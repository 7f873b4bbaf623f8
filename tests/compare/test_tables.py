# SPDX-License-Identifier: Apache-2.0
"""CSV and JSON for other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from comparing import Compared

from sniper.compare.results import collect
from sniper.compare.tables import write_tables
from sniper.tts.corpus.dataset import FeatureDataset


def test_tables(compared: Compared, demo_corpus: Path, tmp_path: Path):
    valid = FeatureDataset(demo_corpus / "valid.safetensors")
    collected = collect(compared.matrix, compared.runs, "the command", valid)
    write_tables(collected, compared.runs, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(r["arm"], r["seed"]) for r in rows[:4]] == [
        ("block", "0"),
        ("dense", "0"),
        ("broken", "0"),
        ("block", "1"),
    ]
    assert rows[2]["status"] == "diverged" and rows[2]["epochs"] == "0" and not rows[2]["mcd_final"]
    metrics = collected["arms"][1]["metrics"]["final"]
    for name in ("loss", "mcd", "voicing_error"):
        mean = np.mean([float(rows[i][f"{name}_final"]) for i in (1, 4)])
        assert mean == pytest.approx(metrics[name]["mean"], rel=1e-4)
    epochs = list(csv.DictReader((tmp_path / "epochs.csv").open()))
    assert len(epochs) == 12 and epochs[0]["epoch"] == "1"
    assert float(epochs[0]["valid_mel_before"]) > 0 and float(epochs[0]["seconds"]) > 0
    strict = (tmp_path / "results.json").read_text()
    assert json.loads(strict)["command"] == "the command" and "NaN" not in strict
