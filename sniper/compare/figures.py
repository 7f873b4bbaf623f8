# SPDX-License-Identifier: Apache-2.0
"""The report's charts as SVG, and loss.png for READMEs and slides.

They are pictures, not a program: every curve that a reader may want apart from the others has a
panel of its own, and the page has the numbers in tables. A page with Plotly in it is 4.8 MB
before its first curve, needs a second drawing of everything for the PNGs, and prints badly.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sniper.compare import files, rates

# Told apart by people who do not see all colours: Okabe and Ito's, a little darker.
COLORS = ("#1b1d21", "#4aa8e0", "#0067a5", "#d99100", "#c84b00", "#bd5c92", "#00875f", "#7b5ea7")
COLORS += ("#7a7f87", "#8a7a00")
_MASK = "#2b6ea3"
_X = {"epoch": "epoch", "seconds": "seconds of training"}
_STEPS = {"sparsity": "sparsity", "frames_per_second": "frames per second"}


@contextmanager
def _pyplot(size: float, **style: Any) -> Iterator[Any]:
    """pyplot without a screen, in the report's style; `size` is of the letters, in points."""
    import matplotlib

    # The default would look for a display, and a server has none.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    look: dict[Any, Any] = {
        "font.size": size,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **style,
    }
    with pyplot.rc_context(look):
        yield pyplot


def write_loss(data: dict[str, Any], folder: Path) -> Path:
    """Writes loss.png, the validation loss by epoch and by seconds, and returns its path."""
    with _pyplot(10) as pyplot:
        figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.4), layout="constrained", sharey=True)
        for axis, x in zip(axes, _X, strict=True):
            plot_loss(axis, data, x)
        axes[1].set_ylabel("")
        # The legend lies beside the charts, where it hides no curve.
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120, format="png")
        pyplot.close(figure)
    files.write_bytes(folder / "loss.png", picture.getvalue())
    return folder / "loss.png"


def charts(data: dict[str, Any]) -> dict[str, str]:
    """The page's charts as addresses for `img`: `epoch` and `seconds` (loss by each), `sparsity`,
    `frames_per_second`, and `panel-0`, ... (loss by seconds of each arm against the reference).
    """
    found: dict[str, str] = {}
    # Text stays text for the browser to set, and ids are the same each time, so that equal data
    # give equal files.
    with _pyplot(11, **{"svg.fonttype": "none", "svg.hashsalt": "sniper"}) as pyplot:

        def draw(name: str, size: tuple[float, float], plot: Callable[[Any], None]) -> None:
            figure, axis = pyplot.subplots(figsize=size, layout="constrained")
            plot(axis)
            text = io.StringIO()
            # Without the date, so that equal results give an equal page.
            figure.savefig(text, format="svg", metadata={"Date": None})
            pyplot.close(figure)
            found[name] = data_uri("image/svg+xml", text.getvalue().encode())

        for x in _X:
            draw(x, (5.2, 3.6), lambda axis, x=x: plot_loss(axis, data, x, bands=True))
        for y in _STEPS:
            draw(y, (5.2, 3.0), lambda axis, y=y: plot_steps(axis, data, y))
        for index, arm in enumerate(data["arms"]):
            if arm["name"] != data["reference"] and any(run["loss"] for run in arm["runs"]):
                draw(f"panel-{index}", (3.4, 2.4), lambda axis, i=index: _panel(axis, data, i))
    return found


