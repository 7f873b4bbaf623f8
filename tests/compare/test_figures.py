# SPDX-License-Identifier: Apache-2.0
"""Pictures for READMEs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
from comparing import Compared

from sniper.compare.figures import COLORS, line_style, mean_curve, picture, write_figures
from sniper.compare.results import collect
from sniper.tts.corpus.dataset import FeatureDataset


def test_a_mask_as_an_image():
    nan = np.nan
    # Out block 0: taps (1 0), (0 1); out block 1: (1 1), (0 0).
    expected = [[1, 0, nan, 0, 1], [1, 1, nan, 0, 0]]
    np.testing.assert_array_equal(picture([2, 2, 2], "39"), expected)


def test_means_as_far_as_all_seeds_went():
    runs = [{"epoch": [1, 2], "loss": [4.0, 2.0]}, {"epoch": [1], "loss": [2.0]}]
    nothing = {"epoch": [], "loss": []}
    assert mean_curve([*runs, nothing], "epoch", "loss").tolist() == [[1.0, 3.0, 2.0, 4.0]]
    assert mean_curve([nothing], "epoch", "loss").shape == mean_curve([], "epoch", "loss").shape
    assert mean_curve([nothing], "epoch", "loss").shape == (0, 4)


def test_no_two_arms_look_alike():
    arm = {"stages": [{"sparsity": 0.8}, {"sparsity": 0.0}]}
    looks = {(i % len(COLORS), line_style(arm, i)) for i in range(2 * len(COLORS))}
    assert len(looks) == 2 * len(COLORS)
    assert line_style({"stages": [{"sparsity": 0.8}]}, 0) == "dashed"
    assert line_style({"stages": [{"sparsity": 0.0}]}, 0) == "solid"


def test_pictures(compared: Compared, demo_corpus: Path, tmp_path: Path):
    valid = FeatureDataset(demo_corpus / "valid.safetensors")
    written = write_figures(collect(compared.matrix, compared.runs, "x", valid), tmp_path)
    assert [path.name for path in written] == ["loss.png", "speed.png", "masks.png"]
    assert all(matplotlib.image.imread(path)[..., :3].std() > 0.03 for path in written)
    without = load_only_dense(compared, valid)
    assert [p.name for p in write_figures(without, tmp_path)] == ["loss.png", "speed.png"]


def load_only_dense(compared: Compared, valid: FeatureDataset) -> dict:
    """The same without the arm that has blocks."""
    from sniper.compare.arms import load_matrix

    matrix = load_matrix(str(compared.file), arms=["dense"])
    runs = [run for run in compared.runs if run.arm.name == "dense"]
    return collect(matrix, runs, "x", valid)
