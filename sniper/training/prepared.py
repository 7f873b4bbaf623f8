# SPDX-License-Identifier: Apache-2.0
"""Whether a corpus that was prepared by hand is the one that a run's settings ask for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sniper.training.config import Config
from sniper.training.sections import DataConfig
from sniper.training.settings import ConfigError
from sniper.tts.corpus.corpus import find_textgrids
from sniper.tts.corpus.dataset import CORPUS, load_corpus_info, read_corpus_json


def refuse_other_features(config: Config, folder: Path) -> None:
    """Refuses a prepared corpus of other features.

    Raises:
        ConfigError: with the setting, and what is there.
        SpeechError: the corpus is damaged.
    """
    there = load_corpus_info(folder).features.to_json()
    for key, value in config.features.items():
        if there[key] != value:
            raise ConfigError(
                f"features.{key}: {folder} was prepared with {there[key]!r}, got {value!r}"
            )


def refuse_other_data(config: Config, folder: Path) -> None:
    """Refuses a corpus that was prepared with other speakers, another split or another dictionary
    than the settings ask for; a setting that is left at its default asks for nothing.

    Raises:
        ConfigError: with the setting, and what is there.
        SpeechError: the corpus is damaged.
    """
    data = config.data
    if data.kind == "demo":
        return  # made from these settings
    found = read_corpus_json(folder / CORPUS)
    settings = _mapping(found.get("settings"))
    corpus, split = _mapping(settings.get("corpus")), _mapping(settings.get("split"))
    there = {
        "valid": _mapping(found.get("counts")).get("valid"),
        "seed": split.get("seed", 0),
        # Left out where nobody names them, as in corpora from before there was a choice.
        "speakers": corpus.get("speakers", "none"),
        "textgrids": corpus.get("textgrids"),
    }
    for key, value in there.items():
        asked = getattr(data, key)
        default = DataConfig.model_fields[key].default
        if asked != default and not _same(key, asked, value, Path(data.root)):
            raise _other(key, folder, repr(value), asked)
    if data.lexicon is not None:
        known = settings.get("lexicon_sha256")
        try:
            given = hashlib.sha256(Path(data.lexicon).read_bytes()).hexdigest()
        except OSError:
            given = None  # on the machine where it was prepared, perhaps
        if known is None or given not in (known, None):
            raise _other("lexicon", folder, "none" if known is None else "another", data.lexicon)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _same(key: str, asked: Any, there: Any, root: Path) -> bool:
    if key == "textgrids" and there is not None:
        folders = [find_textgrids(root, Path(str(f))).resolve() for f in (asked, there)]
        # One that is not here lay where the corpus was prepared, perhaps under another name.
        return folders[0] == folders[1] or not all(folder.is_dir() for folder in folders)
    return asked == there


def _other(key: str, folder: Path, there: str, asked: Any) -> ConfigError:
    return ConfigError(
        f"data.{key}: {folder} was prepared with {there}, got {asked!r}; leave data.{key} out to "
        "take it as it is, or choose another data.prepared"
    )
