# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks run, and refuse to time what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent


def test_microbenchmarks_run(tmp_path):
    """One of a kind, each once and untimed."""
    chosen = "(test_pass or test_layer) and 256-256-5 and 0.2 or relu_dropout or element_masks"
    options = ("-q", "--benchmark-disable", "-p", "no:cacheprovider", "-k", chosen)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "bench"), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # Three passes by two providers and three that F.linear cannot do; a module, two elementwise
    # passes and the masks by two providers each.
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^14 passed, 3 skipped, \d+ deselected", done.stdout, re.M), done.stdout


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, p: F.dropout(F.relu(x), 1.05 * p), "relu_dropout kept: relative error"),
        (lambda x, p: F.relu(x) / (1 - p), "dropped 0.0000, expected 0.2"),
        (lambda x, p: F.dropout(F.leaky_relu(x), p), "relu_dropout fwd: relative error"),
    ],
)
def test_what_fails_its_reference_is_not_timed(monkeypatch, wrong, words):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import bench_elementwise

    monkeypatch.setitem(bench_elementwise.OPS["relu_dropout"], "ours", wrong)
    with pytest.raises(SystemExit, match=words):
        bench_elementwise.measure("relu_dropout", torch.device("cpu"), repeats=1)
