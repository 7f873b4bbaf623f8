# SPDX-License-Identifier: Apache-2.0
"""Where each token begins: MFA's TextGrids, or the alignments.jsonl of a synthetic corpus."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sniper.tts.errors import SpeechError, UtteranceError, require
from sniper.tts.text.text import PAUSE, SPOKEN_NOISE
from sniper.tts.text.words import is_english, word_key

# Of our own aligners: their settings, and beside them their TextGrids and those that were
# corrected by hand before others took their place.
ALIGN_SETTINGS, TEXTGRIDS, CORRECTED = "align.json", "TextGrid", "TextGrid.corrected"
PHONES = ("espeak", "characters")
_PAUSE_LABELS = {"", "sil", "sp", "<eps>", "silence"}
# Seconds between two intervals: less is an aligner's frame, and belongs to the phoneme before.
_GAP = 0.03


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


def phonemes_of(
    textgrids: Path | None, language: str | None = None, phones: str | None = None
) -> tuple[str | None, bool]:
    """The language that alignments have, and whether their phones are its characters; as
    `LexiconFrontend` takes them.

    Args:
        textgrids: their folder; None: they are no TextGrids.
        language, phones: what the user says of them, as to the aligner; None: nothing.

    Raises:
        SpeechError: the aligner's settings beside the folder are damaged, or say something else
            than the user does; other phones than there are.
    """
    if phones not in (None, *PHONES):
        raise SpeechError(f"phones: expected one of {', '.join(PHONES)}, got {phones!r}")
    if textgrids is None or (made := _settings_of(textgrids)) is None:
        # Phones of English that nobody names may have any notation, which is told by themselves.
        if phones is None and is_english(language or "en"):
            return None, False
        return language or "en-us", phones == "characters"
    path, way, *there = made
    for name, said, asked in zip(("language", "phones"), there, (language, phones), strict=True):
        if asked not in (None, said):
            raise SpeechError(
                f"--{name}: expected {said!r}, with which {path} says that these TextGrids were "
                f"made, got {asked!r}; leave it out"
            )
    # What it aligns in the other way is ARPAbet, which needs no language.
    return (there[0], there[1] == "characters") if way == "learned" else (None, False)


def _settings_of(textgrids: Path) -> tuple[Path, str, str, str] | None:
    """How our aligner made a folder of TextGrids: way, language and phones, and where it says so;
    None where it did not.
    """
    path = textgrids.resolve().parent / ALIGN_SETTINGS
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        way = there.get("align") if isinstance(there, dict) else None
        if way == "learned":
            return path, way, str(there["language"]), str(there["phones"])
        return (path, way, str(there["language"]), "espeak") if way == "english" else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise SpeechError(
            f"{path} cannot be read ({type(error).__name__}): it should say how these TextGrids "
            "were made; remove it, or align anew with --force"
        ) from error


def read_textgrid(path: Path) -> Alignment:
    """Read MFA's TextGrid: long, short, UTF-8 or UTF-16.

    Neighbouring pauses ("", sil, sp, and what no interval covers) become one PAUSE token; `spn` is
    kept as a token. A tier may carry its speaker's name ("LJSpeech - phones").

    Raises:
        UtteranceError: missing, unreadable, without a `phones` tier or without any phoneme.
    """
    if not path.is_file():
        raise UtteranceError(f"no such TextGrid: {path}")
    textgrid = require("praatio.textgrid")
    try:
        # Without reportingMode praatio prints remarks about last digits between the lines of the
        # progress bar. Empty intervals are the pauses: without them tokens would not cover the
        # recording.
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
    # A damaged file fails anywhere inside the parser, with any kind of exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        if "Expected field" in reason:  # it names none, and knows no exponents
            reason = "a field is missing, or a time is not written as 0.2 is (no 2e-1)"
        raise UtteranceError(f"{path} cannot be read as a TextGrid: {reason}") from error
    intervals = _tier(grid, "phones")
    # Told apart from a missing tier: an aligner that failed leaves an empty one, a wrong tool none.
    if intervals is None and _is_empty(grid, "phones"):
        raise UtteranceError(f"{path}: its phones tier is empty")
    if intervals is None:
        names = ", ".join(grid.tierNames) or "none"
        raise UtteranceError(f"{path} has no interval tier named phones (its tiers: {names})")
    phones, starts = [], []
    covering = _without_gaps(intervals, float(grid.maxTimestamp))
    for start, _, label in covering:
        phone = _token(label)
        if not (phone == PAUSE and phones and phones[-1] == PAUSE):
            phones.append(phone)
            starts.append(start)
    if set(phones) <= {PAUSE, SPOKEN_NOISE}:
        raise UtteranceError(f"{path} holds no known phoneme, only pauses or {SPOKEN_NOISE}")
    # From 0, wherever the first interval begins: the frames before it have to belong to some token.
    boundaries = np.array([0.0, *starts[1:], covering[-1][1]])
    if not np.isfinite(boundaries).all() or (np.diff(boundaries) < 0).any():
        raise UtteranceError(f"{path}: the times of its phones tier do not increase")
    words = _tier(grid, "words") or []
    return Alignment(tuple(phones), boundaries, _pronunciations(words, intervals))


def read_alignments(path: Path) -> tuple[dict[str, Alignment], list[tuple[str, str]]]:
    """Read alignments.jsonl: one object a line with id, phones, starts (samples), samples, rate.

    Returns:
        Alignments by id, and (where, reason) pairs for the lines that cannot be used.

    Raises:
        SpeechError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[str, Alignment] = {}
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            name, alignment = _alignment(line)
            if name in found:
                raise UtteranceError(f"the id {name} came before; only its first line is used")
            found[name] = alignment
        except UtteranceError as error:
            problems.append((f"{path.name}:{number}", str(error)))
    return found, problems


