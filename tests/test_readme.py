# SPDX-License-Identifier: Apache-2.0
"""The README is short, and its Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_at_most_120_lines_with_the_picture_near_the_top():
    lines = README.splitlines()
    assert len(lines) <= 120
    picture = "bench/results/compare-demo/loss.png"
    assert any(picture in line for line in lines[:10]) and (ROOT / picture).is_file()


def test_readme_says_what_is_not_measured():
    assert re.search(r"\*\*Not measured: .*GPU", README)


def test_the_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    assert names["snip"].sparsity == 0.0
    # What it learns by heart is noise of variance 1.
    assert names["loss_fn"](names["model"], names["batches"][0]) < 0.9
