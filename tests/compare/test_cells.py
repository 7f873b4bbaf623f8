# SPDX-License-Identifier: Apache-2.0
"""Figures as they are printed."""

from __future__ import annotations

import pytest

from sniper.compare import cells
from sniper.compare.rates import Judgement, Rate

STEADY = Judgement(spread=0.05, side_by_side=True)


def _cell(difference: float, low: float, high: float) -> dict:
    return {"difference": difference, "low": low, "high": high, "pairs": 2}


def test_numbers():
    assert cells.number(12345.678, 1) == "12\u202f345.7" and cells.number(None, 2) == "–"
    assert cells.number(-0.0001, 2) == "0.00" and cells.number(float("nan"), 2) == "–"
    assert cells.signed(-0.25, 1, 100) == "−25.0" and cells.signed(0.5, 2) == "+0.50"
    assert cells.signed(0.0004, 3) == cells.signed(-0.0004, 3) == "0.000"
    assert cells.percent(0.256) == "26\u00a0%" and cells.percent(0.256, 1) == "25.6\u00a0%"
    assert cells.mean_sd(0.5, float("nan"), 2) == "0.50"
    assert cells.mean_sd(0.5, 0.25, 0, 100) == "50 ± 25" and cells.mean_sd(None, None, 2) == "–"


def test_verdicts_need_the_whole_interval():
    assert cells.verdict(_cell(-1.5, -2.0, -1.0), 2) == "good"
    assert cells.verdict(_cell(1.5, 1.0, 2.0), 2) == "bad"
    assert cells.verdict(_cell(0.0, -1.0, 2.0), 2) == ""
    nan = float("nan")
    assert cells.verdict(_cell(nan, nan, nan), 2) == cells.verdict(_cell(0, None, None), 2) == ""


def test_what_is_printed_as_nothing_is_not_worse():
    almost = _cell(0.0004, 0.0002, 0.0006)
    assert cells.verdict(almost, 3) == "" and cells.verdict(almost, 4) == "bad"
    assert cells.verdict(_cell(0.008, 0.0003, 0.02), 3) == ""  # its interval is seen to begin at 0
    assert "bad" not in cells.difference(almost, 3) and "◦ 0.000" in cells.difference(almost, 3)
    assert cells.verdict(almost, 1, 100) == "" and cells.verdict(almost, 2, 100) == "bad"


def test_differences():
    assert cells.difference(_cell(-0.5, -0.75, -0.25), 2) == (
        '<span class="sub good">▼ −0.50 <i>[−0.75, −0.25]</i></span>'
    )
    assert cells.difference({**_cell(1, 1, 1), "pairs": 0}, 2) == ""


def test_early_losses():
    assert cells.early(None, None) == "–"
    assert cells.early(-0.5, 0.2) == '<span class="good">−0.500</span> ± 0.200'
    assert cells.early(0.5, 0.2) == '<span class="bad">+0.500</span> ± 0.200'
    assert cells.early(-0.1, 0.2) == "−0.100 ± 0.200"
    assert cells.early(-0.5, None) == "−0.500"  # of one seed, nobody knows


@pytest.mark.parametrize(
    ("spread", "together", "expected"),
    [(0.15, True, "1.50×"), (0.15, None, "1.50×†"), (0.15, False, "1.50×†")],
)
def test_ratios(spread, together, expected):
    assert cells.ratio(1.5, Judgement(spread, together)) == expected


@pytest.mark.parametrize("spread", [0.151, None])
def test_ratios_of_unsteady_rates_are_withheld(spread):
    assert "1.5" not in cells.ratio(1.5, Judgement(spread, True))
    cell = {"speedup": 1.5, "speedup_sd": None, "speedup_with_extra": 1.4, "reached": 2, "seeds": 2}
    said = cells.reached(cell, Judgement(spread, True))
    assert said.startswith("reached") and "1.4" not in said and "1.5" not in said


def test_times_to_loss():
    cell = {"speedup": 1.5, "speedup_sd": 0.2, "speedup_with_extra": 1.4, "reached": 2, "seeds": 2}
    more = '<span class="sub ">1.40×</span>'
    assert cells.reached(cell, STEADY) == f'<span class="good">1.50×</span> ± 0.20{more}'
    assert cells.reached({**cell, "speedup_sd": 0.6}, STEADY) == f"1.50× ± 0.60{more}"
    assert cells.reached({**cell, "speedup_sd": None}, STEADY) == f"1.50×{more}"
    slower = cells.reached({**cell, "speedup": 0.5}, STEADY)
    assert slower.startswith('<span class="bad">0.50×</span>')
    assert cells.reached({**cell, "speedup": None, "reached": 1}, STEADY) == "reached by 1 of 2"
    assert cells.reached({**cell, "speedup": None, "reached": 0}, STEADY) == "not reached"


def test_rates():
    assert cells.rate(Rate(900, 1000, 1100, 1000, 6)) == (
        '1\u202f000<span class="sub ">900 to 1\u202f100</span>'
    )
    assert "1 epoch: too few" in cells.rate(Rate(1000, 1000, 1000, 1000, 1))
