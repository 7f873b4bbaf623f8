# SPDX-License-Identifier: Apache-2.0
"""Words for a run that is trained: spoken from then on, and kept where it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from speech import HEARD, with_lexicon

from sniper.synthesize import load_speaker
from sniper.training import checkpoint
from sniper.training.restore import with_saved_words
from sniper.training.run_lexicon import add_to_run
from sniper.tts.errors import SpeechError
from sniper.tts.locks import LOCK, only_one
from sniper.tts.text.text import LexiconFrontend

WORDS = {"whale": "W EY1 L", "grey": "G R AY1", "azure": "AE1 ZH ER0"}


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return with_lexicon(trained_run, tmp_path / "run")


def test_last_and_best_learn_the_words_and_nothing_else_changes(run: Path):
    before = {which: checkpoint.load(run, which) for which in ("last", "best")}
    added = add_to_run(run, WORDS)
    assert str(added).startswith("1 words added, 1 changed; 1 left out")
    for which, old in before.items():
        new = checkpoint.load(run, which)  # which compares the checksums
        assert new.path == old.path and new.weights.keys() == old.weights.keys()
        speech = {**new.meta["speech"], "frontend": old.meta["speech"]["frontend"]}
        own = {k: v for k, v in new.meta.items() if k not in ("speech", "checksums")}
        assert speech == old.meta["speech"] and own.items() <= old.meta.items()
        (phones,) = load_speaker(run, which).speak("The grey whale.", vocode=False).phones
        assert phones == "DH AH0 G R AY1 W EY1 L sil".split()
    assert not (run / LOCK).exists()


def test_one_checkpoint(run: Path):
    path = checkpoint.find(run, "best")
    add_to_run(path, WORDS)
    assert "whale" in load_speaker(path).info.frontend.lexicon


def test_a_run_that_goes_on_keeps_them(run: Path):
    info = load_speaker(run).info
    add_to_run(run, WORDS)
    kept = with_saved_words(checkpoint.load(run), info).frontend
    assert isinstance(kept, LexiconFrontend)
    assert kept.lexicon == {**HEARD, "whale": "W EY1 L", "grey": "G R AY1"}


def test_refusals_leave_the_run_as_it_is(run: Path, trained_run: Path, tmp_path: Path):
    meta = (checkpoint.find(run) / "meta.json").read_bytes()
    with pytest.raises(SpeechError, match="adds nothing"):
        add_to_run(run, {"azure": "AE1 ZH ER0"})
    assert (checkpoint.find(run) / "meta.json").read_bytes() == meta
    with pytest.raises(SpeechError, match="reads text by espeak-ng"):
        add_to_run(trained_run, WORDS)
    with pytest.raises(checkpoint.CheckpointError, match="expected the folder of a run"):
        add_to_run(tmp_path / "nothing", WORDS)
    assert not (tmp_path / "nothing").exists()
    with only_one(run):
        add_to_run(run, WORDS)  # what this process holds it may use
