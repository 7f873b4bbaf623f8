# SPDX-License-Identifier: Apache-2.0
"""How many words a recogniser gets wrong: a listener that costs nothing and never tires.

It is pocketsphinx with the model of English that its package brings. That model was made for other
text, so that recordings of people have errors too: figures say something beside those of recordings
and of copy synthesis, and of the same sentences.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.errors import require
from sniper.tts.text.frontends import EspeakFrontend
from sniper.tts.text.normalize import normalize_english

RATE = 16_000


def why_not(info: CorpusInfo) -> str | None:
    """Why there is no word error rate for a corpus, in words; None: there is one."""
    if importlib.util.find_spec("pocketsphinx") is None:
        return "pocketsphinx is not installed (pip install 'sniper-tts[align]')"
    voice = info.frontend.voice if isinstance(info.frontend, EspeakFrontend) else None
    english = "AH0" in info.vocabulary if voice is None else voice.startswith("en")
    return None if english else "the recogniser's model is of English, and this corpus is not"


def words_of(text: str) -> list[str]:
    """The words of a sentence as a recogniser writes them: lower case, numbers spelled out."""
    plain = normalize_english(text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.findall(r"[a-z]+(?:'[a-z]+)*", plain)


def word_errors(spoken: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of words to replace, insert or delete that turns one into the other.

    Source: Levenshtein (1966).
    """
    row = list(range(len(heard) + 1))
    for i, word in enumerate(spoken, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            best = min(row[j] + 1, row[j - 1] + 1, before + (word != other))
            before, row[j] = row[j], best
    return row[-1]


@functools.cache
def _decoder() -> Any:
    sphinx = require("pocketsphinx")
    # An utterance is normalised by itself.
    return sphinx.Decoder(sphinx.Config(cmn="batch", loglevel="FATAL"))


def heard(audio: np.ndarray, features: FeatureConfig) -> list[str]:
    """What the recogniser hears.

    Args:
        audio: `[n]` in [-1, 1] at the features' rate.
    """
    samples = require("soxr").resample(audio.astype(np.float32), features.sample_rate, RATE)
    data = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    decoder = _decoder()
    decoder.reinit_feat()  # what was heard before must not matter
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    # The dictionary numbers the pronunciations of a word.
    return [] if found is None else re.sub(r"\(\d+\)", "", found.hypstr).lower().split()
