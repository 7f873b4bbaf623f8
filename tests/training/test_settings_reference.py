# SPDX-License-Identifier: Apache-2.0
"""The settings reference says what the code does, about every setting."""

from __future__ import annotations

from pathlib import Path

from sniper.training.config import Config
from sniper.training.reference import render
from sniper.training.validation import section

DOCS = Path(__file__).parents[2] / "docs/settings.md"


def test_the_page_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == render(), (
        "python -m sniper.training.reference > docs/settings.md"
    )


def test_every_setting_has_its_row_and_says_what_it_means():
    text = render()
    for name, field in Config.model_fields.items():
        model = section(field)
        if model is None:
            continue
        page = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
        said = {row[0].strip("| `"): row[3].strip(" |") for row in rows}
        assert set(model.model_fields) <= set(said)
        assert all(said.values()), [key for key, value in said.items() if not value]


def test_limits_and_defaults_are_those_of_the_code():
    rows = {line.split("`")[1]: line for line in render().splitlines() if line.startswith("| `")}
    assert "| number ≥ 0, ≤ 1, or null | `0.1` |" in rows["spread"]
    assert "| `auto`, `on`, `off` | `auto` |" in rows["cuda_graphs"]
    assert "| whole number ≥ 1, ≤ 1024, or null | `null` |" in rows["threads"]
    assert "`{layers: 5, kernel_size: 5, stop_gradient: true}`" in rows["pitch_predictor"]
    assert "Kernel size (odd) and dropout" in rows["pitch_embed_dropout"]
