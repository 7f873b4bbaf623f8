# SPDX-License-Identifier: Apache-2.0
"""Where each token begins: MFA's TextGrids, or the alignments.jsonl of a synthetic corpus."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.errors import UtteranceError, require
from sniper.tts.text.text import PAUSE, SPOKEN_NOISE
from sniper.tts.text.words import word_key

_PAUSE_LABELS = {"", "sil", "sp", "<eps>", "silence"}


@dataclass(frozen=True)
class Alignment:
    """Tokens in time.

    Args:
        phones: tokens, pauses included.
        boundaries: `[L + 1]` seconds, from 0 to the end of the audio.
        pronunciations: (word, phonemes separated by spaces) pairs, where words were aligned too.
    """

    phones: tuple[str, ...]
    boundaries: np.ndarray
    pronunciations: tuple[tuple[str, str], ...] = ()


def read_textgrid(path: Path) -> Alignment:
    """Read MFA's TextGrid: long, short, UTF-8 or UTF-16.

    Neighbouring pauses ("", sil, sp) become one PAUSE token; `spn` is kept as a token. A tier may
    carry its speaker's name ("LJSpeech - phones").

    Raises:
        UtteranceError: missing, unreadable, without a `phones` tier or without any phoneme.
    """
    if not path.is_file():
        raise UtteranceError(f"no such TextGrid: {path}")
    textgrid = require("praatio.textgrid")
    try:
        # Its remarks about last digits would go between the lines of the progress bar.
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
    # A damaged file fails anywhere inside the parser, with any kind of exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UtteranceError(f"{path} cannot be read as a TextGrid: {reason}") from error
    intervals = _tier(grid, "phones")
    if intervals is None and _is_empty(grid, "phones"):
        raise UtteranceError(f"{path}: its phones tier is empty")
    if intervals is None:
        names = ", ".join(grid.tierNames) or "none"
        raise UtteranceError(f"{path} has no interval tier named phones (its tiers: {names})")
    phones, starts = [], []
    for start, _, label in intervals:
        phone = _token(label)
        if not (phone == PAUSE and phones and phones[-1] == PAUSE):
            phones.append(phone)
            starts.append(start)
    if set(phones) <= {PAUSE, SPOKEN_NOISE}:
        raise UtteranceError(f"{path} holds no known phoneme, only pauses or {SPOKEN_NOISE}")
    boundaries = np.array([0.0, *starts[1:], intervals[-1][1]])
    if not np.isfinite(boundaries).all() or (np.diff(boundaries) < 0).any():
        raise UtteranceError(f"{path}: the times of its phones tier do not increase")
    words = _tier(grid, "words") or []
    return Alignment(tuple(phones), boundaries, _pronunciations(words, intervals))


def read_alignments(path: Path) -> dict[str, Alignment]:
    """Read alignments.jsonl: one object a line with id, phones, starts (samples), samples, rate.

    Returns:
        Alignments by id; a line that cannot be used is left out (its utterance then has none).
    """
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            times = np.array([*entry["starts"], entry["samples"]], dtype=np.float64)
            phones = tuple(str(phone) for phone in entry["phones"])
            rising = times[0] == 0 and (np.diff(times) >= 0).all()
            if phones and len(phones) + 1 == len(times) and rising:
                found[entry["id"]] = Alignment(phones, times / entry["sample_rate"])
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return found


def _token(label: str) -> str:
    """The token for an aligner's label: some write SIL and SPN in capitals."""
    if label.lower() in _PAUSE_LABELS:
        return PAUSE
    return SPOKEN_NOISE if label.lower() == SPOKEN_NOISE else label


def _is_empty(grid, name: str) -> bool:
    return any(
        tier.lower().split(" ")[-1] == name and not grid.getTier(tier).entries
        for tier in grid.tierNames
    )


def _tier(grid, name: str) -> list[tuple[float, float, str]] | None:
    """Intervals of the tier called `name`, or whose last word is `name`."""
    for tier_name in grid.tierNames:
        if tier_name.lower().split(" ")[-1] == name:
            entries = grid.getTier(tier_name).entries
            if entries and len(entries[0]) == 3:
                return [(float(e[0]), float(e[1]), e[2].strip()) for e in entries]
    return None


def _pronunciations(
    words: list[tuple[float, float, str]], phones: list[tuple[float, float, str]]
) -> tuple[tuple[str, str], ...]:
    """Pair each word with the phonemes whose middle lies in it."""
    found = []
    index = 0
    for start, end, word in words:
        inside = []
        while index < len(phones) and (phones[index][0] + phones[index][1]) / 2 < end:
            if (phones[index][0] + phones[index][1]) / 2 >= start:
                inside.append(_token(phones[index][2]))
            index += 1
        clean = [phone for phone in inside if phone != PAUSE]
        if word.lower() in _PAUSE_LABELS or word.startswith("<") or SPOKEN_NOISE in clean:
            continue
        if clean:
            found.append((word_key(word), " ".join(clean)))
    return tuple(found)
