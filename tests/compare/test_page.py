# SPDX-License-Identifier: Apache-2.0
"""The report in a browser: nothing missing, nothing fetched, readable on a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from comparing import Compared

from sniper.compare import page

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; SNIPER_CHROMIUM names another than the first that is found."""
    names = (os.environ.get("SNIPER_CHROMIUM"), *BROWSERS)
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        message = "no Chromium is installed: apt-get install chromium, or set SNIPER_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=FLAGS)


@pytest.fixture
def opened(browser: Any, compared: Compared, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report's page in a window of some width; complaints are collected in `page.said`."""
    width, height = getattr(request, "param", (1280, 900))
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.said = []
    tab.on("console", lambda m: tab.said.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    asked = []
    tab.on("request", lambda r: None if r.url.startswith("data:") else asked.append(r.url))
    address = (compared.out / "report" / "report.html").as_uri()
    tab.goto(address, wait_until="load")
    tab.wait_for_selector("#by-epoch polyline")
    yield tab
    assert tab.said == []
    assert asked == [address]
    tab.close()


@pytest.mark.parametrize("opened", [(1280, 900), (390, 844)], indirect=True)
def test_it_fits_its_window_and_plays(opened: Any):
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
    assert opened.evaluate(wide) == []
    # Text in the charts is as large on a phone as on a desk.
    small = (
        "[...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(opened.evaluate(small)) >= 12
    ready = "[...document.querySelectorAll('audio')].every(a => a.readyState > 0 || a.error)"
    opened.wait_for_function(ready)
    lengths = opened.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    # Three sentences: recording, truth, two arms that did not diverge.
    assert len(lengths) == 12 and all(0.5 < seconds < 30 for seconds in lengths)
    played = opened.evaluate(
        """async () => { const a = document.querySelector('audio'); a.muted = true; await a.play();
        await new Promise(r => a.ontimeupdate = () => a.currentTime > 0 && r()); return true; }"""
    )
    assert played


def test_charts_answer(opened: Any):
    count = "document.querySelectorAll('#by-seconds polyline').length"
    assert opened.evaluate(count) == 2  # the broken arm has no epoch
    opened.click(".legend button[data-arm=block]")
    assert opened.evaluate(count) == 1
    pressed = "[...document.querySelectorAll('[data-arm=block]')].map(b => b.ariaPressed)"
    assert opened.evaluate(pressed) == ["false", "false"]
    opened.click(".legend button[data-arm=block]")
    opened.click("#late")
    assert opened.evaluate(count) == 2
    opened.hover("#by-epoch svg")
    tip = opened.inner_text("#by-epoch .tip")
    assert tip.startswith("epoch ") and re.search(r"\d\.\d{3}\s*dense|dense\s*\d\.\d{3}", tip), tip


def test_masks_are_drawn(opened: Any, compared: Compared):
    drawn = opened.evaluate(
        "[...document.querySelectorAll('[data-mask] svg')].map(s => s.getAttribute('aria-label'))"
    )
    shown = opened.evaluate("[...document.querySelectorAll('[data-mask]')].map(f => f.innerText)")
    assert len(drawn) == len(shown) > 0
    for label, caption in zip(drawn, shown, strict=True):
        on, of = map(int, re.match(r"(\d+) of (\d+) blocks", label).groups())
        assert f"{round(100 * on / of)} % of the blocks" in caption


def test_what_the_report_says(compared: Compared):
    text = (compared.out / "report" / "report.html").read_text(encoding="utf-8")
    assert "<h1>A &lt;small&gt; matrix</h1>" in text
    assert "python -m sniper.compare --config" in text and "SNIPER 60→0 %" in text
    assert text.count("diverged: the loss or its gradient is not finite") == 2
    assert "http://" not in re.sub(r"http://www\.w3\.org/2000/svg", "", text)
    assert "https://" not in text and text.count("</script>") == 2


def test_numbers():
    assert page.number(12345.678, 1) == "12\u202f345.7" and page.number(None, 2) == "–"
    assert page.number(-0.0001, 2) == "0.00" and page.number(float("nan"), 2) == "–"
    assert page.signed(-0.25, 1, percent=True) == "−25.0" and page.signed(0.5, 2) == "+0.50"
    assert page.mean_sd({"mean": 0.5, "sd": float("nan")}, 2) == "0.50"
    assert page.mean_sd({"mean": 0.5, "sd": 0.25}, 0, percent=True) == "50 ± 25"
    assert page.mean_sd({"mean": None, "sd": None}, 2) == "–"


def test_verdicts_need_the_whole_interval():
    assert page.verdict({"low": -2.0, "high": -1.0}) == "good"
    assert page.verdict({"low": 1.0, "high": 2.0}) == "bad"
    assert page.verdict({"low": -1.0, "high": 2.0}) == ""
    assert page.verdict({"low": float("nan"), "high": float("nan")}) == ""


def test_times_to_loss():
    cell = {"speedup": 1.5, "speedup_sd": None, "speedup_with_extra": 1.4, "reached": 2, "seeds": 2}
    expected = '<span class="good">1.50×</span><span class="sub">1.40×</span>'
    assert page.reached(cell, False) == expected
    assert page.reached({**cell, "speedup": None, "reached": 1}, False) == "reached by 1 of 2"
    assert page.reached({**cell, "speedup": None, "reached": 0}, False) == "not reached"
    assert page.reached(cell, True) == "1×" and page.reached(None, False) == "–"
    assert page.early(None, None) == "–"
    assert page.early(-0.5, 0.2) == '<span class="good">−0.500</span> ± 0.200'
    assert 'class=""' in page.early(-0.1, 0.2)


def test_warnings():
    run = {"seed": 0, "status": "trained", "message": ""}
    arms = [{"label": "A", "runs": [run, {**run, "seed": 1, "status": "not begun"}]}]
    data = {"arms": arms, "machines": [{"cpu": "x"}]}
    assert page.warnings(data) == ["A, seed 1, is not finished (not begun)"]
    data["machines"].append({"cpu": "y"})
    assert "different machines" in page.warnings(data)[-1]
