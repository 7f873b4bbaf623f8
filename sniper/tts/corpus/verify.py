# SPDX-License-Identifier: Apache-2.0
"""Whether prepared data can be what a preparation wrote: looked at once, when they are opened.

A wrong offset or token would otherwise end in the middle of an epoch, or train on the wrong frames.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sniper.tts.corpus.features import Prosody, Statistics
from sniper.tts.errors import SpeechError
from sniper.tts.text.text import Frontend, Vocabulary

REMEDY = "prepare the corpus again: python -m sniper.prepare with --force"


def damaged(path: Path, what: str) -> SpeechError:
    """That a file of a prepared corpus cannot be used, why, and what to do."""
    return SpeechError(f"{path} is damaged ({what}); {REMEDY}")


def check_info(
    vocabulary: Vocabulary, n_mels: int, statistics: Statistics, frontend: Frontend, speech: str
) -> None:
    """Look at what a corpus says about itself.

    Raises:
        ValueError: it cannot be that of any speech.
    """
    for name, value in vars(statistics).items():
        if name.startswith("mel"):
            good = isinstance(value, np.ndarray) and value.shape == (n_mels,)
            good = good and bool(np.isfinite(value).all())
        else:
            good = type(value) in (int, float) and math.isfinite(value)
        if not good or (name.endswith("std") and not np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name} cannot be {value!r:.60}")
    if not all(isinstance(text, str) for text in (*vocabulary.symbols, speech)):
        raise ValueError("expected text for the vocabulary and what speech it is")
    lexicon = getattr(frontend, "lexicon", {})
    if not all(isinstance(text, str) for text in (*lexicon, *lexicon.values())):
        raise ValueError("expected text for the words of the lexicon and their phonemes")
    language, characters = getattr(frontend, "language", None), getattr(frontend, "characters", 0)
    if not isinstance(language, str | None) or characters not in (False, True):
        raise ValueError(f"expected a language, got {language!r:.60} and {characters!r:.60}")


def check_speakers(speakers: dict[str, Prosody]) -> None:
    """Look at pitch and energy of each speaker.

    Raises:
        ValueError: they cannot be those of anybody.
    """
    for name, prosody in speakers.items():
        for key, value in vars(prosody).items():
            good = type(value) in (int, float) and math.isfinite(value)
            if not good or (key.endswith("std") and not value > 0):
                raise ValueError(f"{key} of {name} cannot be {value!r:.60}")


def check_voices(metadata: dict[str, Any], utterances: int, speakers: int) -> list[int] | None:
    """Who speaks each utterance of a split, by number; None in a corpus without speakers.

    Raises:
        ValueError: other numbers than the corpus has speakers, or not one an utterance.
    """
    try:
        found = json.loads(metadata.get("speakers", "null"))
    except (TypeError, ValueError, RecursionError):
        found = metadata.get("speakers")
    if found is None and not speakers:
        return None
    if isinstance(found, list) and len(found) == utterances:
        if all(type(n) is int and 0 <= n < speakers for n in found):
            return found
    raise ValueError(
        f"expected a speaker from 0 to {speakers - 1} for each of {utterances} utterances, "
        f"got {found!r:.60}"
    )


def check_split(
    tensors: dict[str, np.ndarray], metadata: dict[str, Any], vocabulary: Vocabulary, n_mels: int
) -> tuple[list[str], list[str]]:
    """Look at one split's tensors (`store` has their layout), all but the values of the mel, which
    the checksum covers.

    Returns:
        Ids and texts of its utterances.

    Raises:
        ValueError: they do not fit each other, or the corpus' vocabulary and settings.
    """
    ids, texts = (_names(metadata, name) for name in ("ids", "texts"))
    if len(ids) != len(texts):
        raise ValueError(f"{len(ids)} ids and {len(texts)} texts")
    mel = _tensor(tensors, "mel", np.float32, (None, n_mels))
    offsets = {"mel": len(mel)}
    tokens = _tensor(tensors, "tokens", np.int32, (None,))
    durations = _tensor(tensors, "durations", np.int32, (len(tokens),))
    for name in ("pitch", "energy"):
        # NaN is allowed: a token without frames has no value, and a whisper no pitch.
        values = _tensor(tensors, name, np.float32, (len(tokens),))
        if np.isinf(values).any():
            raise ValueError(f"{name} is infinite")
    offsets["token"] = len(tokens)
    starts = {}
    for name, total in offsets.items():
        starts[name] = _tensor(tensors, f"{name}_offsets", np.int64, (len(ids) + 1,))
        if starts[name][0] != 0 or starts[name][-1] != total or (np.diff(starts[name]) < 1).any():
            raise ValueError(f"{name}_offsets do not rise from 0 to {total}")
    # 0 is padding, and the last one ends a sentence: neither is ever spoken.
    if len(tokens) and not 1 <= tokens.min() <= tokens.max() < vocabulary.eos:
        raise ValueError(
            f"tokens: expected 1 to {vocabulary.eos - 1}, got {tokens.min()} to {tokens.max()}"
        )
    # min() of an empty array raises an error of its own.
    if len(tokens) and durations.min() < 0:
        raise ValueError(f"durations: expected 0 frames or more, got {durations.min()}")
    sums = np.concatenate([[0], np.cumsum(durations, dtype=np.int64)])[starts["token"]]
    wrong = np.flatnonzero(np.diff(sums) != np.diff(starts["mel"]))
    if len(wrong):
        raise ValueError(f"the durations of {ids[wrong[0]]} do not add up to its frames")
    return ids, texts


def _names(metadata: dict[str, Any], name: str) -> list[str]:
    try:
        found = json.loads(metadata[name])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"it has no list of {name}") from None
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise ValueError(f"expected text for the {name}, got {found!r:.60}")
    return found


def _tensor(
    tensors: dict[str, np.ndarray], name: str, dtype: type, shape: tuple[int | None, ...]
) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    found = tensors[name]
    fits = found.ndim == len(shape) and all(
        want is None or want == size for want, size in zip(shape, found.shape, strict=True)
    )
    if found.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} [{wanted}], got {found.dtype} {list(found.shape)}"
        )
    return found
