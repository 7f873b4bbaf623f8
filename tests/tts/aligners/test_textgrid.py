# SPDX-License-Identifier: Apache-2.0
"""TextGrids: what is written is what is read, by us and by a library that is not ours."""

from __future__ import annotations

import numpy as np
from praatio import textgrid as praat

from sniper.tts.aligners.textgrid import timed_text, write_textgrid
from sniper.tts.corpus.alignment import read_textgrid

SPOKEN = [
    ("hello", [("HH", 0.2, 0.3), ("AH0", 0.3, 0.35), ("L", 0.35, 0.4), ("OW1", 0.4, 0.6)]),
    ('"q"', [("K", 0.6, 0.7)]),
    ("end", [("EH1", 0.9, 1.01)]),
]


def test_silences_fill_the_gaps(tmp_path):
    text = timed_text(SPOKEN, seconds=1.0, likelihood=-1.0, frames=80)
    assert [(i.start, i.end, i.label) for i in text.words] == [
        (0, 0.2, ""),
        (0.2, 0.6, "hello"),
        (0.6, 0.7, '"q"'),
        (0.7, 0.9, ""),
        (0.9, 1.0, "end"),
    ]
    for tier in (text.words, text.phones):
        assert tier[0].start == 0 and tier[-1].end == 1.0
        assert all(a.end == b.start for a, b in zip(tier, tier[1:], strict=False))
    path = tmp_path / "deep" / "a.TextGrid"
    write_textgrid(path, text)
    found = read_textgrid(path)
    assert found.phones == ("sil", "HH", "AH0", "L", "OW1", "K", "sil", "EH1")
    np.testing.assert_allclose(found.boundaries, [0, 0.2, 0.3, 0.35, 0.4, 0.6, 0.7, 0.9, 1.0])
    assert found.pronunciations[0] == ("hello", "HH AH0 L OW1")
    grid = praat.openTextgrid(str(path), includeEmptyIntervals=True)
    assert grid.tierNames == ("words", "phones")
    assert [entry.label for entry in grid.getTier("words").entries][2] == '"q"'
    assert [p.name for p in path.parent.iterdir()] == ["a.TextGrid"]


def test_speech_up_to_both_ends():
    text = timed_text([("a", [("EY1", -0.01, 0.5)])], 0.5, -1.0, 50)
    assert [(i.start, i.end, i.label) for i in text.phones] == [(0, 0.5, "EY1")]
