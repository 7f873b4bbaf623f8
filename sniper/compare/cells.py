# SPDX-License-Identifier: Apache-2.0
"""Figures as a table's cells show them. What is coloured as better or worse can be seen to be so in
the digits that are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from sniper.compare.rates import Judgement, Rate

NOTHING = "–"
_MARKS = {"good": "▼", "bad": "▲", "": "◦"}


def _shown(value: float | None, write: Callable[[float], str]) -> str:
    return NOTHING if value is None or value != value else write(value)


def number(value: float | None, digits: int = 0, scale: float = 1) -> str:
    """With thin spaces between thousands; a dash for nothing."""

    def write(value: float) -> str:
        text = f"{value * scale:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        # A rounded "-0.0" would claim a sign that the digits do not show.
        return text.lstrip("-") if float(f"{value * scale:.{digits}f}") == 0 else text

    return _shown(value, write)


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def signed(value: float | None, digits: int, scale: float = 1) -> str:
    """With its sign, a true minus; none for what rounds to 0."""

    def write(value: float) -> str:
        text = f"{value * scale:+.{digits}f}"
        return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")

    return _shown(value, write)


def mean_sd(mean: float | None, sd: float | None, digits: int, scale: float = 1) -> str:
    """`mean ± sd`, the second where there is one."""
    spread = number(sd, digits, scale)
    return number(mean, digits, scale) + ("" if spread == NOTHING else f" ± {spread}")


def colored(kind: str, text: object) -> Markup:
    """`text` as `good`, `bad`, or neither."""
    return Markup('<span class="{}">{}</span>').format(kind, text) if kind else Markup.escape(text)


def small(text: object, kind: str = "") -> Markup:
    """`text` in small print on a line of its own."""
    return Markup('<span class="sub {}">{}</span>').format(kind, text)


def verdict(cell: dict[str, Any], digits: int, scale: float = 1) -> str:
    """`good` when the whole interval of the difference is below 0, `bad` when above, as printed."""
    low, high = cell["low"], cell["high"]
    if low is None or high is None:
        return ""
    # Judged after rounding, so that no row is coloured for a difference that its digits do not
    # show.
    if round(high * scale, digits) < 0:
        return "good"
    return "bad" if round(low * scale, digits) > 0 else ""


def difference(cell: dict[str, Any], digits: int, scale: float = 1) -> Markup:
    """A paired difference to the reference and its interval; empty where there is none."""
    if not cell["pairs"] or cell["difference"] is None:
        return Markup("")
    kind = verdict(cell, digits, scale)
    mean, low, high = (signed(cell[key], digits, scale) for key in ("difference", "low", "high"))
    return small(Markup("{} {} <i>[{}, {}]</i>").format(_MARKS[kind], mean, low, high), kind)


def early(mean: float | None, sd: float | None) -> Markup | str:
    """A difference of early losses; it is good or bad where it is more than the seeds' spread."""
    if mean is None:
        return NOTHING
    # With one seed there is no spread to be beyond, and no colour.
    clear = sd is not None and abs(mean) > sd and round(mean, 3) != 0
    spread = "" if sd is None else f" ± {sd:.3f}"
    return colored(("good" if mean < 0 else "bad") if clear else "", signed(mean, 3)) + spread


def ratio(value: float, judgement: Judgement) -> Markup:
    """`value` times as fast as the reference; withheld where the rates were not steady, marked
    where the two were not measured side by side.
    """
    if not judgement.steady:
        return Markup('<span class="soft">withheld</span>')
    return Markup("{:.2f}×{}").format(value, "" if judgement.side_by_side else "†")


def reached(cell: dict[str, Any], judgement: Judgement) -> Markup | str:
    """A time to loss: the ratio to the reference, or how many seeds got there."""
    if cell["speedup"] is None:
        got, seeds = cell["reached"], cell["seeds"]
        return f"reached by {got} of {seeds}" if got else "not reached"
    if not judgement.steady:
        return Markup("reached{}").format(small("ratio withheld"))
    text = ratio(cell["speedup"], judgement)
    if cell["speedup_sd"] is not None and abs(cell["speedup"] - 1) > cell["speedup_sd"]:
        text = colored("good" if cell["speedup"] > 1 else "bad", text)
    spread = "" if cell["speedup_sd"] is None else f" ± {cell['speedup_sd']:.2f}"
    return text + spread + small(f"{cell['speedup_with_extra']:.2f}×")


def rate(found: Rate) -> Markup:
    """Frames per second with their percentiles over epochs."""
    if found.spread is None:
        few = f"{found.epochs} epoch{'s' if found.epochs > 1 else ''}: too few"
        return Markup("{}{}").format(number(found.p50), small(few))
    return Markup("{}{}").format(
        number(found.p50), small(f"{number(found.p20)} to {number(found.p80)}")
    )


def plain(value: float) -> str:
    """A limit as somebody wrote it."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def interval(cell: dict[str, Any], unit: str) -> Markup | str:
    """A measured value with its interval; a ratio without a sign."""
    if cell["value"] is None:
        return NOTHING
    write = (lambda v: number(v, 2)) if unit == "×" else (lambda v: signed(v, 1))
    text = f"{write(cell['value'])} {unit}"
    if cell["low"] is None:
        return text
    return Markup("{}{}").format(text, small(f"[{write(cell['low'])}, {write(cell['high'])}]"))
