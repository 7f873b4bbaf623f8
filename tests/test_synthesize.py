# SPDX-License-Identifier: Apache-2.0
"""The command that speaks: files for a text, one line for what cannot be spoken."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from speech import with_lexicon
from torch._subclasses.fake_tensor import FakeTensor
from vocoders import write_jik876

from sniper.synthesize import load_speaker, main
from sniper.training import checkpoint
from sniper.tts.audio.griffin_lim import mel_to_audio
from sniper.tts.audio.vocoder import GriffinLim, HifiGanVocoder
from sniper.tts.speaker import Piece
from sniper.tts.text.espeak import Espeak

TEXT = "The grey horse slept."

pytestmark = pytest.mark.usefixtures("one_thread")


def _main(run: Path, *arguments: object) -> int:
    return main(["--checkpoint", str(run), *map(str, arguments)])


def test_text_to_wav(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    wav = tmp_path / "new folder" / "out.wav"
    assert _main(trained_run, TEXT, "-o", wav) == 0
    audio, rate = soundfile.read(wav)
    assert rate == 22050 and np.abs(audio).max() > 0
    said = capsys.readouterr()
    assert said.out == f"{wav}: {len(audio) / rate:.2f} s\n"
    assert said.err.startswith("note: sound by Griffin-Lim")


def test_a_neural_vocoder(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    reference = write_jik876(tmp_path / "voc")
    wav, mel = tmp_path / "a.wav", tmp_path / "a.npy"
    assert _main(trained_run, TEXT, "-o", wav, "--mel", mel, "--vocoder", tmp_path / "voc") == 0
    assert capsys.readouterr().err == f"note: sound by the HiFi-GAN {tmp_path}/voc\n"
    natural = torch.from_numpy(np.load(mel)) * np.log(10)
    wanted = reference(natural.clamp_min(np.log(1e-5))[None])[0].numpy()
    np.testing.assert_allclose(soundfile.read(wav)[0], wanted, atol=1e-4)
    write_jik876(tmp_path / "voc", fmin=0)
    assert _main(trained_run, TEXT, "-o", wav, "--vocoder", tmp_path / "voc") == 1
    said = capsys.readouterr().err
    assert "f_min 0 there, 80 here" in said and said.count("\n") == 1


def test_loudness_is_lowered_aloud(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def loud(self, mel: np.ndarray) -> np.ndarray:
        return np.linspace(-2, 1, len(mel) * 256, dtype=np.float32)

    monkeypatch.setattr("sniper.tts.audio.vocoder.GriffinLim.__call__", loud)
    assert _main(trained_run, TEXT, "-o", tmp_path / "a.wav") == 0
    assert capsys.readouterr().err.endswith("note: all of it lowered by 6.0 dB, or it would clip\n")
    audio = soundfile.read(tmp_path / "a.wav")[0]
    assert (audio.min(), audio.max()) == pytest.approx((-1, 0.5), abs=1e-3)


def test_text_from_standard_input(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert _main(trained_run, TEXT, "-o", tmp_path / "a.wav") == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode() + b"\n")))
    assert _main(trained_run, "-", "-o", tmp_path / "b.wav") == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-16"))))
    assert _main(trained_run, "-", "-o", tmp_path / "c.wav") == 1
    assert "error: standard input is UTF-16" in capsys.readouterr().err


def test_controls_reach_the_speaker(trained_run: Path, tmp_path: Path):
    speaker = load_speaker(trained_run)
    options = {"speed": 0.5, "pitch": -3.0, "energy": 2.0}
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert _main(trained_run, TEXT, "--mel", tmp_path / "a.npy", *flags) == 0
    expected = speaker.speak(TEXT, vocode=False, ssml=False, **options).mel
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert not np.array_equal(speaker.speak(TEXT, vocode=False, speed=0.5).mel, expected)


def test_mel_with_its_settings(trained_run: Path, tmp_path: Path):
    output = ["--mel", tmp_path / "take.1", "-o", tmp_path / "a.wav"]
    assert _main(trained_run, f"{TEXT} {TEXT}", *output) == 0
    mel = np.load(tmp_path / "take.1.npy")
    settings = json.loads((tmp_path / "take.1.json").read_text())
    assert mel.dtype == np.float32 and mel.shape[1] == settings["n_mels"] == 80
    assert settings["hop_length"] == 256 and settings["log_base"] == "10"
    audio, rate = soundfile.read(tmp_path / "a.wav")
    assert len(audio) == len(mel) * 256 + round(0.2 * rate)  # one pause


def test_a_json_of_something_else_is_kept(trained_run: Path, tmp_path: Path, capsys):
    """As that of an exported voice of the same name, which has its tokens."""
    beside = tmp_path / "voice.json"
    beside.write_text('{"inputs": {}, "outputs": {}}')
    command = ["--checkpoint", str(trained_run), TEXT, "--mel", str(tmp_path / "voice.npy")]
    assert main(command) == 1
    assert "voice.json is there and describes something else than voice.npy" in (
        capsys.readouterr().err
    )
    assert beside.read_text() == '{"inputs": {}, "outputs": {}}'
    assert not (tmp_path / "voice.npy").exists()


@pytest.mark.parametrize(
    ("output", "mel"),
    [("a.npy", "a.npy"), ("a.npy", "a"), ("both.json", "both.npy"), ("sub/../a.1.json", "a.1")],
)
def test_two_outputs_of_one_name(output: str, mel: str, tmp_path: Path, capsys, monkeypatch):
    """Before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sniper.synthesize.load_speaker", None)
    assert _main(tmp_path, TEXT, "-o", output, "--mel", mel) == 2
    said = capsys.readouterr().err
    assert said == f"error: -o {output}: --mel writes this file: give another name to one of them\n"
    (tmp_path / "link").symlink_to("m.npy")
    assert _main(tmp_path, TEXT, "-o", "link", "--mel", "m") == 2


