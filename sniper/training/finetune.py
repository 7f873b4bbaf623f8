# SPDX-License-Identifier: Apache-2.0
"""A trained model as the beginning of another: rows of tokens and speakers are found by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sniper.training.checkpoint import Checkpoint, damaged, section
from sniper.training.restore import read_speech
from sniper.training.settings import ConfigError
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.corpus.features import Statistics
from sniper.tts.model.fastspeech2 import FastSpeech2

_SAME = 0.02  # less than this, in deviations or as a ratio, nobody hears
_TOKENS, _SPEAKERS = "token_embed.weight", "speaker_embed.weight"


def initialise(model: FastSpeech2, info: CorpusInfo, saved: Checkpoint) -> list[str]:
    """Puts the weights of another run into a fresh model as far as they fit.

    Args:
        model: with new weights; what the other run does not have keeps them.
        info: of the corpus that it will learn from.
        saved: of the other run.

    Returns:
        Lines for the user: whose statistics count, what starts fresh, and what is left behind.

    Raises:
        ConfigError: mels of other settings, or a model of another width.
        CheckpointError: it does not say what speech it is of.
    """
    try:
        there = read_speech(section(saved, "speech"))
    except ValueError as error:
        raise damaged(saved.path, "meta.json", str(error)) from None
    before, now = there.features.to_json(), info.features.to_json()
    others = {k: f"{k} {before[k]} there, {now[k]} here" for k in now if before[k] != now[k]}
    search = [others.pop(k) for k in list(others) if k.startswith("f0_")]  # not the sound
    if others:
        options = " ".join(f"--{k.replace('_', '-')} {before[k]}" for k in others)
        raise ConfigError(
            f"init: {saved.path} was trained on other mels: {'; '.join(others.values())}; prepare "
            f"the corpus with {options}"
        )
    own, fresh = model.state_dict(), []
    wide, width = saved.weights[_TOKENS].shape[1], own[_TOKENS].shape[1]
    if wide != width:
        raise ConfigError(f"init: {saved.path} has d_model {wide}, this model {width}")
    lines = _statistics_lines(there.statistics, info.statistics)
    if search:
        lines.append(f"pitch was searched for elsewhere ({'; '.join(search)}): taken as it is")
    names = {
        _TOKENS: ("tokens", there.vocabulary.symbols, info.vocabulary.symbols),
        _SPEAKERS: ("speakers", list(there.speakers), list(info.speakers)),
    }
    for name, value in own.items():
        other = saved.weights.get(name)
        if other is not None and name in names and other.shape[1:] == value.shape[1:]:
            what, theirs, ours = names[name]
            lines += _move_rows(value, other, what, theirs, ours)
        elif other is not None and other.shape == value.shape:
            # state_dict shares the model's memory, so this fills the model; what does not fit keeps
            # its new values.
            value.copy_(other)
        else:
            fresh.append(name)
    model.load_state_dict(own)
    # Told to the user, who may not have meant to leave a part out by an override.
    left = sorted(set(saved.weights) - set(own))
    for what, which in (("start fresh", fresh), ("are left behind", left)):
        if which:
            lines.append(f"weights that {what}: {_some(which)}")
    return lines


def _statistics_lines(there: Statistics, here: Statistics) -> list[str]:
    """How the corpora differ in what the model's input and output are normalised by.

    The weights are not bent to the old statistics: normalised by its own, another voice or
    microphone looks to the model like the one that it knows.
    """
    shift = (here.mel_mean - there.mel_mean) / there.mel_std
    scale = here.mel_std / there.mel_std
    hz = [math.exp(s.pitch_mean) for s in (there, here)]
    energy = here.energy_mean / there.energy_mean
    found = []
    if np.abs(shift).max() > _SAME or np.abs(np.log(scale)).max() > _SAME:
        found.append(
            f"the mel's mean lies {np.median(shift):+.2f} deviations from there in the median of "
            f"its bins (at most {shift[np.abs(shift).argmax()]:+.2f}), its deviation is "
            f"{np.median(scale):.2f} times that"
        )
    if abs(math.log(hz[1] / hz[0])) > _SAME:
        found.append(f"the mean pitch is {hz[0]:.0f} Hz there, {hz[1]:.0f} Hz here")
    if abs(energy - 1) > _SAME:
        found.append(f"the mean energy is {energy:.2f} times that there")
    if not found:
        return []
    return [f"{'; '.join(found)}: everything is normalised by the statistics of this corpus"]


@torch.no_grad()
def _move_rows(
    value: Tensor, other: Tensor, what: str, theirs: Sequence[str], ours: Sequence[str]
) -> list[str]:
    """Rows of an embedding by name."""
    place = {name: i for i, name in enumerate(theirs)}
    for i, name in enumerate(ours):
        if name in place:
            value[i] = other[place[name]]
    new = [name for name in ours if name not in place]
    gone = [name for name in theirs if name not in set(ours)]
    return [
        f"{what} that {how}: {_some(which)}"
        for how, which in (("start fresh", new), ("are left behind", gone))
        if which
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more