def data_uri(kind: str, content: bytes) -> str:
    """`content` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def mean_curve(runs: list[dict[str, Any]], x: str, y: str) -> np.ndarray:
    """Mean over seeds of x and y, lowest and highest y: `[E, 4]`, as far as every seed went that
    has anything.
    """
    there = [run for run in runs if run[y]]
    # Past the shortest seed a mean would be over fewer runs, and jump where one ends.
    length = min((len(run[y]) for run in there), default=0)
    xs, ys = (np.array([run[k][:length] for run in there], dtype=float) for k in (x, y))
    if not length:
        return np.zeros((0, 4))
    return np.stack([xs.mean(0), ys.mean(0), ys.min(0), ys.max(0)], axis=1)


def line_style(arm: dict[str, Any], index: int) -> str:
    """Solid; dashed where the sparsity is constant; dotted once the colours begin anew."""
    if len(arm["stages"]) == 1 and arm["stages"][0]["sparsity"] > 0:
        return "dashed"
    return "solid" if index < len(COLORS) else "dotted"


def _line_properties(data: dict[str, Any], index: int) -> dict[str, Any]:
    arm = data["arms"][index]
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": line_style(arm, index),
        "linewidth": 2.4 if arm["name"] == data["reference"] else 1.6,
        "label": arm["label"],
    }


def plot_loss(
    axis: Any,
    data: dict[str, Any],
    x: str,
    only: list[int] | None = None,
    bands: bool = False,
) -> None:
    """Validation loss by `epoch` or `seconds`.

    Args:
        only: indices of the arms; None: all.
        bands: shade from the lowest seed to the highest.
    """
    drawn = False
    for index in range(len(data["arms"])) if only is None else only:
        curve = mean_curve(data["arms"][index]["runs"], x, "loss")
        drawn |= len(curve) > 0
        look = _line_properties(data, index)
        axis.plot(curve[:, 0], curve[:, 1], **look)
        if bands and len(data["seeds"]) > 1:
            area = {"color": look["color"], "alpha": 0.13, "linewidth": 0}
            axis.fill_between(curve[:, 0], curve[:, 2], curve[:, 3], **area)
    # An empty axis has no place for ticks that are logarithms.
    axis.set(xlabel=_X[x], ylabel="validation loss", yscale="log" if drawn else "linear")
    if x == "seconds" and (unsteady := _unsteady(data)):
        axis.set_xlabel(f"{_X[x]} (not steady: {unsteady})")
    axis.grid(alpha=0.3)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    if x == "epoch":
        axis.xaxis.get_major_locator().set_params(integer=True)


def _unsteady(data: dict[str, Any]) -> str:
    """How far the rates varied, where that was too much."""
    judged = [rates.judge(arm, arm) for arm in data["arms"]]
    worst = max((each.spread for each in judged if each.spread is not None), default=0.0)
    return f"rates varied by up to {100 * worst:.0f} %" if worst > rates.LIMIT else ""


def _panel(axis: Any, data: dict[str, Any], index: int) -> None:
    """One arm against the reference by seconds, on the axes that all panels share: without the
    reference's first third, in which all curves are steep.
    """
    names = [arm["name"] for arm in data["arms"]]
    reference = names.index(data["reference"])
    plot_loss(axis, data, "seconds", [reference, index], bands=True)
    axis.set(xlabel="", ylabel="", yscale="linear")
    curves = [mean_curve(arm["runs"], "seconds", "loss") for arm in data["arms"]]
    if len(curves[reference]) > 2:
        late = curves[reference][len(curves[reference]) // 3 :]
        # The same limits in every panel, or the eye would compare curves of different scales.
        axis.set_ylim(0.95 * min(c[:, 2].min() for c in curves if len(c)), 1.05 * late[:, 3].max())
        axis.set_xlim(0, 1.03 * max(c[-1, 0] for c in curves if len(c)))


def plot_steps(axis: Any, data: dict[str, Any], y: str) -> None:
    """`sparsity` or `frames_per_second` by epoch; a value holds for its whole epoch."""
    for index, arm in enumerate(data["arms"]):
        curve = mean_curve(arm["runs"], "epoch", y)
        if len(curve):
            axis.stairs(
                curve[:, 1], [0, *curve[:, 0]], baseline=None, **_line_properties(data, index)
            )
    axis.set(xlabel="epoch", ylabel=_STEPS[y])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    if y == "sparsity":
        axis.set_ylim(-0.02, 1)


def picture(blocks: list[int], bits: str) -> np.ndarray:
    """A mask as an image: out blocks down, in blocks across, a gap between two taps.

    Args:
        blocks: out blocks, taps, in blocks.
        bits: hexadecimal, the first block in the lowest bit.

    Returns:
        `[out, taps * (in + 1) - 1]`: 1 active, 0 pruned, NaN between.
    """
    out, taps, width = blocks
    flat = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), bitorder="little")
    # Bits come in whole bytes, so the last few may stand for nothing.
    mask = flat[: out * taps * width].reshape(out, taps, width).astype(np.float64)
    gap = np.full((out, taps, 1), np.nan)
    return np.concatenate([mask, gap], axis=2).reshape(out, -1)[:, :-1]


def mask_image(blocks: list[int], bits: str) -> tuple[str, int]:
    """A mask as an address for `img`, one pixel a block, and how many pixels it is wide."""
    from matplotlib import colors, image

    pixels = picture(blocks, bits)
    shades = np.array([colors.to_rgba(c) for c in ("#e4e7eb", _MASK)])
    rgba = shades[np.nan_to_num(pixels).astype(int)]
    # Transparent, so that the gap has the page's colour.
    rgba[np.isnan(pixels)] = 0.0
    file = io.BytesIO()
    image.imsave(file, rgba, format="png")
    return data_uri("image/png", file.getvalue()), pixels.shape[1]
