# SPDX-License-Identifier: Apache-2.0
"""Words for a corpus that is prepared already, without looking at its audio again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sniper.tts.corpus.dataset import CORPUS, load_corpus_info, read_corpus_json
from sniper.tts.files import resealed, write_json
from sniper.tts.locks import only_one
from sniper.tts.text.new_words import Added, add_words


def add_to_corpus(folder: str | Path, words: dict[str, str]) -> Added:
    """Writes the words of a dictionary into the lexicon of a prepared corpus.

    What the corpus was prepared with stays as it is, so the same preparation finds it finished.

    Args:
        folder: of the feature files.
        words: word -> phonemes separated by spaces.

    Raises:
        SpeechError: no prepared corpus, one that espeak-ng reads, or no word that can be spoken.
        FolderInUse: another process prepares it.
    """
    path = Path(folder) / CORPUS
    load_corpus_info(folder)  # says what is wrong before there is a lock
    with only_one(path.parent):
        info, data = load_corpus_info(folder), read_corpus_json(path)
        frontend, added = add_words(info.frontend, words, info.vocabulary)
        content = {**data, "frontend": replace(info, frontend=frontend).to_json()["frontend"]}
        write_json(path, resealed(content, CORPUS))
    return added
