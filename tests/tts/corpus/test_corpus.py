# SPDX-License-Identifier: Apache-2.0
"""Reading a folder in LJSpeech's layout, whatever is wrong with it."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from sniper.tts.corpus.corpus import fingerprint, read_corpus, read_metadata, synthesis_voice
from sniper.tts.corpus.layouts import find_recording
from sniper.tts.errors import SpeechError


def test_metadata_with_two_and_three_fields(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text(
        'a|It cost 5|It cost five\nb|"Quoted, he said|\r\n\nc|two\n', encoding="utf-8-sig"
    )
    entries, problems = read_metadata(path)
    assert entries == [("a", "It cost five"), ("b", '"Quoted, he said'), ("c", "two")]
    assert problems == []


def test_lines_that_end_as_on_an_old_mac(tmp_path):
    """As one line they would be id|text|normalised text, with somebody else's text."""
    path = tmp_path / "metadata.csv"
    path.write_bytes(b"a|one\rb|two\r")
    assert read_metadata(path) == ([("a", "one"), ("b", "two")], [])


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_bytes(b"a|one\nno bar\n|no id\nb|\na|again\nc|caf\xe9\nd|1|2|3\ne|good\n")
    entries, problems = read_metadata(path)
    assert entries == [("a", "one"), ("e", "good")]
    expected = ["2 .*1 fields", "3 .*empty", "4 .*no text", "5 .*a came", "6 .*UTF", "7 .*4 fields"]
    for (where, reason), pattern in zip(problems, expected, strict=True):
        assert re.match(f"metadata.csv:{pattern}", f"{where} {reason}"), reason


def test_ids_may_be_names_of_files(tmp_path):
    path = tmp_path / "metadata.csv"
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "c.wav.wav").touch()
    path.write_text("a.wav|one\nwavs/x/b.wav|two\nc.wav|three\nwavs/d|four\na|one\n.wav|none\n")
    entries, problems = read_metadata(path)
    assert entries == [("a", "one"), ("x/b", "two"), ("c.wav", "three"), ("d", "four")]
    assert [where for where, _ in problems] == ["metadata.csv:5", "metadata.csv:6"]


