# SPDX-License-Identifier: Apache-2.0
"""Words for a corpus that is prepared: its audio and its features are not touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sniper.tts.corpus.corpus_lexicon import add_to_corpus
from sniper.tts.corpus.dataset import CORPUS, FeatureDataset, load_corpus_info, read_corpus_json
from sniper.tts.errors import SpeechError
from sniper.tts.files import resealed, write_json
from sniper.tts.locks import LOCK
from sniper.tts.text.text import LexiconFrontend


@pytest.fixture
def corpus(demo_corpus: Path, tmp_path: Path) -> Path:
    """The demo corpus as if it had been aligned, so that it has a lexicon."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in demo_corpus.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    data = read_corpus_json(demo_corpus / CORPUS)
    frontend = LexiconFrontend({"river": "ɹ ɪ v ɚ"}, leading_pause=True).to_json()
    write_json(folder / CORPUS, resealed({**data, "frontend": frontend}, CORPUS))
    return folder


def test_words_are_added_and_everything_else_stays(corpus: Path):
    before, info = read_corpus_json(corpus / CORPUS), load_corpus_info(corpus)
    added = add_to_corpus(corpus, {"sea": "s ˈiː", "river": "ɹ ɪ", "x": "QQ"})
    assert (added.new, added.changed, list(added.left_out)) == (1, 1, ["x"])
    after = load_corpus_info(corpus)
    assert after.frontend == replace(info.frontend, lexicon={"river": "ɹ ɪ", "sea": "s ˈiː"})
    changed = {k for k, v in read_corpus_json(corpus / CORPUS).items() if v != before[k]}
    assert changed == {"frontend", "checksums"}
    assert len(FeatureDataset(corpus / "train.safetensors")) > 10, "checksums still agree"
    assert not (corpus / LOCK).exists()


def test_what_has_no_lexicon_or_is_damaged_is_left_as_it_is(corpus: Path, demo_corpus: Path):
    with pytest.raises(SpeechError, match="reads text by espeak-ng"):
        add_to_corpus(demo_corpus, {"sea": "s ˈiː"})
    path = corpus / CORPUS
    data = json.loads(path.read_text())
    data["seconds"] = 1.0
    path.write_text(json.dumps(data))
    with pytest.raises(SpeechError, match="its checksum is another"):
        add_to_corpus(corpus, {"sea": "s ˈiː"})
    assert json.loads(path.read_text()) == data
