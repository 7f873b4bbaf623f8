# SPDX-License-Identifier: Apache-2.0
"""A corpus aligned: both ways, continued, and with every fault a corpus may have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sniper.tts.aligners import jobs, run
from sniper.tts.aligners.run import align_corpus
from sniper.tts.corpus.alignment import read_textgrid
from sniper.tts.corpus.corpus import read_corpus
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.errors import NothingUsable, OtherSettings, SpeechError
from sniper.tts.text.espeak import has_espeak

DRAW, READ = run.draw, cache(run.read_variants)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Reads a dictionary of 135,000 lines once, and draws nothing: both take longer than to align.

    Where a picture is looked at, a test puts DRAW back.
    """

    def draw(path: Path, *rest: object) -> None:
        path.write_bytes(b"")

    with pytest.MonkeyPatch.context() as patch:  # `monkeypatch.undo` leaves it
        patch.setattr(run, "read_variants", READ)
        patch.setattr(run, "draw", draw)
        yield


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("spoken")
    write_demo_corpus(root, 6, seed=3, voice="en-us", progress=False)
    return root


@pytest.fixture
def corpus(spoken, tmp_path) -> Path:
    return Path(shutil.copytree(spoken, tmp_path / "corpus"))


def texts(root: Path) -> dict[str, str]:
    lines = (root / "metadata.csv").read_text(encoding="utf-8").splitlines()
    return {line.split("|")[0]: line.split("|")[1] for line in lines}


