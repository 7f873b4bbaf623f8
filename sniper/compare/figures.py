# SPDX-License-Identifier: Apache-2.0
"""PNGs of the report's charts, for READMEs and slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# Told apart by people who do not see all colours: Okabe and Ito's, a little darker.
COLORS = ("#1b1d21", "#4aa8e0", "#0067a5", "#d99100", "#c84b00", "#bd5c92", "#00875f", "#7b5ea7")
COLORS += ("#7a7f87", "#8a7a00")


def write_figures(data: dict[str, Any], folder: Path) -> list[Path]:
    """Writes loss.png, speed.png and, where blocks are pruned, masks.png; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        for name, draw in (("loss", _loss), ("speed", _speed), ("masks", _masks)):
            figure = draw(data, pyplot)
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(folder / f"{name}.png", dpi=120)
                pyplot.close(figure)
                written.append(folder / f"{name}.png")
    return written


def mean_curve(runs: list[dict[str, Any]], x: str, y: str) -> np.ndarray:
    """Means over seeds `[E, 2]`, as far as every seed went that has anything."""
    there = [run for run in runs if run[y]]
    length = min((len(run[y]) for run in there), default=0)
    pairs = [[np.mean([run[k][i] for run in there]) for k in (x, y)] for i in range(length)]
    return np.array(pairs).reshape(-1, 2)


def line_style(arm: dict[str, Any], index: int) -> str:
    """Solid; dashed where the sparsity is constant; dotted once the colours begin anew."""
    if len(arm["stages"]) == 1 and arm["stages"][0]["sparsity"] > 0:
        return "dashed"
    return "solid" if index < len(COLORS) else "dotted"


def _look(data: dict[str, Any], index: int) -> dict[str, Any]:
    arm = data["arms"][index]
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": line_style(arm, index),
        "linewidth": 2.4 if arm["name"] == data["reference"] else 1.6,
        "label": arm["label"],
    }


def _loss(data: dict[str, Any], pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.4), layout="constrained", sharey=True)
    for axis, x, label in zip(
        axes, ("epoch", "seconds"), ("epoch", "seconds of training"), strict=True
    ):
        for index, arm in enumerate(data["arms"]):
            curve = mean_curve(arm["runs"], x, "loss")
            axis.plot(curve[:, 0], curve[:, 1], **_look(data, index))
        axis.set(xlabel=label, yscale="log")
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel("validation loss")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes[0])
    return figure


def _speed(data: dict[str, Any], pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 3.8), layout="constrained")
    for axis, key, label in zip(
        axes, ("sparsity", "frames_per_second"), ("sparsity", "frames per second"), strict=True
    ):
        for index, arm in enumerate(data["arms"]):
            curve = mean_curve(arm["runs"], "epoch", key)
            if len(curve):
                edges = [0, *curve[:, 0]]
                axis.stairs(curve[:, 1], edges, baseline=None, **_look(data, index))
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-0.02, 1)
    _legend(figure, axes[0])
    return figure


def _legend(figure: Any, axis: Any) -> None:
    """Beside the charts, where it hides no curve."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)


def _masks(data: dict[str, Any], pyplot: Any) -> Any:
    """The last arm that has blocks: a row a layer, a column a stage."""
    arms = [a for a in data["arms"] if any(n in a["layers"] for n in data["drawn"])]
    if not arms or not data["drawn"]:
        return None
    layers = {n: arms[-1]["layers"][n] for n in data["drawn"] if n in arms[-1]["layers"]}
    layers = {n: layer for n, layer in layers.items() if "masks" in layer}
    if not layers:
        return None
    stages = [s for s in next(iter(layers.values()))["density"] if float(s) > 0]
    size = (3.6 * len(stages), 1.5 * len(layers) + 0.4)
    figure, axes = pyplot.subplots(
        len(layers), len(stages), figsize=size, layout="constrained", squeeze=False
    )
    for row, (name, layer) in zip(axes, layers.items(), strict=True):
        for axis, stage in zip(row, stages, strict=True):
            axis.imshow(picture(layer["blocks"], layer["masks"][stage]), cmap="Blues", vmax=1.3)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{float(stage):.0%}: {layer['density'][stage]:.0%} active", fontsize=8)
        row[0].set_ylabel(name.replace(".", "\n"), fontsize=6, rotation=0, ha="right", va="center")
    figure.suptitle(arms[-1]["label"], fontsize=10)
    return figure


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
    mask = flat[: out * taps * width].reshape(out, taps, width).astype(np.float64)
    gap = np.full((out, taps, 1), np.nan)
    return np.concatenate([mask, gap], axis=2).reshape(out, -1)[:, :-1]
