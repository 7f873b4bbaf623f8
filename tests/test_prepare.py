# SPDX-License-Identifier: Apache-2.0
"""The command: recordings with TextGrids and every fault, interruption, and refusals."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech import with_lexicon

from sniper.prepare import main, prepare_demo, prepare_ljspeech
from sniper.tts.corpus.build import refuse_other_settings
from sniper.tts.corpus.dataset import FeatureDataset, load_corpus_info
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.errors import NothingUsable, SpeechError
from sniper.tts.text.new_words import Guess
from sniper.tts.text.text import EspeakFrontend, text_to_phones

WORDS = {"hello": "HH AH0 L OW1", "world": "W ER1 L D", "again": "AH0 G EH1 N"}


def write_textgrid(path: Path, words: list[str], seconds: float) -> None:
    """A pause, the words with equally long phonemes, a pause."""
    phones = [(word, phone) for word in words for phone in WORDS[word].split()]
    times = np.linspace(0.1, seconds - 0.1, len(phones) + 1)
    intervals = [(0, 0.1, "")]
    intervals += [(times[i], times[i + 1], phone) for i, (_, phone) in enumerate(phones)]
    intervals += [(times[-1], seconds, "")]
    ends, begin, count = [(0, 0.1, "")], 0.1, 0
    for word in words:
        count += len(WORDS[word].split())
        ends.append((begin, times[count], word))
        begin = times[count]
    ends.append((begin, seconds, ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(seconds)]
    lines += ["<exists>", "2"]
    for name, tier in (("words", ends), ("phones", intervals)):
        lines += ['"IntervalTier"', f'"{name}"', "0", str(seconds), str(len(tier))]
        lines += [
            line for start, stop, label in tier for line in (str(start), str(stop), f'"{label}"')
        ]
    path.write_text("\n".join(lines) + "\n")


def add_utterance(root: Path, name: str, words: list[str], seconds=0.9, rate=16000, hz=150) -> None:
    """A buzz instead of speech: the analysis does not mind."""
    (root / "wavs").mkdir(parents=True, exist_ok=True)
    (root / "TextGrid").mkdir(exist_ok=True)
    clock = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * hz * k * clock) / k for k in range(1, 9)) * 0.2
    soundfile.write(root / "wavs" / f"{name}.wav", buzz, rate)
    write_textgrid(root / "TextGrid" / f"{name}.TextGrid", words, seconds)
    with (root / "metadata.csv").open("a") as file:
        file.write(f"{name}|{' '.join(words)}\n")


@pytest.fixture
def corpus(tmp_path) -> Path:
    root = tmp_path / "corpus"
    add_utterance(root, "a", ["hello", "world"])
    add_utterance(root, "b", ["again"], rate=22050, hz=200)
    add_utterance(root, "c", ["hello", "again"], rate=44100, hz=120)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_recordings_become_features_and_a_lexicon(corpus, tmp_path):
    prepared = prepare_ljspeech(corpus, tmp_path / "out", valid=1, workers=1, progress=False)
    assert prepared.counts == {"train": 2, "valid": 1} and prepared.problems == []
    assert sorted(contents(tmp_path / "out")) == [
        "corpus.json", "train.safetensors", "valid.safetensors"
    ]  # fmt: skip
    info = load_corpus_info(tmp_path / "out")
    assert info.vocabulary.symbols[0] == "<pad>" and "sil" in info.vocabulary
    assert info.frontend.lexicon == WORDS and info.frontend.leading_pause
    phones = text_to_phones("Hello, world!", info.frontend)
    assert phones == "sil HH AH0 L OW1 sil W ER1 L D sil".split()
    for split in ("train", "valid"):
        for item in FeatureDataset(tmp_path / "out" / f"{split}.safetensors"):
            assert len(item.mel) == round(0.9 * 22050) // 256 == item.durations.sum()


def test_every_fault_is_one_line_and_the_rest_is_done(corpus, tmp_path, capsys):
    for number, name in enumerate(["nowav", "empty", "cut", "nogrid", "badgrid", "long", "noise"]):
        add_utterance(corpus, name, ["world"], hz=120 + 10 * number)
    wavs, grids = corpus / "wavs", corpus / "TextGrid"
    (wavs / "nowav.wav").unlink()
    (wavs / "empty.wav").write_bytes(b"")
    (wavs / "cut.wav").write_bytes((wavs / "cut.wav").read_bytes()[:5000])
    (grids / "nogrid.TextGrid").unlink()
    (grids / "badgrid.TextGrid").write_text("nonsense")
    write_textgrid(grids / "long.TextGrid", ["world"], 1.5)
    noise = (grids / "noise.TextGrid").read_text()
    for phone in WORDS["world"].split():
        noise = noise.replace(f'"{phone}"', '"spn"')
    (grids / "noise.TextGrid").write_text(noise)
    with (corpus / "metadata.csv").open("a") as file:
        file.write("a|hello twice\na line without a bar\n")
    out = tmp_path / "out"
    status = main(
        ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet", "--workers", "1"]
    )
    printed = capsys.readouterr()
    assert status == 0 and "Traceback" not in printed.out + printed.err
    assert "2 train, 1 valid" in printed.out and "9 left out" in printed.out
    for words in (
        "nowav: no such wav file",
        "empty: .* is empty",
        "cut: .* is truncated",
        "nogrid: no TextGrid for it",
        "badgrid: .* TextGrid",
        "long: the alignment lasts 1.50 s",
        "noise: .* no known phoneme",
        "metadata.csv:11: the id a came before",
        "metadata.csv:12: expected id|text",
    ):
        name, _, reason = words.partition(": ")
        (line,) = [line for line in printed.out.splitlines() if line.startswith(f"  {name}: ")]
        assert all(part in line for part in reason.split(".*")), line
    # A second run does nothing and says the same.
    assert main(["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet"]) == 0
    assert "prepared already" in (again := capsys.readouterr().out) and "9 left out" in again


def test_nothing_usable_is_status_1_and_can_be_mended(corpus, tmp_path, capsys):
    kept = {path: path.read_bytes() for path in (corpus / "wavs").iterdir()}
    for path in kept:
        path.write_bytes(b"")
    arguments = ["ljspeech", "--root", str(corpus), "--out", str(tmp_path / "o"), "--quiet"]
    arguments += ["--workers", "1"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {corpus}: no usable utterance") and error.count("is empty") == 3
    )
    for path, data in kept.items():
        path.write_bytes(data)
    assert main(arguments) == 0
    with pytest.raises(NothingUsable):
        (corpus / "metadata.csv").write_text("")
        prepare_ljspeech(corpus, tmp_path / "o2", workers=1, progress=False)


def test_files_do_not_depend_on_workers(corpus, tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        prepare_ljspeech(corpus, out, valid=1, workers=workers, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_kill_9_and_run_again_equals_an_uninterrupted_run(tmp_path):
    root = tmp_path / "corpus"
    for number in range(30):
        add_utterance(root, f"u{number:02d}", ["hello"], seconds=0.7, hz=100 + number)
    prepare_ljspeech(root, tmp_path / "whole", workers=1, progress=False)
    out = tmp_path / "killed"
    work = out / "prepare.work"
    command = [sys.executable, "-m", "sniper.prepare", "ljspeech", "--root", root, "--out", out]
    seen = -1
    for workers, more in (("2", 100_000), ("1", 400_000)):
        process = subprocess.Popen(
            [*map(str, command), "--workers", workers, "--quiet"], stderr=subprocess.PIPE
        )
        # Killed as soon as it has done some work (a mel frame is 320 bytes), wherever it then is.
        while process.poll() is None and not (work.exists() and work.stat().st_size > more):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)  # its workers hold the pipe open until they end too
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
        assert not (out / "corpus.json").exists() and work.stat().st_size > max(seen, 0)
        seen = work.stat().st_size
    with work.open("ab") as file:
        file.write(b"\x07" * 100)  # a torn record
    prepared = prepare_ljspeech(root, out, workers=1, progress=False)
    assert prepared.fresh and contents(out) == contents(tmp_path / "whole")


def _killed(root: Path, out: Path, size: int) -> None:
    """Begin a preparation and kill it when its work has so many bytes."""
    command = [sys.executable, "-m", "sniper.prepare", "ljspeech", "--root", root, "--out", out]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "1", "--quiet"], stderr=subprocess.PIPE
    )
    work = out / "prepare.work"
    while process.poll() is None and not (work.exists() and work.stat().st_size > size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"


def test_taken_away_killed_and_put_back_equals_an_uninterrupted_run(tmp_path):
    root, out = tmp_path / "corpus", tmp_path / "out"
    for number in range(16):
        add_utterance(root, f"u{number:02d}", ["hello"], seconds=0.7, hz=100 + number)
    prepare_ljspeech(root, tmp_path / "whole", workers=1, progress=False)
    grid, aside = root / "TextGrid" / "u03.TextGrid", tmp_path / "u03.TextGrid"
    grid.rename(aside)
    _killed(root, out, 120_000)
    aside.rename(grid)
    prepared = prepare_ljspeech(root, out, workers=1, progress=False)
    assert prepared.problems == [] and contents(out) == contents(tmp_path / "whole")


def test_what_changes_between_two_runs_is_analysed_anew(tmp_path):
    root, out = tmp_path / "corpus", tmp_path / "out"
    for number in range(16):
        add_utterance(root, f"u{number:02d}", ["hello"], seconds=0.7, hz=100 + number)
    _killed(root, out, 200_000)
    soundfile.write(root / "wavs" / "u00.wav", 0.2 * np.sin(np.arange(11200) / 10), 16000)
    write_textgrid(root / "TextGrid" / "u01.TextGrid", ["world"], 0.7)
    (root / "metadata.csv").write_text(
        (root / "metadata.csv").read_text().replace("u02|hello", "u02|Hello!")
    )
    # The same command: what the metadata say is part of the settings of a finished corpus only.
    (out / "prepare.work").rename(tmp_path / "kept")
    prepare_ljspeech(root, tmp_path / "whole", workers=1, progress=False)
    (tmp_path / "kept").rename(out / "prepare.work")
    prepare_ljspeech(root, out, workers=1, progress=False)
    assert contents(out) == contents(tmp_path / "whole")


def test_other_settings_are_refused_with_the_difference(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    base = ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet", "--workers", "1"]
    assert main(base) == 0
    before = contents(out)
    assert main([*base, "--hop-length", "128", "--valid", "2"]) == 2
    error = capsys.readouterr().err
    assert "features.hop_length is 256 there, 128 now" in error
    assert "split.valid is None there, 2 now" in error and "--force" in error
    assert contents(out) == before
    assert main([*base, "--hop-length", "128", "--force"]) == 0
    assert load_corpus_info(out).features.hop_length == 128
    with (corpus / "metadata.csv").open("a") as file:
        file.write("new|line\n")
    assert main([*base, "--hop-length", "128"]) == 2
    assert "corpus.metadata_sha256" in capsys.readouterr().err


def test_strict_fails_where_the_limits_find_no_voice(corpus, tmp_path, capsys):
    base = ["ljspeech", "--root", str(corpus), "--quiet", "--workers", "1", "--strict"]
    limits = ["--f0-min", "3000", "--f0-max", "4000"]
    assert main([*base, "--out", str(tmp_path / "high"), *limits]) == 2
    assert "health: no voiced frame between 3000 and 4000 Hz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.safetensors", "valid.safetensors", "corpus.json"])
def test_a_full_disk_is_named_and_the_work_is_kept(corpus, tmp_path, capsys, monkeypatch, name):
    arguments = ["ljspeech", "--root", str(corpus), "--out", str(tmp_path / "o"), "--quiet"]
    arguments += ["--workers", "1"]

    def full(source, target, replace=os.replace):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said == f"error: [Errno 28] No space left on device: '{tmp_path / 'o' / name}'\n"
    assert not list((tmp_path / "o").glob("*.tmp")) and (tmp_path / "o" / "prepare.work").exists()
    with monkeypatch.context() as patch:
        patch.setattr("sniper.tts.corpus.analyze.analyze", lambda *_: pytest.fail("done before"))
        assert main(arguments) == 0


def test_what_is_unusual_is_named_and_strict_makes_it_an_error(tmp_path, capsys):
    root = tmp_path / "corpus"
    for number in range(10):
        add_utterance(root, f"u{number}", ["hello"], hz=120 + 5 * number)
    sound, rate = soundfile.read(root / "wavs" / "u3.wav")
    soundfile.write(root / "wavs" / "u3.wav", sound * 3.9 / np.abs(sound).max(), rate, "FLOAT")
    soundfile.write(root / "wavs" / "u4.wav", np.zeros(len(sound)), rate)
    noise = np.random.default_rng(0).normal(0, 0.1, len(sound))
    soundfile.write(root / "wavs" / "u5.wav", noise, rate)
    base = ["ljspeech", "--root", str(root), "--quiet", "--workers", "1"]
    for strict, status in ((["--strict"], 2), ([], 0)):
        assert main([*base, "--out", str(tmp_path / "o"), *strict]) == status
        said = capsys.readouterr()
        assert "u4: " in said.out and "is silent" in said.out
        lines = [line for line in said.err.splitlines() if line.startswith("health: ")]
        for words in ("samples outside -1 to 1 in 1 of 9 utterances (u3)", "u3 alone moves"):
            assert any(words in line for line in lines), lines
        assert any("voiced" in line and "(u5)" in line for line in lines), lines
        assert "shortest 0.89 s" in said.out and "9 resampled from 16000 Hz; F0 " in said.out
        assert ("--strict" in said.err) == bool(strict)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sample-rate", "1000000000"], "sample_rate must be at most 1000000"),
        (["--sample-rate", "1"], "need 0 <= f_min < f_max <= sample_rate / 2"),
        (["--n-fft", str(10**12)], "n_fft must be at most 65536"),
        (["--n-mels", str(10**9)], "n_mels must be at most 4096"),
        (["--f0-min", "0.0001"], "f0_min must be at least 1 Hz"),
        (["--floor", "nan"], "floor must be a finite number"),
        (["--workers", "100000"], "workers: expected 1 to "),
        (["--valid", str(10**30)], "leave nothing to train on"),
    ],
)
def test_limits_are_checked_where_they_enter(corpus, tmp_path, capsys, arguments, said):
    out = tmp_path / "o"
    base = ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet"]
    assert main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(out.glob("*.safetensors"))


def test_a_nul_in_a_path(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ljspeech", "--root", str(corpus), "--out", "a\0b"])
    assert stop.value.code == 2 and "a path holds no NUL" in capsys.readouterr().err
    for wrong in ({"out": "a\0"}, {"textgrids": "\0"}, {"lexicon": "l\0"}, {"root": "r\0"}):
        options = {"root": corpus, "out": tmp_path / "o", **wrong}
        with pytest.raises(SpeechError, match=f"{next(iter(wrong))}: a path holds no NUL"):
            prepare_ljspeech(**options, progress=False)


def test_unfinished_work_with_other_settings_is_refused_too(corpus, tmp_path):
    from sniper.tts.corpus.workfile import WorkFile

    out = tmp_path / "out"
    out.mkdir()
    WorkFile(out / "prepare.work", {"features": {"n_mels": 40}}).close()
    with pytest.raises(SpeechError, match="features.n_mels is 40 there, 80 now"):
        prepare_ljspeech(corpus, out, workers=1, progress=False)
    prepare_ljspeech(corpus, out, workers=1, progress=False, force=True)


def test_a_corpus_aligned_by_characters_reads_other_words(corpus, tmp_path):
    for path in (corpus / "TextGrid").iterdir():
        text = path.read_text()
        for phone in sorted({p for phones in WORDS.values() for p in phones.split()}):
            text = text.replace(f'"{phone}"', f'"{phone[0].lower()}"')
        path.write_text(text)
    (corpus / "align.json").write_text(
        '{"align": "learned", "language": "xx", "phones": "characters"}'
    )
    prepare_ljspeech(corpus, tmp_path / "out", workers=1, progress=False)
    info = load_corpus_info(tmp_path / "out")
    assert info.frontend.language == "xx" and info.frontend.characters
    guess = Guess(info.frontend, info.vocabulary)
    assert guess("hut") is None and guess("whoa") == ["w", "h", "o", "a"]


def test_the_language_of_given_textgrids(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet", "--workers", "1"]
    assert main(command) == 0 and load_corpus_info(out).frontend.language is None
    assert main([*command, "--language", "en-us"]) == 0
    assert main([*command, "--language", "de"]) == 2
    assert "language is None there, 'de' now" in capsys.readouterr().err
    assert main([*command, "--language", "de", "--force"]) == 0
    assert load_corpus_info(out).frontend.language == "de"
    grids = ["--textgrids", str(corpus / "TextGrid"), "--phones", "characters"]
    command[4] = str(tmp_path / "other")
    assert main([*command, *grids, "--language", "xx"]) == 0
    frontend = load_corpus_info(tmp_path / "other").frontend
    assert (frontend.language, frontend.characters) == ("xx", True)


def test_textgrids_are_the_same_however_their_folder_is_named(corpus, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {"workers": 1, "progress": False}
    monkeypatch.chdir(tmp_path)
    for textgrids in ("corpus/TextGrid", "TextGrid", corpus / "TextGrid"):
        prepare_ljspeech(corpus, out, textgrids=textgrids, **options)
    settings = json.loads((out / "corpus.json").read_text())["settings"]
    assert settings["corpus"]["textgrids"] == str(corpus / "TextGrid")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SpeechError, match="corpus.textgrids is '/.*TextGrid' there"):
        prepare_ljspeech(corpus, out, textgrids="elsewhere", **options)
    # As earlier versions kept it.
    now = {"corpus": {"root": str(corpus), "textgrids": str(corpus / "TextGrid")}}
    refuse_other_settings(out, {"corpus": {**now["corpus"], "textgrids": "TextGrid"}}, now)


def test_a_user_lexicon_goes_first(corpus, tmp_path):
    path = tmp_path / "user.dict"
    path.write_text("hello HH OW1\nhello L OW1\nhole HH OW1 L\nalien X Y\n")
    options = {"lexicon": path, "workers": 1, "progress": False}
    made = prepare_ljspeech(corpus, tmp_path / "out", **options)
    lexicon = load_corpus_info(tmp_path / "out").frontend.lexicon
    assert lexicon["hello"] == "HH OW1" and lexicon["hole"] == "HH OW1 L"
    assert "alien" not in lexicon, "the model cannot say X or Y"
    assert "nobody spoke their phonemes X Y: alien" in made.summary


def test_words_are_added_without_looking_at_audio_again(
    corpus, trained_run, tmp_path, capsys, monkeypatch
):
    out, words, run = tmp_path / "out", tmp_path / "user.dict", tmp_path / "run"
    words.write_text("hole HH OW1 L\nhello HH OW1\nalien X Y\n")
    arguments = ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet", "--workers=1"]
    assert main(arguments) == 0
    features = {k: v for k, v in contents(out).items() if k != "corpus.json"}
    capsys.readouterr()
    assert main([*arguments, "--lexicon", str(words)]) == 2
    assert "or add its words with python -m sniper.prepare lexicon" in capsys.readouterr().err
    monkeypatch.setattr("sniper.tts.corpus.build.analyze_all", None)
    assert main(["lexicon", str(words), "--to", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"{out}: 1 words added, 1 changed; 1 left out, nobody spoke their phonemes X Y: alien\n"
    )
    lexicon = load_corpus_info(out).frontend.lexicon
    assert lexicon == WORDS | {"hole": "HH OW1 L", "hello": "HH OW1"}
    assert {k: v for k, v in contents(out).items() if k != "corpus.json"} == features
    assert main(arguments) == 0 and "was prepared already" in capsys.readouterr().out
    with_lexicon(trained_run, run)
    assert main(["lexicon", str(words), "--to", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run}: 2 words added, 0 changed; 1 left out")
    for folder, said in (
        (tmp_path / "none", "expected the folder of a prepared corpus"),
        (trained_run, "espe"),
    ):
        assert main(["lexicon", str(words), "--to", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert main(["lexicon", str(tmp_path / "none.dict"), "--to", str(out)]) == 2
    assert "none.dict cannot be read" in capsys.readouterr().err


def test_the_split_is_stable_and_sized(tmp_path):
    root = tmp_path / "corpus"
    for number in range(12):
        add_utterance(root, f"u{number}", ["world"], seconds=0.4)
    prepare_ljspeech(root, tmp_path / "o", valid=3, test=2, workers=1, progress=False)
    sets = {name: FeatureDataset(tmp_path / "o" / f"{name}.safetensors").ids
            for name in ("train", "valid", "test")}  # fmt: skip
    assert [len(ids) for ids in sets.values()] == [7, 3, 2]
    assert len(set().union(*sets.values())) == 12
    # One utterance less moves no other out of the held-out set.
    (root / "wavs" / f"{sets['train'][0]}.wav").unlink()
    prepare_ljspeech(root, tmp_path / "p", valid=3, test=2, workers=1, progress=False)
    assert FeatureDataset(tmp_path / "p" / "valid.safetensors").ids == sets["valid"]
    with pytest.raises(SpeechError, match="leave nothing to train on"):
        prepare_ljspeech(root, tmp_path / "q", valid=12, workers=1, progress=False)


def test_demo_twice_is_the_same_and_its_corpus_prepares_as_any_other(tmp_path):
    for name in ("one", "two"):
        prepare_demo(tmp_path / name, utterances=6, seed=3, workers=1, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    info = load_corpus_info(tmp_path / "one")
    assert info.frontend == EspeakFrontend("en-us") and "synthetic" in info.speech
    again = prepare_ljspeech(
        tmp_path / "one" / "corpus", tmp_path / "three", seed=3, workers=1, progress=False
    )
    assert again.counts == {"train": 5, "valid": 1}
    assert (
        contents(tmp_path / "three")["train.safetensors"]
        == (contents(tmp_path / "one")["train.safetensors"])
    )


@pytest.mark.parametrize("module", ["espeakng_loader", "pyworld", "soundfile"])
def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--out", str(tmp_path / "o"), "--utterances", "2", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'sniper-tts[" in error


def test_the_command_line(tmp_path, capsys):
    code = (
        "import sys, sniper.prepare as p\n"
        "names = 'soundfile', 'pyworld', 'praatio', 'espeakng_loader', 'soxr'\n"
        "assert not [name for name in names if name in sys.modules]\n"
        "p.main(['--help'])"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "demo" in shown.stdout and "Exit status" in shown.stdout
    with pytest.raises(SystemExit) as caught:
        main(["ljspeech", "--help"])
    assert caught.value.code == 0 and "--textgrids" in capsys.readouterr().out
    assert main(["ljspeech", "--root", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"error: no such folder: {tmp_path / 'no'}\n"


def test_arguments_that_cannot_work(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "a"), "--f-max", "20000"]) == 2
    assert "f_max 20000" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "b"), "--utterances", "2"]) == 2
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--out", "x", "--valid", "-1"])
    assert caught.value.code == 2


def test_files_that_changed_after_a_finished_preparation_are_named(corpus, tmp_path, capsys):
    out, wav = tmp_path / "out", corpus / "wavs" / "a.wav"
    add_utterance(corpus, "later", ["world"])
    (corpus / "TextGrid" / "later.TextGrid").rename(tmp_path / "later")
    arguments = ["ljspeech", "--root", str(corpus), "--out", str(out), "--quiet", "--workers", "1"]
    assert main(arguments) == 0
    before = contents(out)
    # Touched, or copied with another time: what is in it counts.
    os.utime(wav, ns=(1, 1))
    assert main(arguments) == 0 and "was prepared already" in capsys.readouterr().out
    sound, rate = soundfile.read(wav)
    soundfile.write(wav, sound[::-1], rate)
    write_textgrid(corpus / "TextGrid" / "b.TextGrid", ["world"], 0.9)
    (corpus / "wavs" / "c.wav").unlink()
    (tmp_path / "later").rename(corpus / "TextGrid" / "later.TextGrid")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {out} was prepared from other recordings or alignments: 3 changed (a, b, c); "
        "1 new (later). Choose another --out, or make it anew with --force\n"
    )
    assert contents(out) == before
    assert main([*arguments, "--force"]) == 0
    (corpus / "TextGrid" / "a.TextGrid").unlink()
    assert main(arguments) == 2 and "1 gone (a)." in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0 and main(arguments) == 0


def test_a_corpus_that_was_moved_is_the_same(corpus, tmp_path, capsys, monkeypatch):
    from sniper.tts.corpus import build

    out, moved = tmp_path / "out", tmp_path / "moved"
    arguments = ["ljspeech", "--out", str(out), "--quiet", "--workers", "1", "--root"]
    with monkeypatch.context() as patch:
        patch.setattr(build, "finish", lambda *_: 1 / 0)  # it is stopped when all is analysed
        with pytest.raises(ZeroDivisionError):
            main([*arguments, str(corpus)])
    shutil.copytree(corpus, moved, copy_function=shutil.copy)
    with monkeypatch.context() as patch:
        patch.setattr(build, "analyze_all", lambda rest, *_: iter([1 / 0] if rest else []))
        assert main([*arguments, str(moved)]) == 0, "nothing is analysed again"
    before = contents(out)
    assert main([*arguments, str(corpus)]) == 0 and contents(out) == before
    assert "was prepared already" in capsys.readouterr().out
    # Elsewhere a size and a time say nothing.
    wav = corpus / "wavs" / "a.wav"
    at, sound = wav.stat().st_mtime_ns, soundfile.read(wav)
    soundfile.write(wav, sound[0][::-1], sound[1])
    os.utime(wav, ns=(at, at))
    os.utime(moved / "wavs" / "a.wav", ns=(at, at))
    assert main([*arguments, str(corpus)]) == 2
    assert (
        "other recordings or alignments: 1 changed (a); corpus.root is" in capsys.readouterr().err
    )
    # With other texts it is another corpus, whose folder is named.
    with (corpus / "metadata.csv").open("a") as file:
        file.write("new|line\n")
    assert main([*arguments, str(corpus)]) == 2
    assert f"corpus.root is '{moved}' there, '{corpus}' now" in capsys.readouterr().err
    assert contents(out) == before


def test_unfinished_work_of_another_corpus_is_refused(corpus, tmp_path, capsys, monkeypatch):
    from sniper.tts.corpus import build

    out, other = tmp_path / "out", tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(build, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_ljspeech(corpus, out, workers=1, progress=False)
    add_utterance(other, "a", ["again"])
    with pytest.raises(SpeechError, match=f"corpus.root is '{corpus}' there, '{other}' now"):
        prepare_ljspeech(other, out, workers=1, progress=False)
    assert prepare_ljspeech(corpus, out, workers=1, progress=False).fresh


def test_a_file_that_changes_during_the_analysis_is_another_afterwards(
    corpus, tmp_path, monkeypatch
):
    from sniper.tts.corpus import analyze

    def edited(path, config, read=analyze.read_sound):
        sound = read(path, config)
        if path.name == "b.wav":
            soundfile.write(path, 0.9 * sound.samples, config.sample_rate)
        return sound

    with monkeypatch.context() as patch:
        patch.setattr(analyze, "read_sound", edited)
        prepare_ljspeech(corpus, tmp_path / "out", workers=1, progress=False)
    with pytest.raises(SpeechError, match=r"other recordings or alignments: 1 changed \(b\)"):
        prepare_ljspeech(corpus, tmp_path / "out", workers=1, progress=False)


def test_a_preparation_from_before_sources_were_kept_is_taken_on_trust(corpus, tmp_path):
    out = tmp_path / "out"
    prepare_ljspeech(corpus, out, workers=1, progress=False)
    about = json.loads((out / "corpus.json").read_text())
    del about["sources"], about["checksums"]
    (out / "corpus.json").write_text(json.dumps(about))
    os.utime(corpus / "wavs" / "a.wav", ns=(1, 1))
    (corpus / "wavs" / "b.wav").unlink()
    assert not prepare_ljspeech(corpus, out, workers=1, progress=False).fresh
    for wrong in ({"a": "x"}, ["a"], {"a": 3}):
        (out / "corpus.json").write_text(json.dumps({**about, "sources": wrong}))
        with pytest.raises(SpeechError, match=r"corpus.json is damaged .* --force"):
            prepare_ljspeech(corpus, out, workers=1, progress=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--textgrids", "typo"], "no such folder of TextGrids: typo"),
        (["--valid", "2000"], "2000 held-out utterances of 3"),
        (["--lexicon", "bad.dict"], "bad.dict:1: 'hello' has no phonemes"),
    ],
)
def test_force_removes_nothing_before_it_knows_that_it_can(
    corpus, tmp_path, capsys, monkeypatch, wrong, said
):
    monkeypatch.chdir(tmp_path)
    Path("bad.dict").write_text("hello\n")
    command = ["ljspeech", "--root", str(corpus), "--out", "out", "--workers", "1", "--quiet"]
    assert main(command) == 0
    before = contents(tmp_path / "out")
    assert main([*command, "--force", *wrong]) == 2
    assert said in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_force_of_the_demo_and_of_a_share_removes_nothing_either(corpus, tmp_path, capsys):
    demo = ["demo", "--out", str(tmp_path / "demo"), "--utterances", "4"]
    demo += ["--quiet", "--workers", "1"]
    assert main(demo) == 0
    before = contents(tmp_path / "demo")
    for wrong in (["--valid", "9"], ["--voice", "typo"]):
        assert main([*demo, "--force", *wrong]) == 2
        assert contents(tmp_path / "demo") == before
    share = ["ljspeech", "--root", str(corpus), "--out", str(tmp_path / "out")]
    share += ["--quiet", "--workers", "1"]
    assert main([*share, "--shard", "1/2"]) == 0
    kept = {p: p.read_bytes() for p in (tmp_path / "out/shards").rglob("*") if p.is_file()}
    assert main([*share, "--shard", "1/2", "--force", "--textgrids", "typo"]) == 2
    assert "no such folder of TextGrids: typo" in capsys.readouterr().err
    assert kept == {p: p.read_bytes() for p in kept}


def test_force_keeps_alignments_that_were_corrected(tmp_path, capsys, monkeypatch):
    root, out = tmp_path / "corpus", tmp_path / "out"
    write_demo_corpus(root, 4, seed=3, voice="en-us", progress=False)
    (root / "alignments.jsonl").unlink()
    command = ["ljspeech", "--root", str(root), "--out", str(out), "--workers", "1", "--quiet"]
    command += ["--valid", "1"]
    assert main(command) == 0
    grids = sorted((out / "alignment/TextGrid").glob("*.TextGrid"))
    corrected = grids[0].read_text().replace('"sil"', '""')
    grids[0].write_text(corrected + "\n")
    others = {path: path.stat().st_mtime_ns for path in grids}
    assert main(command) == 2
    assert "make it anew with --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert {path: path.stat().st_mtime_ns for path in grids} == others
    assert grids[0].read_text() == corrected + "\n"
    # Another alignment is asked for: that is made.
    words = tmp_path / "words.dict"
    words.write_text("zebra Z IY1 B R AH0\n")
    assert main([*command, "--lexicon", str(words), "--force"]) == 0
    assert {path: path.stat().st_mtime_ns for path in grids} != others


def test_ctrl_c_says_how_to_go_on(corpus, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sniper.tts.corpus.prepare.build", stopped)
    command = ["ljspeech", "--root", str(corpus), "--out", str(tmp_path / "out"), "--quiet"]
    for more, said in (([], "the same command continues"), (["--force"], "without --force")):
        assert main([*command, *more]) == 130
        assert said in capsys.readouterr().err
