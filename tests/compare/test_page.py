# SPDX-License-Identifier: Apache-2.0
"""The report: nothing missing, nothing fetched, figures that a busy machine made up withheld."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import soundfile
from comparing import Compared, arm, run

from sniper.compare.page import stages, warnings, write_page

RESULTS = Path(__file__).parents[2] / "bench/results"


class Read(HTMLParser):
    """Tags that are left open, addresses, and texts of the tables' cells."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        self.scripts += tag == "script"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def content(address: str) -> bytes:
    return base64.b64decode(address.partition("base64,")[2])


def test_what_the_report_says(compared: Compared):
    text = (compared.out / "report" / "report.html").read_text(encoding="utf-8")
    assert "<h1>A &lt;small&gt; matrix</h1>" in text
    assert "python -m sniper.compare --config" in text and "SNIPER 60→0 %" in text
    assert text.count("diverged: the loss or its gradient is not finite") == 2
    page = Read(text)
    assert page.open == [] and page.scripts == 0
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http://" not in text and "https://" not in text


def test_its_pictures_and_sound(compared: Compared):
    page = Read((compared.out / "report" / "report.html").read_text(encoding="utf-8"))
    kinds = [address.partition(";")[0] for address in page.addresses]
    # Loss by epoch and seconds, sparsity, speed, one panel: the broken arm has no curve.
    assert kinds.count("data:image/svg+xml") == 5
    for address in page.addresses:
        if address.startswith("data:image/svg+xml"):
            svg = content(address).decode()
            assert svg.rstrip().endswith("</svg>") and "<image" not in svg
    # Three sentences: recording, truth, two arms that did not diverge.
    sounds = [content(a) for a in page.addresses if a.startswith("data:audio/mpeg")]
    assert len(sounds) == 12
    for sound in sounds:
        audio, rate = soundfile.read(io.BytesIO(sound))
        assert 0.5 < len(audio) / rate < 30


def test_masks_are_drawn(compared: Compared):
    text = (compared.out / "report" / "report.html").read_text(encoding="utf-8")
    pattern = r'<img src="(data:image/png[^"]+)" alt="[^"]*: (\d+)\s% of the blocks"'
    found = re.findall(pattern, text)
    assert found
    for address, share in found:
        pixels = matplotlib.image.imread(io.BytesIO(content(address)))
        there = pixels[..., 3] > 0
        active = there & (pixels[..., 0] < 0.5)
        assert round(100 * active.sum() / there.sum()) == int(share)


@pytest.mark.parametrize("name", ["compare-demo", "compare-demo-ablation"])
def test_results_of_earlier_versions(name: str, tmp_path: Path):
    data = json.loads((RESULTS / name / "results.json").read_text(encoding="utf-8"))
    text = write_page(data, [], tmp_path).read_text(encoding="utf-8")
    page = Read(text)
    assert page.open == [] and "Listen" not in text and "nan" not in text.lower().split()
    for each in data["arms"]:
        assert any(row and row[0].startswith(each["label"]) for row in page.rows)
    loss = data["arms"][1]["final_loss"]["mean"]
    assert any(len(row) > 1 and row[1].startswith(f"{loss:.3f}") for row in page.rows)
    # None of them knows when its runs ran.
    assert "not known to have run beside dense: all other arms" in text
    withheld = {row[0] for row in page.rows if "withheld" in " ".join(row)}
    unsteady = {
        "blocks of 64",
        "blocks of 32",
        "initial values restored",
        "sparse for 40 % of the run",
    }
    unsteady |= {"one threshold, cap of 90 %", "postnet pruned too"}
    # One seed, whose first stages last an epoch each: too few to tell a rate from.
    short = {"SNIPER 20→0 %", "SNIPER 40→0 %"}
    assert withheld - {""} == (unsteady if "ablation" in name else short)


def _data(*arms: dict[str, Any]) -> dict[str, Any]:
    return {"arms": list(arms), "reference": "dense", "machines": [{"cpu": "x"}], "seeds": [0]}


def test_a_busy_machine_is_told_and_its_ratios_are_withheld():
    """Rates of 710 to 2,271 frames/s once gave "3.14 times as fast"."""
    dense = arm("dense", run([710, 900, 1500, 2271, 2200, 2000], spans=[[0, 60]]))
    sparse = arm("sparse", run([3000, 3010, 2990, 3000, 3000, 3000], spans=[[0, 60]]))
    for one in (dense, sparse):
        (stage,) = stages(one, dense)
        assert "withheld" in stage["ratio"] and "×" not in stage["ratio"]
    (said,) = warnings(_data(dense, sparse))
    assert "varied by more than 15\N{NO-BREAK SPACE}% (dense: " in said and "sparse" not in said


def test_what_did_not_run_side_by_side_is_marked():
    dense = arm("dense", run([1000] * 6, spans=[[0, 60]]))
    later = arm("later", run([2000] * 6, spans=[[70, 130]]))
    beside = arm("beside", run([2000] * 6, spans=[[5, 62]]))
    ratios = [str(stages(one, dense)[0]["ratio"]) for one in (dense, later, beside)]
    assert ratios == ["1.00×", "2.00×†", "2.00×"]
    assert warnings(_data(dense, later, beside)) == [
        "† did not run while dense ran: later. Ratios of their times hold as far as the machine "
        "was equally busy throughout."
    ]


def test_warnings():
    dense = arm("dense", run([1000] * 3), run([], seed=1, status="not begun"))
    data = _data(dense)
    assert warnings(data) == ["dense, seed 1, is not finished (not begun)"]
    data["machines"].append({"cpu": "y"})
    assert "different machines" in warnings(data)[-1]