def _alignment(line: bytes) -> tuple[str, Alignment]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UtteranceError(f"not JSON: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(entry, dict):
        raise UtteranceError(f"expected an object, got {type(entry).__name__}")
    missing = {"id", "phones", "starts", "samples", "sample_rate"} - entry.keys()
    if missing:
        raise UtteranceError(f"it lacks {', '.join(sorted(missing))}")
    name, phones, rate = entry["id"], entry["phones"], entry["sample_rate"]
    check_id(name)
    if not isinstance(phones, list) or not phones or not all(isinstance(p, str) for p in phones):
        raise UtteranceError(f"{name}: expected a list of text for its phones, got {phones!r:.60}")
    starts = entry["starts"]
    times = [*starts, entry["samples"]] if isinstance(starts, list) else []
    if not all(_is_time(time) for time in (*times, rate)) or not rate:
        raise UtteranceError(f"{name}: expected numbers for starts, samples and sample_rate")
    if len(times) != len(phones) + 1:
        raise UtteranceError(f"{name}: {len(times) - 1} starts for {len(phones)} phones")
    seconds = np.array(times, dtype=np.float64)
    # Equal starts are taken: a phone that was swallowed has no length.
    if seconds[0] != 0 or (np.diff(seconds) < 0).any():
        raise UtteranceError(f"{name}: its starts do not rise from 0 to its samples")
    return name, Alignment(tuple(phones), seconds / rate)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15  # also refuses NaN


def check_id(name: object) -> None:
    """Refuse an id that cannot name the files of an utterance.

    Raises:
        UtteranceError: it is empty, no text, or a path that leaves the corpus.
    """
    if not isinstance(name, str) or not name:
        raise UtteranceError("the id is empty" if name == "" else f"the id {name!r:.60} is no text")
    if "\0" in name:
        raise UtteranceError(f"the id {name!r:.60} holds a NUL, as no name of a file can")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UtteranceError(f"the id {name!r} is a path that leaves the corpus")


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


def _without_gaps(
    intervals: list[tuple[float, float, str]], end: float
) -> list[tuple[float, float, str]]:
    """The intervals with a pause wherever there is none from 0 to `end`: some programs leave
    silences out, which would lengthen the phoneme before.
    """
    covering, last = [], 0.0
    for interval in (*intervals, (end, end, None)):
        start, until, label = interval
        if start - last > _GAP:
            covering.append((last, start, ""))
        if label is not None:
            covering.append(interval)
        last = until
    return covering


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
        # A word that the aligner did not know is written as spn, which is no way to say it.
        if word.lower() in _PAUSE_LABELS or word.startswith("<") or SPOKEN_NOISE in clean:
            continue
        if clean:
            found.append((word_key(word), " ".join(clean)))
    return tuple(found)
