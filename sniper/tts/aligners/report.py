# SPDX-License-Identifier: Apache-2.0
"""How well a corpus is aligned: what is suspicious, how long phones are, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.aligners.folder import Outcome
from sniper.tts.corpus.store import atomic_write

REPORT = "report.md"
# Standard deviations (by the median deviation, which outliers do not move) below the median.
_SUSPICIOUS_DEVIATIONS = 4.0
# Nats a frame. Clean speech varies so little that ordinary utterances would count as outliers
# without a least value.
_LEAST_DEVIATION = 0.5
# Lines of a kind on the screen; the page in the folder holds all of them.
_SHOWN = 20


@dataclass(frozen=True)
class Report:
    """What is to be said of an aligned corpus.

    Args:
        settings: of the alignment.
        aligned: utterances with a TextGrid.
        seconds: of audio in them.
        median_likelihood: per frame of speech, in nats.
        suspicious: (id, likelihood, why), the worst first.
        remarks: (id, what is unusual) of all others that have any.
        usual_rate: sample rate in Hz of most recordings.
        other_rates: rate in Hz -> how many recordings have it, for all other rates.
        problems: (id or line, reason) of what has no TextGrid.
        guessed: word -> how it was read, for words of no dictionary.
        phones: phone -> (how often, mean seconds), the shortest first.
        frame_seconds: of the aligner.
    """

    settings: Mapping
    aligned: int
    seconds: float
    median_likelihood: float
    suspicious: list[tuple[str, float, str]]
    remarks: list[tuple[str, str]]
    usual_rate: int
    other_rates: dict[int, int]
    problems: list[tuple[str, str]]
    guessed: dict[str, str]
    phones: dict[str, tuple[int, float]]
    frame_seconds: float

    def lines(self, problems: bool = True) -> list[str]:
        """The report in short, a line each: counts, what is suspicious, what is left out.

        Args:
            problems: whether to name what is left out.
        """
        found = [
            f"{self.aligned} utterances aligned, {self.seconds / 3600:.2f} h, log-likelihood per "
            f"frame {self.median_likelihood:.2f} in the median"
        ]
        if self.settings.get("stress") == "none":
            found.append(
                "vowels have no stress digits: neither espeak-ng nor a lexicon with stress is there"
            )
        if self.guessed:
            words = ", ".join(list(self.guessed)[:8]) + (", …" if len(self.guessed) > 8 else "")
            found.append(f"{len(self.guessed)} words are in no dictionary: {words}")
        if self.other_rates:
            # One line, since half of a corpus may be of another rate.
            rates = ", ".join(f"{n} of {rate} Hz" for rate, n in self.other_rates.items())
            found.append(f"resampled: {rates}; most have {self.usual_rate} Hz")
        found += _first(f"suspicious: {name}: {why}" for name, _, why in self.suspicious)
        found += _first(f"remark: {name}: {what}" for name, what in self.remarks)
        if self.problems:
            found.append(f"{len(self.problems)} not aligned" + ":" * problems)
        if self.problems and problems:
            found += _first(f"  {where}: {reason}" for where, reason in self.problems)
        return found


def _first(lines: Iterable[str]) -> list[str]:
    """As many lines as are shown, and how many more there are."""
    every = list(lines)
    more = len(every) - _SHOWN
    return every if more <= 0 else [*every[:_SHOWN], f"  and {more} more, in {REPORT}"]


def summarize(
    outcomes: Sequence[Outcome], problems: Sequence[tuple[str, str]], settings: Mapping
) -> Report:
    """Put the outcomes of a corpus together.

    Args:
        outcomes: of all utterances.
        problems: (line, reason) of the metadata's own.
    """
    good = [outcome for outcome in outcomes if not outcome.problem]
    values = np.array([outcome.likelihood for outcome in good] or [0.0])
    median = float(np.median(values))
    # This factor makes of the median deviation the standard deviation, for normal values.
    deviation = max(1.4826 * float(np.median(np.abs(values - median))), _LEAST_DEVIATION)
    limit = median - _SUSPICIOUS_DEVIATIONS * deviation
    (usual_rate, _), *others = Counter(outcome.rate for outcome in good).most_common() or [(0, 0)]
    suspicious, remarks = [], []
    for outcome in good:
        said = list(outcome.remarks)
        if outcome.likelihood < limit:
            why = (
                f"log-likelihood per frame {outcome.likelihood:.2f}, below {limit:.2f}: does its "
                "transcript say what is spoken?"
            )
            said.insert(0, why)
            suspicious.append((outcome.id, outcome.likelihood, "; ".join(said)))
        elif said:
            remarks.append((outcome.id, "; ".join(said)))
    suspicious.sort(key=lambda entry: entry[1])
    counts: dict[str, tuple[int, float]] = {}
    for outcome in good:
        for phone, (times, frames) in outcome.phones.items():
            n, total = counts.get(phone, (0, 0.0))
            counts[phone] = n + times, total + frames * outcome.frame_seconds
    lengths = {phone: (times, total / times) for phone, (times, total) in counts.items()}
    guessed: dict[str, str] = {}
    for outcome in outcomes:
        guessed.update(outcome.guessed)
    return Report(
        settings=dict(settings),
        aligned=len(good),
        seconds=sum(outcome.seconds for outcome in good),
        median_likelihood=median,
        suspicious=suspicious,
        remarks=remarks,
        usual_rate=usual_rate,
        other_rates=dict(others),
        problems=[*problems, *((o.id, o.problem) for o in outcomes if o.problem)],
        guessed=dict(sorted(guessed.items())),
        phones=dict(sorted(lengths.items(), key=lambda item: item[1][1])),
        frame_seconds=good[0].frame_seconds if good else 0.01,
    )


def write_report(folder: Path, report: Report) -> None:
    """Write OUT/report.md: suspicious utterances first."""
    settings = ", ".join(f"{name}: {value}" for name, value in report.settings.items())
    lines = ["# Alignment", "", *(f"{line}." for line in report.lines()[:1]), "", settings, ""]
    lines += ["## Suspicious utterances, the worst first", ""]
    lines += [f"- {name}: {why}" for name, _, why in report.suspicious] or ["none"]
    lines += ["", "## Unusual recordings", ""]
    unusual = [f"- {name}: {what}" for name, what in report.remarks]
    unusual += [f"- {n} of {rate} Hz: resampled" for rate, n in report.other_rates.items()]
    lines += unusual or ["none"]
    lines += ["", "## Not aligned", ""]
    lines += [f"- {where}: {reason}" for where, reason in report.problems] or ["none"]
    lines += ["", "## Words that are in no dictionary", ""]
    lines += [f"- {word}: {how}" for word, how in report.guessed.items()] or ["none"]
    lines += ["", "## Phones, the shortest first", "", "| phone | times | frames | seconds |"]
    lines += ["|---|---|---|---|"]
    for phone, (times, seconds) in report.phones.items():
        frames = seconds / report.frame_seconds
        lines.append(f"| {phone} | {times} | {frames:.1f} | {seconds:.3f} |")
    with atomic_write(folder / REPORT) as file:
        file.write("\n".join([*lines, ""]).encode())


def nothing_aligned(report: Report) -> str:
    """What is said where no utterance could be aligned."""
    shown = "".join(f"\n  {where}: {reason}" for where, reason in report.problems[:20])
    more = len(report.problems) - 20
    return f"no utterance could be aligned:{shown}" + (f"\n  and {more} more" if more > 0 else "")