def add(root: Path, name: str, text: str, samples=None, rate: int = 22050) -> None:
    if samples is not None:
        soundfile.write(root / "wavs" / f"{name}.wav", samples, rate)
    with (root / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write(f"{name}|{text}\n")


def align(root: Path, **options):
    return align_corpus(root, root.parent / "out", workers=1, progress=False, **options)


@pytest.mark.parametrize("layout", ["vctk", "folder", "column"])
def test_several_speakers(spoken, tmp_path, layout):
    """Whatever lists the utterances, their TextGrids are found by what prepares them."""
    root = tmp_path / "corpus"
    lines = []
    for number, (name, text) in enumerate(sorted(texts(spoken).items())[:4]):
        who = ("anna", "ben")[number % 2]
        wav = root / ("wav48" if layout == "vctk" else "wavs")
        target = wav / f"{name}.wav" if layout == "column" else wav / who / f"{name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(spoken / "wavs" / f"{name}.wav", target)
        if layout == "vctk":
            (root / "txt" / who).mkdir(parents=True, exist_ok=True)
            (root / "txt" / who / f"{name}.txt").write_text(text)
        lines.append(f"{who}/{name}|{text}" if layout == "folder" else f"{name}|{text}|{who}")
    speakers = "none" if layout == "vctk" else layout
    if layout != "vctk":
        (root / "metadata.csv").write_text("\n".join(lines))
    aligned = align(root, speakers=speakers)
    assert aligned.report.aligned == 4
    found = read_corpus(root, aligned.textgrids, speakers)
    assert not found.problems
    assert sorted(u.speaker for u in found.utterances) == ["anna", "anna", "ben", "ben"]


def test_english_and_what_a_corpus_may_hold(corpus, monkeypatch):
    monkeypatch.setattr(run, "draw", DRAW)
    sound = {n: soundfile.read(corpus / "wavs" / f"{n}.wav")[0] for n in texts(corpus)}
    said = texts(corpus)
    one, two = sorted(said)[:2]
    add(corpus, "other-rate", said[one], sound[one], 22050)
    raw, _ = soundfile.read(corpus / "wavs" / f"{one}.wav")
    soundfile.write(corpus / "wavs" / "other-rate.wav", np.repeat(raw, 2), 44100)
    add(corpus, "mismatch", "These are entirely other words than anyone said here", sound[two])
    add(corpus, "silence", said[one], np.zeros(22050))
    add(corpus, "clipped", said[one], (sound[one] * 20).clip(-1, 1))
    chain = [name for name in sound for _ in range(3)]
    add(corpus, "long", " ".join(said[n] for n in chain), np.concatenate([sound[n] for n in chain]))
    add(corpus, "script", "Он не был злым.", sound[one])
    add(corpus, "missing", "Nothing is there.")
    with (corpus / "metadata.csv").open("ab") as file:
        file.write(b"no fields\n")
    aligned = align(corpus)
    report = aligned.report
    problems = dict(report.problems)
    assert "expected id|text" in problems.pop("metadata.csv:14")
    assert "is silent" in problems.pop("silence")
    assert problems.pop("script") == "words that are not in Latin letters: он, не, был, злым"
    assert "no such wav file" in problems.pop("missing")
    lines = {**dict(report.remarks), **{name: why for name, _, why in report.suspicious}}
    # Of all together, since half of a corpus may be of another rate.
    assert "other-rate" not in lines and report.other_rates == {44100: 1}
    assert "resampled: 1 of 44100 Hz; most have 22050 Hz" in report.lines()
    assert "clipped: " in lines["clipped"] and "lasts " in lines["long"]
    suspicious = {name for name, _, _ in report.suspicious}
    assert "mismatch" in suspicious or "do not lead to the end" in problems.pop("mismatch")
    assert problems == {}
    assert {path.stem for path in aligned.textgrids.iterdir()} >= {*said, "clipped", "other-rate"}
    grid = read_textgrid(aligned.textgrids / f"{one}.TextGrid")
    assert grid.boundaries[-1] == pytest.approx(len(sound[one]) / 22050, abs=1e-3)
    out = aligned.textgrids.parent
    assert (out / "alignment.png").read_bytes().startswith(b"\x89PNG")
    assert "- script: words" in (out / "report.md").read_text()
    assert all("\n" not in line for line in report.lines())


def test_only_what_is_new_or_changed_is_aligned(corpus, monkeypatch):
    first = align(corpus)
    names = sorted(texts(corpus))
    assert first.fresh == 6 and first.report.aligned == 6 and first.report.problems == []
    stamps = {p: p.stat().st_mtime_ns for p in first.textgrids.iterdir()}
    # Nothing to do needs no aligner.
    monkeypatch.setattr(run, "acoustic_model", None)
    again = align(corpus)
    assert again.fresh == 0 and again.report == first.report
    monkeypatch.undo()
    # By hand, in Praat: stays. Removed, or with another text: done again.
    corrected = first.textgrids / f"{names[0]}.TextGrid"
    corrected.write_text(corrected.read_text().replace("xmin = 0\n", "xmin = 0 \n", 1))
    by_hand = corrected.read_text()
    (first.textgrids / f"{names[1]}.TextGrid").unlink()
    text = (corpus / "metadata.csv").read_text()
    said = texts(corpus)[names[2]]
    (corpus / "metadata.csv").write_text(text.replace(said, "☃ " + said))
    third = align(corpus)
    assert third.fresh == 2 and [name for name, _ in third.report.problems] == [names[2]]
    assert corrected.read_text() == by_hand
    kept = [p for p in stamps if p.stem in names[3:]]
    assert [p.stat().st_mtime_ns for p in kept] == [stamps[p] for p in kept]
    with pytest.raises(SpeechError, match="language is 'en-us' there, 'en-gb' now"):
        align(corpus, language="en-gb")


def correct(path: Path) -> str:
    """What somebody saved in the place of a TextGrid."""
    path.write_text(path.read_text().replace("xmin = 0\n", "xmin = 0 \n", 1))
    return path.read_text()


def test_corrections_outlive_times_and_places(corpus, monkeypatch):
    """A recording that is touched, or a corpus that is copied, has not changed."""
    out = corpus.parent / "out"
    grids = align(corpus).textgrids
    first, second = sorted(texts(corpus))[:2]
    by_hand = {name: correct(grids / f"{name}.TextGrid") for name in (first, second)}

    def kept() -> bool:
        return all((grids / f"{n}.TextGrid").read_text() == text for n, text in by_hand.items())

    monkeypatch.setattr(run, "acoustic_model", None)  # nothing to do needs no aligner
    for wav in (corpus / "wavs").iterdir():
        os.utime(wav, (1, 1))
    assert align(corpus).fresh == 0 and kept()
    monkeypatch.setattr(run, "content_of", None)
    assert align(corpus).fresh == 0, "no recording is read again"
    monkeypatch.undo()
    monkeypatch.setattr(run, "acoustic_model", None)
    moved = corpus.parent / "moved"
    shutil.copytree(corpus, moved, copy_function=shutil.copy)
    assert align_corpus(moved, out, progress=False).fresh == 0 and kept()
    assert json.loads((out / "align.json").read_text())["root"] == str(moved)
    # Another corpus with the same ids.
    other = corpus.parent / "other"
    lines = (shutil.copytree(moved, other) / "metadata.csv").read_text().splitlines()
    (other / "metadata.csv").write_text("\n".join(f"{line} indeed" for line in lines))
    with pytest.raises(OtherSettings, match=f"root is '{moved}' there, '{other}' now"):
        align_corpus(other, out, progress=False)
    assert kept()


def test_corrections_of_what_is_aligned_anew_are_kept(corpus):
    grids = align(corpus).textgrids
    first, second, third = sorted(texts(corpus))[:3]
    by_hand = {name: correct(grids / f"{name}.TextGrid") for name in (first, second, third)}
    metadata = corpus / "metadata.csv"
    said = texts(corpus)[first]
    metadata.write_text(metadata.read_text().replace(said, f"So {said}"))
    (corpus / "wavs" / f"{second}.wav").write_bytes((corpus / "wavs" / f"{third}.wav").read_bytes())
    beside = grids.parent / "TextGrid.corrected"
    with pytest.warns(UserWarning, match=f"by hand gave way to others: 2, kept in {beside}"):
        assert align(corpus).fresh == 2
    assert {path.stem: path.read_text() for path in beside.iterdir()} == {
        name: by_hand[name] for name in (first, second)
    }
    assert (grids / f"{third}.TextGrid").read_text() == by_hand[third]
    assert "so" in (grids / f"{first}.TextGrid").read_text()
    with pytest.warns(UserWarning, match="by hand gave way to others: 1, kept in"):
        assert align(corpus, force=True).fresh == 6
    assert (beside / f"{third}.TextGrid").read_text() == by_hand[third]


def test_two_processes_write_what_one_does(corpus):
    one = align(corpus)
    two = align_corpus(corpus, corpus.parent / "two", workers=2, progress=False)
    for path in one.textgrids.iterdir():
        assert path.read_bytes() == (two.textgrids / path.name).read_bytes(), path.name
    assert two.report == one.report


def test_a_finished_alignment_needs_no_espeak_but_an_unfinished_one_does(corpus, monkeypatch):
    assert has_espeak()
    aligned = align(corpus)
    monkeypatch.setattr(run, "has_espeak", lambda: False)
    assert align(corpus).fresh == 0
    next(aligned.textgrids.iterdir()).unlink()
    with pytest.raises(SpeechError, match="was begun with espeak-ng, which is not there now"):
        align(corpus)
    bare = align(corpus, force=True)
    phones = {p for path in bare.textgrids.iterdir() for p in read_textgrid(path).phones}
    assert bare.fresh == 6 and not any(phone[-1].isdigit() for phone in phones)
    assert "no stress digits" in "\n".join(bare.report.lines())


def test_learned_by_phones_and_characters(corpus):
    (corpus / "metadata.csv").write_text(
        (corpus / "metadata.csv").read_text().rstrip("\n") + "\nnone|no file\n"
    )
    aligned = align(corpus, way="learned", steps=3, device="cpu")
    assert aligned.report.aligned == 6 and [n for n, _ in aligned.report.problems] == ["none"]
    out = aligned.textgrids.parent
    assert not (out / "learned" / "mels").exists()
    stamp = (out / "learned" / "aligner.pt").stat().st_mtime_ns
    next(aligned.textgrids.iterdir()).unlink()
    assert align(corpus, way="learned", steps=3).fresh == 1
    assert (out / "learned" / "aligner.pt").stat().st_mtime_ns == stamp, "trained once"
    options = {"way": "learned", "phones": "characters", "steps": 2, "workers": 1}
    letters = align_corpus(corpus, corpus.parent / "c", progress=False, **options)
    name, text = next(iter(texts(corpus).items()))
    grid = read_textgrid(letters.textgrids / f"{name}.TextGrid")
    spelt = [char for char in text.lower() if char.isalpha()]
    assert [phone for phone in grid.phones if phone != "sil"] == spelt
    assert json.loads((corpus.parent / "c" / "align.json").read_text())["phones"] == "characters"
    # A voice that is trained on them knows how to read other words.
    read = [read_corpus(corpus, made.textgrids) for made in (aligned, letters)]
    found = [(c.language, c.characters) for c in read]
    assert found == [("en-us", False), ("en-us", True)]


def test_a_mel_that_a_power_cut_left_is_made_anew(corpus, tmp_path, monkeypatch):
    wav = corpus / "wavs" / "demo-00001.wav"
    job = run.Job("demo-00001", wav, "mark", tmp_path / "grid", (), {})
    frames = run._write_mel(tmp_path, job)
    (path,) = tmp_path.glob("*.npy")
    whole = path.read_bytes()
    assert run._write_mel(tmp_path, job) == frames > 50
    for left in (b"", whole[:40], whole[:-1], bytes(len(whole))):
        path.write_bytes(left)
        assert run._write_mel(tmp_path, job) == frames and path.read_bytes() == whole
    path.unlink()
    monkeypatch.setattr(run, "read_speech", lambda *_: 1 // 0)
    assert str(run._write_mel(tmp_path, job)).startswith(
        f"unexpected error in {wav}: ZeroDivisionError: "
    )


def test_refusals(corpus, tmp_path):
    with pytest.raises(ValueError, match="knows English alone, got the language 'de'"):
        align(corpus, way="english", language="de")
    with pytest.raises(ValueError, match="align must be one of english, learned, got 'mfa'"):
        align(corpus, way="mfa")
    with pytest.raises(SpeechError, match="the lexicon .* cannot be read"):
        align(corpus, lexicon=tmp_path / "none.dict")
    for wav in (corpus / "wavs").iterdir():
        wav.unlink()
    with pytest.raises(
        NothingUsable, match="no utterance could be aligned:\n  demo-00001: no such"
    ):
        align(corpus)


def test_what_the_machine_kept_from_being_done_is_tried_again(corpus, monkeypatch):
    """A full disk, or a right that is lacking, is no fault of the utterance."""
    monkeypatch.setattr(run, "map_in_processes", _in_this_process)
    monkeypatch.setattr(jobs, "map_in_processes", _in_this_process)
    real, full = jobs.write_textgrid, {"demo-00002"}

    def write(path, text):
        if path.stem in full:
            raise OSError(28, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(jobs, "write_textgrid", write)
    first = align(corpus)
    assert [name for name, _ in first.report.problems] == ["demo-00002"]
    assert "No space left" in dict(first.report.problems)["demo-00002"]
    full.clear()
    again = align(corpus)
    assert again.fresh == 1 and not again.report.problems
    assert align(corpus).fresh == 0


def _in_this_process(function, items, workers, start=None, *args):
    if start is not None:
        start(*args)
    return map(function, items)
