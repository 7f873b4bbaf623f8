# SPDX-License-Identifier: Apache-2.0
"""The report's charts."""

from __future__ import annotations

import base64
from pathlib import Path

import matplotlib.image
import numpy as np
from comparing import Compared, arm, run
from matplotlib import pyplot

from sniper.compare.figures import (
    COLORS,
    charts,
    line_style,
    mean_curve,
    picture,
    plot_loss,
    write_loss,
)
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


def test_charts_show_what_there_is(compared: Compared, demo_corpus: Path, tmp_path: Path):
    valid = FeatureDataset(demo_corpus / "valid.safetensors")
    data = collect(compared.matrix, compared.runs, "x", valid)
    assert matplotlib.image.imread(write_loss(data, tmp_path))[..., :3].std() > 0.03
    found = charts(data)
    # The reference needs no panel, and the arm that diverged has nothing to show.
    assert list(found) == ["epoch", "seconds", "sparsity", "frames_per_second", "panel-0"]
    assert found == charts(data)  # the same each time
    for address in found.values():
        svg = base64.b64decode(address.partition("base64,")[2]).decode()
        assert COLORS[0] in svg and COLORS[1] in svg and COLORS[2] not in svg


def test_an_unsteady_clock_is_told_on_its_axis():
    figure, axis = pyplot.subplots()
    steady = {"arms": [arm("a", run([100] * 5))], "reference": "a", "seeds": [0]}
    plot_loss(axis, steady, "seconds")
    assert axis.get_xlabel() == "seconds of training"
    unsteady = {**steady, "arms": [arm("a", run([100, 140, 100, 140, 120]))]}
    plot_loss(axis, unsteady, "seconds")
    assert axis.get_xlabel() == "seconds of training (not steady: rates varied by up to 33 %)"
    plot_loss(axis, unsteady, "epoch")
    assert axis.get_xlabel() == "epoch"
    pyplot.close(figure)
