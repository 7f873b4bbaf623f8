# SPDX-License-Identifier: Apache-2.0
"""A corpus that was prepared by hand and is not the one that the settings ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from speech import VALID, tiny

from sniper.training.prepared import refuse_other_data
from sniper.training.run import open_run
from sniper.training.settings import ConfigError


def _asking(folder: Path, **data: Any):
    named = {"kind": "ljspeech", "root": "/nowhere", "prepared": str(folder), **data}
    return tiny(folder, folder / "run", data=named)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"valid": VALID + 2}, f"data.valid: .* was prepared with {VALID}, got {VALID + 2}"),
        ({"seed": 7}, "data.seed: .* was prepared with 0, got 7"),
        ({"speakers": "folder"}, "data.speakers: .* was prepared with 'column', got 'folder'"),
        ({"textgrids": "/mine"}, "data.textgrids: .* was prepared with None, got '/mine'"),
        ({"lexicon": "words.txt"}, "data.lexicon: .* was prepared with none, got 'words.txt'"),
    ],
)
def test_a_corpus_of_other_settings_is_refused(speakers_corpus: Path, asked: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        refuse_other_data(_asking(speakers_corpus, **asked), speakers_corpus)


def test_what_it_was_prepared_with_is_taken_and_a_default_asks_for_nothing(speakers_corpus: Path):
    same = {"valid": VALID, "speakers": "column"}
    refuse_other_data(_asking(speakers_corpus, **same), speakers_corpus)
    refuse_other_data(_asking(speakers_corpus, valid=None, speakers="none"), speakers_corpus)


def test_paths_are_the_same_however_they_are_written(
    speakers_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    described = json.loads((speakers_corpus / "corpus.json").read_text())
    described["settings"]["corpus"]["textgrids"] = str(tmp_path / "grids")
    # What a checksum of an empty file is.
    described["settings"]["lexicon_sha256"] = (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    del described["checksums"]
    (tmp_path / "corpus.json").write_text(json.dumps(described))
    (tmp_path / "words.txt").touch()
    monkeypatch.chdir(tmp_path)
    refuse_other_data(_asking(tmp_path, textgrids="grids", lexicon="words.txt"), tmp_path)
    refuse_other_data(_asking(tmp_path, lexicon="elsewhere.txt"), tmp_path)  # it is not here
    (tmp_path / "al").mkdir()
    (tmp_path / "al/align.json").touch()
    (tmp_path / "al/TextGrid").symlink_to(tmp_path / "grids")
    (tmp_path / "grids").mkdir()
    refuse_other_data(_asking(tmp_path, textgrids="al"), tmp_path)
    (tmp_path / "words.txt").write_text("another")
    with pytest.raises(ConfigError, match="data.lexicon: .* was prepared with another, got"):
        refuse_other_data(_asking(tmp_path, lexicon="words.txt"), tmp_path)


def test_a_new_run_is_refused_and_one_that_was_begun_goes_on(
    speakers_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Older versions did not look, and what a run was begun with cannot be taken back."""
    data = {"kind": "ljspeech", "root": "/nowhere", "prepared": str(speakers_corpus), "valid": 9}
    config = tiny(speakers_corpus, tmp_path / "run", data=data, train={"epochs": 1})
    with pytest.raises(ConfigError, match="data.valid"), open_run(config):
        pass
    with monkeypatch.context() as older:
        older.setattr("sniper.training.run.refuse_other_data", lambda *_: None)
        with open_run(config) as trainer:
            trainer.fit()
    with open_run(config) as trainer:
        assert trainer.done
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(ConfigError, match="data.valid"), open_run(config):
        pass
