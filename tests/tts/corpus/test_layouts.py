# SPDX-License-Identifier: Apache-2.0
"""Corpora of several speakers, in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path

import pytest

from sniper.tts.corpus.corpus import list_utterances, read_corpus
from sniper.tts.corpus.layouts import Line, find_recording
from sniper.tts.errors import SpeechError


def _write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_vctk(tmp_path: Path):
    _write(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    _write(tmp_path / "txt/p226/p226_001.txt", "Ask her.")
    _write(tmp_path / "txt/p226/p226_002.txt", " \n")
    _write(tmp_path / "wav48/p226/p226_001.wav")
    _write(tmp_path / "TextGrid/p225/p225_001.TextGrid")
    listing = list_utterances(tmp_path)
    flac = tmp_path / "wav48_silence_trimmed/p225/p225_001_mic1.flac"
    assert listing.lines == [
        Line("p225_001", "Please call Stella.", flac, "p225"),
        Line("p226_001", "Ask her.", tmp_path / "wav48/p226/p226_001.wav", "p226"),
    ]
    assert "is empty" in listing.problems[0][1]
    other = tmp_path / "txt/p226/p226_002.txt"
    other.write_text("Ask.", encoding="utf-16")
    assert "p226_002.txt is UTF-16" in list_utterances(tmp_path).problems[0][1]
    before = listing.sha256()
    _write(tmp_path / "txt/p226/p226_001.txt", "Ask him.")
    assert list_utterances(tmp_path).sha256() != before
    (utterance,) = read_corpus(tmp_path).utterances
    assert (utterance.id, utterance.speaker, utterance.wav) == ("p225_001", "p225", flac)


def test_files_of_one_name_are_utterances_of_their_own(tmp_path: Path):
    vctk, libri = tmp_path / "vctk", tmp_path / "libri"
    for speaker in ("anna", "bob"):
        _write(vctk / f"txt/{speaker}/000.txt", f"I am {speaker}.")
        _write(vctk / f"wav48/{speaker}/000.wav")
        _write(vctk / f"TextGrid/{speaker}/000.TextGrid")
    _write(vctk / "txt/bob/001.txt", "Again.")
    found = list_utterances(vctk).lines
    assert [line.id for line in found] == ["anna/000", "bob/000", "001"]
    for line in found[:2]:
        assert line.text == f"I am {line.speaker}." and line.wav.is_file()
        assert find_recording(vctk, line.id) == line.wav
    aligned = {u.id: u.alignment for u in read_corpus(vctk).utterances}
    assert aligned == {f"{n}/000": vctk / f"TextGrid/{n}/000.TextGrid" for n in ("anna", "bob")}
    for chapter in ("c1", "c2"):
        _write(libri / f"train/anna/{chapter}/1.normalized.txt", chapter)
        _write(libri / f"train/anna/{chapter}/1.wav")
        _write(libri / f"alignments/train/anna/{chapter}/1.TextGrid")
    found = list_utterances(libri).lines
    assert [line.id for line in found] == ["train/anna/c1/1", "train/anna/c2/1"]
    assert all(find_recording(libri, line.id) == line.wav for line in found)
    assert [u.id for u in read_corpus(libri).utterances] == [line.id for line in found]


def test_textgrids_behind_links_and_beside_older_ones(tmp_path: Path):
    _write(tmp_path / "metadata.csv", "a|One.\nanna/b|Two.\n")
    (tmp_path / "wavs").mkdir()
    _write(tmp_path / "elsewhere/b.TextGrid")
    _write(tmp_path / "TextGrid/a.TextGrid")
    (tmp_path / "TextGrid/anna").symlink_to(tmp_path / "elsewhere")
    _write(tmp_path / "TextGrid/old/2023/a.TextGrid")
    corpus = read_corpus(tmp_path)
    assert [u.id for u in corpus.utterances] == ["a", "anna/b"] and not corpus.problems


@pytest.mark.parametrize("above", ["", "train-clean-100"])
def test_libritts(tmp_path: Path, above: str):
    folder = tmp_path / above / "19/198"
    _write(folder / "19_198_000000_000000.normalized.txt", "Northanger Abbey!")
    _write(folder / "19_198_000000_000000.original.txt", "NORTHANGER")
    (line,) = list_utterances(tmp_path).lines
    wav = folder / "19_198_000000_000000.wav"
    assert line == Line("19_198_000000_000000", "Northanger Abbey!", wav, "19")


def test_a_column_names_the_speaker(tmp_path: Path):
    (tmp_path / "wavs").mkdir()
    text = "a|one|anna\nb|2|two|ben\nc|three\nd|four|\ne|1|2|3|4\n"
    _write(tmp_path / "metadata.csv", text)
    listing = list_utterances(tmp_path, "column")
    found = [(line.id, line.text, line.speaker) for line in listing.lines]
    assert found == [("a", "one", "anna"), ("b", "two", "ben")]
    assert [where for where, _ in listing.problems] == [f"metadata.csv:{n}" for n in (3, 4, 5)]
    assert "expected id|text|speaker or id|text|normalized|speaker" in listing.problems[0][1]
    assert "no speaker in its last column" in listing.problems[1][1]
    assert {line.speaker for line in list_utterances(tmp_path).lines} == {""}


def test_a_folder_names_the_speaker(tmp_path: Path):
    """Speakers may have the same names for their files."""
    _write(tmp_path / "metadata.csv", "anna/1|one\nben/1|two\n3|three\n")
    for who in ("anna", "ben"):
        _write(tmp_path / f"wavs/{who}/1.wav")
        _write(tmp_path / f"TextGrid/{who}/1.TextGrid")
    corpus = read_corpus(tmp_path, speakers="folder")
    found = [(u.id, u.speaker, u.alignment) for u in corpus.utterances]
    grids = tmp_path / "TextGrid"
    assert found == [
        ("anna/1", "anna", grids / "anna/1.TextGrid"),
        ("ben/1", "ben", grids / "ben/1.TextGrid"),
    ]
    assert corpus.problems[0][0] == "3" and "no folder" in corpus.problems[0][1]


def test_none_of_the_layouts(tmp_path: Path):
    with pytest.raises(SpeechError, match="metadata.csv cannot be read"):
        list_utterances(tmp_path)
    with pytest.raises(SpeechError, match="speakers: expected one of none, column, folder"):
        list_utterances(tmp_path, "row")


@pytest.mark.parametrize(
    ("text", "wav", "name"),
    [
        ("txt/p1/p1_1.txt", "wav48_silence_trimmed/p1/p1_1_mic1.flac", "p1_1"),
        ("txt/p1/p1_1.txt", "wav48/p1/p1_1.wav", "p1_1"),
        ("19/198/19_198_0.normalized.txt", "19/198/19_198_0.wav", "19_198_0"),
        ("train/19/198/19_[1].normalized.txt", "train/19/198/19_[1].wav", "19_[1]"),
        ("metadata.csv", "wavs/anna/1.wav", "anna/1"),
    ],
)
def test_a_recording_is_found_where_its_layout_has_it(
    tmp_path: Path, text: str, wav: str, name: str
):
    _write(tmp_path / text, f"{name}|Hello." if text == "metadata.csv" else "Hello.")
    _write(tmp_path / wav)
    (line,) = list_utterances(tmp_path).lines
    assert (line.id, find_recording(tmp_path, name)) == (name, line.wav)
    assert find_recording(tmp_path, "other") is None
