# SPDX-License-Identifier: Apache-2.0
"""Words for a run that is trained already: they go into its checkpoints."""

from __future__ import annotations

from pathlib import Path

from sniper.training import checkpoint as store
from sniper.training.restore import read_speech
from sniper.tts.locks import only_one
from sniper.tts.text.new_words import Added, add_words


def add_to_run(run: str | Path, words: dict[str, str]) -> Added:
    """Writes the words of a dictionary into the lexicon of a run's last and best checkpoint, or of
    one checkpoint; the weights stay as they are, and a run that goes on keeps the words.

    Args:
        run: folder of a run or of one checkpoint.
        words: word -> phonemes separated by spaces.

    Raises:
        CheckpointError: none there, or damaged.
        SpeechError: a voice that espeak-ng reads, or no word that can be spoken.
        FolderInUse: another process trains in the folder.
    """
    folder = Path(run)
    store.find(folder)  # says that there is none before there is a lock
    with only_one(folder):
        paths = {store.find(folder, which) for which in ("last", "best")}
        metas = {path: store.read_meta(path) for path in sorted(paths)}
        added = Added(0, 0)
        for path, meta in metas.items():
            try:
                info = read_speech(meta["speech"])
            except (KeyError, ValueError) as error:
                raise store.damaged(path, "meta.json", f"speech: {error}") from None
            frontend, added = add_words(info.frontend, words, info.vocabulary)
            speech = {**meta["speech"], "frontend": frontend.to_json()}
            store.write_meta(path, {**meta, "speech": speech})
    return added
