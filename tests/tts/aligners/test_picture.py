# SPDX-License-Identifier: Apache-2.0
"""The picture of an alignment: names that can be read, beside the mel and not on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sniper.tts.aligners.folder import Outcome, open_folder
from sniper.tts.aligners.picture import chosen, draw
from sniper.tts.aligners.textgrid import timed_text, write_textgrid


def test_chosen_evenly_from_the_most_to_the_least_likely():
    outcomes = [Outcome(f"u{i}", "", likelihood=-float(i)) for i in range(28)]
    assert [o.id for o in chosen(outcomes[::-1])] == [f"u{3 * i}" for i in range(10)]
    assert [o.id for o in chosen(outcomes[:2])] == ["u0", "u1"]


def test_letters_without_glyphs_are_no_news_and_dollars_no_formula(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    soundfile.write(tmp_path / "a.wav", np.zeros(22050), 22050)
    with open_folder(tmp_path / "out", {"format": 1}, force=False) as folder:
        phones = [("你", 0.1, 0.5), ("$_$", 0.5, 0.9)]
        spoken = timed_text([("你", phones)], 1.0, likelihood=-1.0, frames=80)
        name = "a$_$b"
        write_textgrid(folder.textgrid(name), spoken)
        wavs = {name: tmp_path / "a.wav"}
        draw(tmp_path / "a.png", wavs, folder, [Outcome(name, "", seconds=1.0)])
    assert [str(w.message) for w in recwarn] == []


def test_short_phones_have_names_that_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    lengths, wavs, outcomes = {"long": 9.0, "short": 1.0}, {}, []
    with open_folder(tmp_path / "out", {"format": 1}, force=False) as folder:
        for name, seconds in lengths.items():
            wavs[name] = tmp_path / f"{name}.wav"
            soundfile.write(wavs[name], np.zeros(round(seconds * 22050)), 22050)
            # Twice as fast as people speak.
            ends = np.arange(0, seconds, 0.04)
            phones = [("AW1", a, b) for a, b in zip(ends, ends[1:], strict=False)]
            spoken = timed_text([("word", phones)], seconds, likelihood=-1.0, frames=80)
            write_textgrid(folder.textgrid(name), spoken)
            outcomes.append(Outcome(name, "", likelihood=-seconds, seconds=seconds))
        draw(tmp_path / "a.png", wavs, folder, outcomes)
        draw(tmp_path / "a.png", wavs, folder, outcomes[1:])
    for figure in figures:
        figure.canvas.draw()
        for axis in figure.axes:
            mel = axis.images[0].get_window_extent()
            names = [t.get_window_extent() for t in axis.texts if t.get_text() == "AW1"]
            assert len(names) > 20
            assert all(name.y0 >= mel.y1 and name.y1 <= axis.bbox.y1 for name in names)
            assert not any(a.overlaps(b) for i, a in enumerate(names) for b in names[:i])
    both, alone = figures
    assert [axis.get_xlim() for axis in both.axes] == [(0, 6), (0, 6)]
    assert [axis.get_xlim() for axis in alone.axes] == [(0, 1)]