def test_speakers_between_id_and_text_are_not_lost(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("".join(f"{i}|{'ann' if i % 2 else 'bob'}|text {i}\n" for i in range(8)))
    with pytest.raises(SpeechError, match=r"of 2 kinds \(ann, bob\) before 8 different texts"):
        read_metadata(path)
    # Few texts, each of them said often, are a corpus like another.
    path.write_text("".join(f"{i}|{i % 2} dogs|{'one two'.split()[i % 2]}\n" for i in range(8)))
    assert len(read_metadata(path)[0]) == 8


def make(root, folder=None):
    (root / "wavs").mkdir(parents=True)
    (root / "metadata.csv").write_text("a|one\nb|two\n")
    if folder:
        (root / folder).mkdir(parents=True)
        (root / folder / "a.TextGrid").touch()
    return root


@pytest.mark.parametrize("folder", ["TextGrid", "textgrids", "alignments", "TextGrid/LJSpeech"])
def test_textgrids_are_found(tmp_path, folder):
    corpus = read_corpus(make(tmp_path, folder))
    assert corpus.has_textgrids
    (utterance,) = corpus.utterances
    assert utterance.alignment == tmp_path / folder / "a.TextGrid"
    assert utterance.wav == tmp_path / "wavs" / "a.wav" and utterance.text == "one"
    assert corpus.problems[0][0] == "b" and "no TextGrid" in corpus.problems[0][1]


@pytest.mark.parametrize("here, there", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_encoded_in_two_ways(tmp_path, here, there):
    """macOS takes them apart in names of files; nothing is lost where a list does not."""
    listed, on_disk = (unicodedata.normalize(form, "émile/é_1") for form in (here, there))
    for path in (f"wavs/{on_disk}.wav", f"TextGrid/{on_disk}.TextGrid"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "metadata.csv").write_text(f"{listed}|one\n{on_disk}|two\n", encoding="utf-8")
    corpus = read_corpus(tmp_path, speakers="folder")
    (utterance,) = corpus.utterances
    assert (utterance.id, utterance.text) == (listed, "one")
    assert utterance.wav == tmp_path / f"wavs/{on_disk}.wav"
    assert utterance.alignment == tmp_path / f"TextGrid/{on_disk}.TextGrid"
    assert utterance.speaker == unicodedata.normalize("NFC", "émile")
    assert [where for where, _ in corpus.problems] == ["metadata.csv:2"]
    assert find_recording(tmp_path, listed) == utterance.wav
    # TextGrids in folders of speakers and chapters, and lines of alignments.jsonl.
    (tmp_path / "metadata.csv").write_text(f"{listed.split('/')[1]}|one\n", encoding="utf-8")
    (utterance,) = read_corpus(tmp_path).utterances
    assert utterance.alignment == tmp_path / f"TextGrid/{on_disk}.TextGrid"
    shutil.rmtree(tmp_path / "TextGrid")
    line = {"phones": ["h"], "starts": [0], "samples": 9, "sample_rate": 22050}
    line["id"] = on_disk.split("/")[1]
    (tmp_path / "alignments.jsonl").write_text(json.dumps(line) + "\n")
    (utterance,) = read_corpus(tmp_path).utterances
    assert utterance.id == listed.split("/")[1]


def test_textgrids_elsewhere(tmp_path):
    root = make(tmp_path / "corpus", "mfa/out")
    assert len(read_corpus(root, root / "mfa" / "out").utterances) == 1
    assert len(read_corpus(root, Path("mfa/out")).utterances) == 1
    with pytest.raises(SpeechError, match="no such folder of TextGrids"):
        read_corpus(root, root / "nowhere")


def test_alignments_file(tmp_path):
    root = make(tmp_path)
    entry = {"id": "b", "phones": ["h"], "starts": [0], "samples": 9, "sample_rate": 22050}
    (root / "alignments.jsonl").write_text(json.dumps(entry) + '\n{"id": "a"}')
    corpus = read_corpus(root)
    assert [u.id for u in corpus.utterances] == ["b"] and not corpus.has_textgrids
    assert [where for where, _ in corpus.problems] == ["alignments.jsonl:2", "a"]
    assert synthesis_voice(root) is None
    (root / "synthesis.json").write_text('{"voice": "en-gb"}')
    assert synthesis_voice(root) == "en-gb"


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(SpeechError, match="no such folder"):
        read_corpus(tmp_path / "none")
    with pytest.raises(SpeechError, match="needs a metadata.csv"):
        read_corpus(tmp_path)
    (tmp_path / "metadata.csv").write_text("a|b\n")
    with pytest.raises(SpeechError, match="wavs"):
        read_corpus(tmp_path)
    (tmp_path / "wavs").mkdir()
    with pytest.raises(SpeechError, match="`python -m sniper.align` makes TextGrids"):
        read_corpus(tmp_path)


def test_two_textgrids_of_one_name_are_ambiguous(tmp_path):
    root = make(tmp_path, "TextGrid/ann")
    (root / "TextGrid" / "bob").mkdir()
    (root / "TextGrid" / "bob" / "a.TextGrid").touch()
    corpus = read_corpus(root)
    assert corpus.utterances == []
    reason = dict(corpus.problems)["a"]
    assert "ann/a.TextGrid" in reason and "bob/a.TextGrid" in reason


def write_corpus(root: Path, ids: list[str], grids: list[str]) -> Path:
    (root / "wavs").mkdir(parents=True)
    (root / "metadata.csv").write_text("".join(f"{name}|some text\n" for name in ids))
    for name in grids:
        path = root / "TextGrid" / f"{name}.TextGrid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_textgrid_belongs_to_the_id_that_is_its_path(tmp_path):
    ids = ["0", "extra/0", "1", "extra/1", "far", "deep/er/and/deeper"]
    grids = ["extra/0", "1", "extra/1", "part/103/1240/far", "deep/er/and/deeper", "ann/1"]
    grids += ["TextGrid.corrected/0", "TextGrid.corrected/far"]
    corpus = read_corpus(write_corpus(tmp_path, ids, grids))
    found = {u.id: u.alignment.relative_to(tmp_path / "TextGrid") for u in corpus.utterances}
    assert {name: path.as_posix().removesuffix(".TextGrid") for name, path in found.items()} == {
        "extra/0": "extra/0",
        "1": "1",
        "extra/1": "extra/1",
        "far": "part/103/1240/far",
        "deep/er/and/deeper": "deep/er/and/deeper",
    }
    assert [name for name, _ in corpus.problems] == ["0"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.TextGrid").touch()
    (tmp_path / "TextGrid" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "0" in [u.id for u in read_corpus(tmp_path).utterances]


@pytest.mark.parametrize("given", ["al", "al/TextGrid", None])
def test_an_alignment_of_ours_keeps_its_language(tmp_path, given):
    root = write_corpus(tmp_path / "corpus", ["a"], ["a"])
    place = root / ("al" if given else "alignments")
    place.mkdir()
    (root / "TextGrid").rename(place / "TextGrid")
    (place / "TextGrid.corrected").mkdir()
    (place / "TextGrid.corrected" / "a.TextGrid").touch()
    settings = {"align": "learned", "language": "de", "phones": "espeak"}
    (place / "align.json").write_text(json.dumps(settings))
    textgrids = None if given is None else Path(given)
    for language in (None, "de"):
        corpus = read_corpus(root, textgrids, language=language)
        assert (corpus.language, corpus.characters, corpus.problems) == ("de", False, [])
        assert corpus.utterances[0].alignment == place / "TextGrid" / "a.TextGrid"
    with pytest.raises(SpeechError, match="--language: expected 'de', .*align.json.* got 'en-us'"):
        read_corpus(root, textgrids, language="en-us")


def test_a_synthetic_corpus_has_the_language_of_its_voice(tmp_path):
    root = make(tmp_path)
    (root / "alignments.jsonl").touch()
    (root / "synthesis.json").write_text('{"voice": "de+f2"}')
    assert read_corpus(root, language="de").language == "de"
    with pytest.raises(SpeechError, match="voice de.f2, .*leave --language and --phones out"):
        read_corpus(root, language="fr-fr")


def test_a_file_is_the_same_however_its_folder_is_named(tmp_path, monkeypatch):
    root = write_corpus(tmp_path / "corpus", ["a"], ["a"])
    (root / "wavs" / "a.wav").touch()
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    ways = (root, Path("corpus"), Path("../") / tmp_path.name / "corpus", Path("link"))
    marks = {fingerprint(read_corpus(way).utterances[0]) for way in ways}
    assert len(marks) == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_spreadsheets_unicode_text_is_named(tmp_path, encoding):
    path = tmp_path / "metadata.csv"
    path.write_bytes("\ufeffd|one\n".encode(encoding))
    with pytest.raises(SpeechError, match="metadata.csv is UTF-16, .*: save it as UTF-8"):
        read_metadata(path)


@pytest.mark.parametrize("name", ["/etc/a", "../a", "x/../../a"])
def test_ids_that_leave_the_corpus_are_refused(tmp_path, name):
    path = tmp_path / "metadata.csv"
    path.write_text(f"{name}|one\n")
    entries, problems = read_metadata(path)
    assert entries == [] and "leaves the corpus" in problems[0][1]
