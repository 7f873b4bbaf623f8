# SPDX-License-Identifier: Apache-2.0
"""An alignment as MFA writes it: a TextGrid with the tiers `words` and `phones`, silences empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sniper.tts.corpus.store import atomic_write


@dataclass(frozen=True)
class Interval:
    """A labelled piece of time.

    Args:
        start, end: seconds.
        label: a word or a phone; "" is silence.
    """

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class TimedText:
    """Words and phones of one utterance in time.

    Args:
        words, phones: one after the other without gaps, from 0 to the end of the audio.
        likelihood: log-likelihood per frame of speech, in nats; 0 is the best.
        frames: of the spoken phones, at the aligner's own rate.
    """

    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]
    likelihood: float
    frames: int


def timed_text(
    spoken: Sequence[tuple[str, Sequence[tuple[str, float, float]]]],
    seconds: float,
    likelihood: float,
    frames: int,
) -> TimedText:
    """Fill what lies between the words with silence.

    Args:
        spoken: (word, its phones as (label, start, end)) in order, times in seconds; words without
            phones are silences and are left out.
        seconds: length of the audio.
    """
    words: list[Interval] = []
    phones: list[Interval] = []
    time = 0.0
    for word, inside in spoken:
        if not inside:
            continue
        # An aligner's frames may end behind the audio, and a TextGrid allows no overlap.
        start, end = max(time, inside[0][1]), min(inside[-1][2], seconds)
        if start > time:
            words.append(Interval(time, start, ""))
            phones.append(Interval(time, start, ""))
        words.append(Interval(start, end, word))
        ends = [*(begin for _, begin, _ in inside[1:]), end]
        for (label, _, _), until in zip(inside, ends, strict=True):
            phones.append(Interval(start, until, label))
            start = until
        time = end
    if time < seconds:
        words.append(Interval(time, seconds, ""))
        phones.append(Interval(time, seconds, ""))
    return TimedText(tuple(words), tuple(phones), likelihood, frames)


def write_textgrid(path: Path, text: TimedText) -> None:
    """Write a TextGrid in Praat's long text format, complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    seconds = text.phones[-1].end
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_time(seconds)}",
        "tiers? <exists>",
        "size = 2",
        "item []:",
    ]
    for number, (name, intervals) in enumerate((("words", text.words), ("phones", text.phones)), 1):
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {_time(seconds)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for index, interval in enumerate(intervals, 1):
            # Praat doubles a quotation mark.
            label = interval.label.replace('"', '""')
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {_time(interval.start)}",
                f"            xmax = {_time(interval.end)}",
                f'            text = "{label}"',
            ]
    # An id may lie in folders of its own.
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write("\n".join([*lines, ""]).encode())


def _time(seconds: float) -> str:
    # Micro-seconds: finer than a sample, and the same text for the same time everywhere.
    return f"{seconds:.6f}".rstrip("0").rstrip(".") or "0"
