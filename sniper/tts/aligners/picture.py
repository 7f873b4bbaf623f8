# SPDX-License-Identifier: Apache-2.0
"""Ten utterances of an alignment to look at: their mels, with the borders of the phones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sniper.tts import audio as analysis
from sniper.tts.aligners.folder import Folder, Outcome
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.alignment import read_textgrid
from sniper.tts.corpus.store import atomic_write
from sniper.tts.errors import UtteranceError
from sniper.tts.text.text import PAUSE

PICTURE = "alignment.png"
_UTTERANCES = 10
_SECONDS = 6.0  # of each: more could not be read
# Heights of the names above the mel, which ends at 1: neighbours take turns, or the names of short
# phones would lie on each other.
_NAMES = (1.04, 1.15)
_TOP = 1.28


def chosen(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Ten utterances from the most to the least likely, evenly by rank."""
    ranked = sorted(outcomes, key=lambda outcome: (-outcome.likelihood, outcome.id))
    count = min(_UTTERANCES, len(ranked))
    places = np.linspace(0, len(ranked) - 1, count).round().astype(int)
    return [ranked[place] for place in places]


def draw(path: Path, wavs: dict[str, Path], folder: Folder, outcomes: Sequence[Outcome]) -> None:
    """Write the picture as PNG.

    Args:
        wavs: recordings by id.
        outcomes: at least one, of utterances with a TextGrid.
    """
    # Not pyplot, which looks for a screen and keeps every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = FeatureConfig()
    shown = chosen(outcomes)
    figure = Figure(figsize=(14, 1.9 * len(shown) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    # All to one scale, and no wider than the longest: a corpus of single words would be slivers.
    width = min(_SECONDS, max(outcome.seconds for outcome in shown))
    for axis, outcome in zip(axes, shown, strict=True):
        title = f"{outcome.id}   log-likelihood per frame {outcome.likelihood:.2f}"
        axis.set_title(title, fontsize=8, loc="left", parse_math=False)
        try:
            samples = analysis.read_audio(wavs[outcome.id], config)
            alignment = read_textgrid(folder.textgrid(outcome.id))
        except UtteranceError as error:  # changed since it was aligned
            where = {"transform": axis.transAxes, "ha": "center"}
            axis.text(0.5, 0.5, str(error), fontsize=7, parse_math=False, **where)
            continue
        # The beginning is enough to see whether borders lie where sounds change.
        samples = samples[: int(_SECONDS * config.sample_rate)]
        mel = analysis.log_mel(analysis.spectrum(samples, config), config)
        seconds = len(samples) / config.sample_rate
        extent = (0.0, seconds, 0.0, 1.0)
        axis.imshow(
            mel.T, origin="lower", aspect="auto", extent=extent, cmap="Greys", vmin=-5, vmax=1
        )
        borders = alignment.boundaries
        for number, (phone, start, end) in enumerate(
            zip(alignment.phones, borders, borders[1:], strict=False)
        ):
            if start < seconds:
                axis.axvline(start, ymax=1 / _TOP, color="tab:red", linewidth=0.6)
                label = "" if phone == PAUSE else phone
                middle, height = (start + min(end, seconds)) / 2, _NAMES[number % 2]
                style = {"ha": "center", "fontsize": 6, "color": "tab:blue"}
                axis.text(middle, height, label, parse_math=False, **style)
        axis.set_xlim(0, width)
        axis.set_ylim(0, _TOP)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    axes[-1].set_xlabel("seconds", fontsize=7)
    with atomic_write(path) as file, warnings.catch_warnings():
        # Of each letter that its font lacks: the borders can be seen without.
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support")
        figure.savefig(file, format="png", dpi=110)
