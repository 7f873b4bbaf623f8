# SPDX-License-Identifier: Apache-2.0
"""The report: what is suspicious comes first."""

from __future__ import annotations

from sniper.tts.aligners.folder import Outcome
from sniper.tts.aligners.report import nothing_aligned, summarize, write_report


def outcome(name: str, likelihood: float, **rest) -> Outcome:
    return Outcome(name, "", likelihood=likelihood, seconds=2.0, **{"rate": 22050, **rest})


def test_suspicious_first_and_every_line_once(tmp_path):
    outcomes = [outcome(f"u{i}", -1 - i / 50) for i in range(8)]
    outcomes += [outcome("bad", -4.0, remarks=("needed wider beams",)), outcome("worse", -6.0)]
    outcomes += [outcome("rate", -1.1, rate=44100), outcome("long", -1.1, remarks=("lasts 60 s",))]
    outcomes += [Outcome("none", "", problem="it is silent", guessed={"zib": "by its letters"})]
    report = summarize(outcomes, [("metadata.csv:3", "got 1 fields")], {"stress": "none"})
    assert report.aligned == 12 and report.seconds == 24
    assert [name for name, _, _ in report.suspicious] == ["worse", "bad"]
    assert report.suspicious[1][2].endswith("what is spoken?; needed wider beams")
    assert report.remarks == [("long", "lasts 60 s")]
    text = "\n".join(report.lines())
    assert "1 words are in no dictionary: zib" in text and "no stress digits" in text
    assert "resampled: 1 of 44100 Hz; most have 22050 Hz" in text
    assert "  none: it is silent" in text and "  metadata.csv:3: got 1 fields" in text
    assert report.lines(problems=False)[-1] == "2 not aligned"
    write_report(tmp_path, report)
    page = (tmp_path / "report.md").read_text()
    places = [
        page.index(word)
        for word in ("- worse", "- bad", "- long", "- 1 of 44100 Hz", "- none", "zib: by its")
    ]
    assert places == sorted(places)


def test_many_of_a_kind_are_counted(tmp_path):
    problems = [(f"metadata.csv:{n}", "no text") for n in range(1, 26)]
    outcomes = [outcome(f"u{n}", -1, rate=16000 if n % 2 else 44100) for n in range(99)]
    report = summarize(outcomes, problems, {})
    lines = report.lines()
    assert len(lines) == 1 + 1 + 1 + 21 and lines[-1] == "  and 5 more, in report.md"
    assert lines[1] == "resampled: 49 of 16000 Hz; most have 44100 Hz"
    write_report(tmp_path, report)
    assert (tmp_path / "report.md").read_text().count("no text") == 25


def test_lengths_of_phones():
    one = outcome("a", -1, phones={"AH0": (2, 10.0), "S": (1, 9.0)})
    two = outcome("b", -1, phones={"AH0": (2, 14.0)})
    report = summarize([one, two], [], {})
    assert list(report.phones) == ["AH0", "S"]
    times, seconds = report.phones["AH0"]
    assert times == 4 and abs(seconds - 0.06) < 1e-9


def test_a_uniform_corpus_has_no_suspects():
    report = summarize([outcome(f"u{i}", -1.2 - 0.001 * i) for i in range(9)], [], {})
    assert report.suspicious == [] and report.remarks == []
    nothing = summarize([Outcome("a", "", problem="it is silent")], [], {})
    assert nothing_aligned(nothing) == "no utterance could be aligned:\n  a: it is silent"