@pytest.mark.parametrize("name", ["out.mp3", "out.FLAC", "a/b.c.ogg"])
def test_the_name_of_another_format(name: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("sniper.synthesize.load_speaker", None)
    assert _main(tmp_path, TEXT, "-o", name) == 2
    assert capsys.readouterr().err == (
        f"error: -o writes WAV: expected a name in .wav, got {name}\n"
    )


def test_any_other_name_is_a_wav(trained_run: Path, tmp_path: Path):
    for name in ("take.1", "OUT.WAV", "mp3"):
        assert _main(trained_run, TEXT, "-o", tmp_path / name, "--mel", tmp_path / "m") == 0
        assert (tmp_path / name).read_bytes()[:4] == b"RIFF"
    assert np.load(tmp_path / "m.npy").shape[1] == 80


def test_ssml(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    document = f'<speak>{TEXT}<break time="1s"/><prosody rate="200%">{TEXT}</prosody></speak>'
    options = ["--mel", tmp_path / "a.npy", "-o", tmp_path / "a.wav"]
    assert _main(trained_run, document, "--ssml", *options) == 0
    speaker = load_speaker(trained_run)
    once, fast = (speaker.speak(TEXT, vocode=False, speed=speed).mel for speed in (1.0, 2.0))
    mel = np.load(tmp_path / "a.npy")
    assert np.array_equal(mel, np.concatenate([once, fast]))
    audio, rate = soundfile.read(tmp_path / "a.wav")
    assert len(audio) == len(mel) * 256 + rate
    middle = audio[len(once) * 256 :][:rate]
    assert not middle.any(), "the break is silence"
    assert _main(trained_run, "<speak><mark/></speak>", "--ssml", "-o", tmp_path / "b.wav") == 1
    assert "<mark> is not supported" in capsys.readouterr().err
    fast_twice = '<speak><prosody rate="10">Yes.</prosody></speak>'
    assert _main(trained_run, fast_twice, "--ssml", "--speed=2", "-o", tmp_path / "b.wav") == 1
    assert "from 0.1 to 10, got 20" in capsys.readouterr().err


def test_best_and_last(trained_run: Path):
    for which in ("best", "last"):
        weights = checkpoint.load(trained_run, which).weights
        model = load_speaker(trained_run, which).model
        assert all(weights[n].equal(t) for n, t in model.state_dict().items())
        assert load_speaker(checkpoint.find(trained_run, which)).model is not None


def test_nothing_but_the_checkpoint_is_needed(trained_run: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(checkpoint.find(trained_run, "last"), moved)
    (moved / "state.pt").unlink()
    assert main([TEXT, "--checkpoint", str(moved), "-o", str(tmp_path / "a.wav")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "-o", "a.wav"], "no known phoneme in the text ''"),
        (["?!", "-o", "a.wav"], "no known phoneme"),
        (["{QQ}", "-o", "a.wav"], "not trained with these phonemes: QQ"),
        ([TEXT, "--speed=0", "-o", "a.wav"], "speed: expected a number from 0.1 to 10"),
        ([TEXT, "--pitch=nan", "-o", "a.wav"], "pitch: expected semitones"),
        ([TEXT, "--energy=-2", "-o", "a.wav"], "energy: expected a number above 0"),
        ([TEXT, "-o", "a file/out.wav"], "a file"),
        ([TEXT, "-o", "."], "Is a directory"),
        ([TEXT, "--mel", "a file/out.npy"], "a file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    said: str,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    assert _main(trained_run, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_checkpoints_that_cannot_be_used(
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    output = ["-o", str(tmp_path / "a.wav")]

    def said(folder: Path, *more: str, status: int = 1) -> str:
        assert _main(folder, TEXT, *output, *more) == status
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    assert "expected the folder of a run" in said(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint.find(trained_run), broken)
    meta = json.loads((broken / "meta.json").read_text())
    del meta["checksums"]
    for change in ({"speech": {}}, {"config": {"unknown": 1}}, {"config": {}}):
        (broken / "meta.json").write_text(json.dumps({**meta, **change}))
        assert f"{broken} does not fit this version" in said(broken)
    (broken / "model.safetensors").write_bytes(b"short")
    (broken / "meta.json").write_text(json.dumps(meta))
    assert "damaged or incomplete" in said(broken)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "expected a CUDA device, found none" in said(trained_run, "--device=cuda", status=2)


def test_nothing_to_write(capsys: pytest.CaptureFixture):
    assert main([TEXT, "--checkpoint", "runs/demo"]) == 2
    assert "nothing to write" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def bug(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("sniper.tts.speaker.split_sentences", bug)
    with pytest.raises(ValueError, match="a bug"):
        _main(trained_run, TEXT, "-o", tmp_path / "a.wav")


def test_a_missing_package_says_what_to_install(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: Callable[..., None],
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setitem(sys.modules, "yaml", None)
    forgotten("sniper.training.speaker", "sniper.training.config", "sniper.training.settings")
    assert _main(trained_run, TEXT, "-o", tmp_path / "a.wav") == 2
    assert "pip install 'sniper-tts[tts]'" in capsys.readouterr().err


def _process(run: Path, *arguments: object, **options: Any) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "sniper.synthesize", "--checkpoint", run, *arguments]
    return subprocess.Popen([*map(str, command)], **{**pipes, **options})


def test_sound_to_standard_output_and_nothing_else(trained_run: Path, tmp_path: Path):
    assert _main(trained_run, TEXT, "-o", tmp_path / "a.wav") == 0
    process = _process(trained_run, TEXT, "-o", "-", "--mel", tmp_path / "a.npy")
    sound, said = process.communicate()
    assert process.returncode == 0 and sound == (tmp_path / "a.wav").read_bytes()
    assert b"standard output: " in said and b"a.npy" in said
    # Who listens goes away.
    process = _process(trained_run, TEXT * 3, "-o", "-")
    process.stdout.close()
    assert b"Traceback" not in (said := process.stderr.read()) and b"rror" not in said, said
    assert process.wait() == 141


def test_sound_is_not_written_to_a_terminal(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert _main(trained_run, TEXT, "-o", "-") == 2
    assert "file or pipe" in capsys.readouterr().err


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_letters_beyond_ascii_in_the_c_locale(trained_run: Path, tmp_path: Path, utf8: str):
    """Also where Python is told not to help itself with UTF-8."""
    folder = tmp_path / "Grüße"
    words = ["LC_ALL=C", "LANG=C", f"PYTHONUTF8={utf8}", f"PYTHONCOERCECLOCALE={utf8}"]
    env = os.environ | dict(word.split("=") for word in words)
    text = "The “grey” horse slept…"
    for given, stdin in ((text, None), ("-", text.encode())):
        wav = folder / f"{len(given)}ä.wav"
        process = _process(trained_run, given, "-o", wav, env=env, stdin=subprocess.PIPE)
        out, said = process.communicate(stdin)
        assert process.returncode == 0, said
        assert b"Traceback" not in said and wav.exists()
        assert out.isascii() if utf8 == "0" else "ä.wav".encode() in out
    files = sorted(path.read_bytes() for path in folder.iterdir())
    assert len(files) == 2 and files[0] == files[1], "the same was read from both"


def test_how_far_a_long_text_is(trained_run: Path):
    steps = []
    speaker = load_speaker(trained_run)
    speaker.speak(f"{TEXT} {TEXT} {TEXT}", watch=lambda *step: steps.append(step))
    assert steps == [(n, 6) for n in range(1, 7)]
    speaker.speak(TEXT, vocode=False, watch=lambda *step: steps.append(step))
    assert steps[-1] == (1, 1)


@pytest.mark.parametrize("name", ["a.wav", "a.npy", "a.json"])
def test_a_full_disk_names_the_file_and_leaves_no_half_one(
    name: str,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    arguments = ["-o", tmp_path / "a.wav", "--mel", tmp_path / "a.npy"]
    assert _main(trained_run, TEXT, *arguments) == 1
    said = capsys.readouterr().err
    assert said == f"error: [Errno 28] No space left on device: '{tmp_path / name}'\n"
    assert not (tmp_path / name).exists() and not list(tmp_path.glob("*.tmp"))


def test_a_path_with_a_nul(tmp_path: Path, capsys: pytest.CaptureFixture):
    for arguments in (["x", "--checkpoint", "a\0b", "-o", "c"], ["x", "--checkpoint", "a", "-o\0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and "a path holds no NUL" in capsys.readouterr().err


def test_a_lexicon_and_words_that_nobody_knows(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    run, words = with_lexicon(trained_run, tmp_path / "run"), tmp_path / "words.dict"
    output = ["--mel", tmp_path / "a.npy"]
    assert _main(run, "The grey zebra slept, zebra.", *output) == 0
    said = capsys.readouterr().err
    assert said == "note: in no lexicon, read by espeak-ng: zebra {Z IY1 B R AH0}\n"
    words.write_text("zebra\tZ EH1 B R AH0\nazure AE1 ZH ER0\n")
    assert _main(run, "The grey zebra slept.", *output, "--lexicon", words) == 0
    assert capsys.readouterr().err == (
        f"note: {words}: 1 words added, 0 changed; 1 left out, nobody spoke their phonemes ZH: "
        "azure\n"
    )
    by_lexicon = (tmp_path / "a.npy").read_bytes()
    assert _main(run, "{DH AH0 G R EY1 Z EH1 B R AH0 S L EH1 P T sil}", *output) == 0
    assert (tmp_path / "a.npy").read_bytes() == by_lexicon
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr("sniper.tts.text.espeak.espeak", Espeak)
    assert _main(run, "The grey zebra slept.", *output) == 1
    assert "not in the pronunciation lexicon: zebra;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("zebra\n", "'zebra' has no phonemes"), ("a ə\n", "adds nothing")],
)
def test_a_lexicon_that_is_none(content, said, trained_run: Path, tmp_path: Path, capsys):
    words = tmp_path / "words.dict"
    if content:
        words.write_text(content)
    run = with_lexicon(trained_run, tmp_path / "run")
    assert _main(run, TEXT, "-o", tmp_path / "a.wav", "--lexicon", words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "a.wav").exists()


def test_one_sentence_at_a_time_is_in_memory(trained_run: Path, tmp_path: Path, monkeypatch):
    """And all of them have one gain, though the loudest comes last."""
    pieces: list[weakref.ref] = []
    most = 0

    def watched(*values) -> Piece:
        pieces.append(weakref.ref(piece := Piece(*values)))
        return piece

    def vocode(self, mel: np.ndarray) -> np.ndarray:
        nonlocal most
        gc.collect()
        most = max(most, sum(piece() is not None for piece in pieces))
        return np.full(1000, 4.0 if len(pieces) == 11 else 1.0, dtype=np.float32)

    monkeypatch.setattr("sniper.tts.speaker.Piece", watched)
    monkeypatch.setattr("sniper.tts.audio.vocoder.GriffinLim.__call__", vocode)
    wav = tmp_path / "a.wav"
    gc.freeze()  # what was there before is not looked at each time
    try:
        assert _main(trained_run, f"{TEXT} " * 12, "-o", wav, "--mel", tmp_path / "a.npy") == 0
    finally:
        gc.unfreeze()
    assert len(pieces) == 12 and most == 0, "what was spoken before is in memory"
    audio = soundfile.read(wav)[0]
    pause = round(0.2 * 22050)
    assert len(audio) == 12 * 1000 + 11 * pause
    starts = np.arange(12) * (1000 + pause)
    assert [round(audio[start], 3) for start in starts] == [0.25] * 11 + [1.0]
    speech = load_speaker(trained_run).speak(TEXT, vocode=False)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.concatenate([speech.mel] * 12))


def _alive() -> tuple[int, int]:
    """How many tensors are alive, and their bytes."""
    gc.collect()
    kind = torch.Tensor
    # By type, and not isinstance, which asks proxies what they stand for.
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]
    # Others have no size, nor have those that a compiler has left of an earlier test.
    sized = [
        t for t in tensors if t.layout is torch.strided and not issubclass(type(t), FakeTensor)
    ]
    return len(tensors), sum(tensor.nbytes for tensor in sized)


@pytest.mark.parametrize("vocoder", [GriffinLim, HifiGanVocoder])
def test_memory_does_not_grow_by_the_sentence(
    vocoder: type, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Tensors are counted; what numpy and Python hold, which is not in them, is traced."""
    alive, traced, calls, call = [], 0, 0, vocoder.__call__

    def watched(self, mel: np.ndarray) -> np.ndarray:
        nonlocal calls, traced
        calls += 1
        if calls in (5, 40):
            alive.append(_alive())
        if calls == 5:
            tracemalloc.start()
        elif calls == 40:
            traced = tracemalloc.get_traced_memory()[0]
        return call(self, mel)

    monkeypatch.setattr(vocoder, "__call__", watched)
    # Each iteration takes time, and no more memory than the one before.
    few = partial(mel_to_audio, n_iter=2)
    monkeypatch.setattr("sniper.tts.audio.vocoder.mel_to_audio", few)
    write_jik876(tmp_path / "voc")
    voices = ["--vocoder", tmp_path / "voc"] if vocoder is HifiGanVocoder else []
    wav = tmp_path / "a.wav"
    try:
        assert _main(trained_run, f"{TEXT} " * 40, "-o", wav, *voices) == 0
    finally:
        tracemalloc.stop()
    assert calls == 40 and alive[0] == alive[1]
    # The sentences between would be hundreds of KiB, each of them over 10.
    sentence = soundfile.info(wav).frames * 4 / 40
    assert sentence > 10_000 and traced < 2 * sentence
