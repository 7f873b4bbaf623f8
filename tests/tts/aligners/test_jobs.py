# SPDX-License-Identifier: Apache-2.0
"""Utterances on their way through an aligner."""

from __future__ import annotations

from pathlib import Path

import pytest

from sniper.tts.aligners.folder import fingerprint, open_folder
from sniper.tts.aligners.jobs import Jobs
from sniper.tts.aligners.tokens import TokenReader


def test_a_warning_names_the_utterance_whose_text_it_is_about(tmp_path: Path):
    entries = [("plain", "one"), ("alone", "😀"), ("behind", "two 😀"), ("last", "three 😀")]
    wavs = {name: tmp_path / f"{name}.wav" for name, _ in entries}
    for wav in wavs.values():
        wav.write_bytes(b"")
    marks = {name: fingerprint(text, wavs[name]) for name, text in entries}
    reader = TokenReader("en-us", "characters", {})
    with open_folder(tmp_path / "out", {"align": "x"}, force=False) as folder:
        jobs = Jobs(wavs, folder, marks, workers=1, progress=False)
        with pytest.warns(UserWarning) as told:
            made = jobs.make(entries, reader.spoken)
        assert [job.id for job in made] == ["plain", "behind", "last"]
        assert folder.outcomes["alone"].problem == "there is no word in its text"
    said = "left out, it has no reading: '😀'"
    expected = [f"in the text of {name}: {said}" for name in ("alone", "behind", "last")]
    assert [str(each.message) for each in told] == expected
