# SPDX-License-Identifier: Apache-2.0
"""Sources count by size and time, and where these differ by content; each change is named."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sniper.tts.corpus import sources
from sniper.tts.corpus.alignment import Alignment
from sniper.tts.corpus.corpus import Corpus, Utterance
from sniper.tts.corpus.sources import content_of, entry_of, refuse_other_sources, state_of
from sniper.tts.errors import SpeechError


def utterance(folder: Path, name: str) -> Utterance:
    """Files with the name as their content: nobody here reads them as sound."""
    for kind in ("wav", "TextGrid"):
        path = folder / f"{name}.{kind}"
        if not path.exists():
            path.write_text(name)
    return Utterance(name, "text", folder / f"{name}.wav", folder / f"{name}.TextGrid")


def corpus(folder: Path, names: str) -> Corpus:
    return Corpus([utterance(folder, name) for name in names], [], has_textgrids=True)


def entries(corpus: Corpus) -> dict[str, str]:
    return {u.id: entry_of(state_of(u), content_of(u)) for u in corpus.utterances}


def test_equal_files_are_not_read(tmp_path, monkeypatch):
    found = corpus(tmp_path, "abc")
    there = entries(found)
    monkeypatch.setattr(sources, "checksum", lambda path: pytest.fail(f"{path} was read"))
    refuse_other_sources(tmp_path, there, found)
    refuse_other_sources(tmp_path, None, found)  # of an earlier version


def test_a_copy_elsewhere_is_the_same(tmp_path):
    (tmp_path / "one").mkdir()
    there = entries(corpus(tmp_path / "one", "abc"))
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    refuse_other_sources(tmp_path, there, corpus(tmp_path / "two", "abc"))


@pytest.mark.parametrize("kind", ["wav", "TextGrid"])
@pytest.mark.parametrize("content", ["x", "longer", None])
def test_what_changed_is_named(tmp_path, kind, content):
    found = corpus(tmp_path, "abc")
    there, path = entries(found), tmp_path / f"b.{kind}"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
        os.utime(path, ns=(5, 5))
    with pytest.raises(SpeechError, match=r"or alignments: 1 changed \(b\)\. Choose another --out"):
        refuse_other_sources(tmp_path, there, found)
    # What was missing then and is missing now is no change.
    refuse_other_sources(tmp_path, entries(found), found)


def test_lines_of_alignments_count_by_what_they_say(tmp_path):
    def spoken(*phones: str) -> Corpus:
        wav = utterance(tmp_path, "a").wav
        return Corpus(
            [Utterance("a", "text", wav, Alignment(phones, np.array([0, 0.5, 1.0])))], [], False
        )

    there = entries(spoken("HH", "AH0"))
    refuse_other_sources(tmp_path, there, spoken("HH", "AH0"))
    with pytest.raises(SpeechError, match=r"1 changed \(a\)"):
        refuse_other_sources(tmp_path, there, spoken("HH", "AH1"))


def test_many_are_counted_and_a_few_named(tmp_path):
    there = entries(corpus(tmp_path, "abcdefgh"))
    with pytest.raises(SpeechError) as error:
        refuse_other_sources(tmp_path, there, corpus(tmp_path, "hxy"))
    said = str(error.value)
    assert "2 new (x, y); 7 gone (a, b, c, d, e and 2 more)." in said and "\n" not in said


@pytest.mark.parametrize("wrong", [["a"], "a", {"a": 3}, {"a": "b"}, {"a": "b = c = d"}])
def test_what_is_no_list_of_sources(tmp_path, wrong):
    with pytest.raises((ValueError, AttributeError)):
        refuse_other_sources(tmp_path, wrong, corpus(tmp_path, "a"))


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "p.wav")
    assert content_of(utterance(tmp_path, "p")).startswith("missing crc32:")
