# SPDX-License-Identifier: Apache-2.0
"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def sections() -> dict[str, list[str]]:
    """Python blocks by the `##` heading above them."""
    parts = re.split(r"^## (.+)$", README, flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {
        title: re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) for title, text in pairs
    }
    return {title: blocks for title, blocks in found.items() if blocks}


def execute(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each block of a section leaves behind; one goes on where the block before ended."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)  # faster at this size
    names: dict[str, Any] = {"__name__": "readme"}
    left = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of Lightning and others about workers and loggers
        for block in sections()[title]:
            exec(compile(block, f"README.md, {title}", "exec"), names)
            left.append(dict(names))
    return left


def test_all_sections_with_python_have_a_test():
    assert set(sections()) == {
        "In your own training loop",
        "In other people's models and trainers",
    }


def test_in_your_own_training_loop(tmp_path, monkeypatch):
    (after,) = execute("In your own training loop", tmp_path, monkeypatch)
    assert after["snip"].sparsity == 0.0
    assert after["loss_fn"](after["model"], after["batches"][0]) < 1.0


def test_in_other_peoples_models_and_trainers(tmp_path, monkeypatch, capsys):
    title = "In other people's models and trainers"
    model, huggingface, lightning, digits = execute(title, tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert re.search(r"modules with \d\d\.\d% of [\d,]+ parameters and \d\d\.\d% of the FLOPs", out)
    assert "dropouts draw from a counter" in out
    for trainer, callbacks in (
        (huggingface["trainer"], huggingface["trainer"].callback_handler.callbacks),
        (lightning["trainer"], lightning["trainer"].callbacks),
    ):
        (callback,) = [c for c in callbacks if type(c).__name__ == "SniperCallback"]
        assert callback.sniper.sparsity == 0.0, trainer
    lines = [line for line in out.splitlines() if "held-out digits" in line]
    assert [line.split("sparsity ")[1].split(",")[0] for line in lines[::5]] == [
        "80%",
        "40%",
        "20%",
        "10%",
        "0%",
    ]
    assert digits["accuracy"] > 0.95
