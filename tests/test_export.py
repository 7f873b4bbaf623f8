# SPDX-License-Identifier: Apache-2.0
"""The command that exports: a trained model as ONNX gives the mels that the model gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from speech import make_trainer, tiny
from torch import nn
from vocoders import write_jik876

from sniper.export import main
from sniper.synthesize import load_speaker
from sniper.tts.corpus.dataset import CorpusInfo

TEXTS = ("No.", "The grey horse slept by the river, and the wind came from the hills.")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_onnx_gives_the_mels_of_the_model(trained_run: Path, tmp_path: Path, capsys, recwarn):
    import onnxruntime

    path = tmp_path / "new folder" / "it.onnx"
    assert main(["--checkpoint", str(trained_run), "-o", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{path}: ") and said.err == ""
    # Torch has some for its authors.
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]
    assert {p.name for p in path.parent.iterdir()} == {"it.onnx", "it.json"}
    session = onnxruntime.InferenceSession(path)
    about = json.loads(path.with_suffix(".json").read_text())
    assert {i.name for i in session.get_inputs()} == set(about["inputs"])
    speaker = load_speaker(trained_run)
    for text in TEXTS:
        for controls in ({}, {"speed": 0.6, "pitch": 4.0, "energy": 1.5}):
            wanted = speaker.speak(text, vocode=False, **controls)
            (phones,) = wanted.phones
            # As another program would find them in the file beside it.
            ids = [about["vocabulary"].index(phone) for phone in phones]
            tokens = np.array([[*ids, speaker.info.vocabulary.encode(phones)[-1]]])
            scalars = {"speed": 1.0, "pitch": 0.0, "energy": 1.0, **controls}
            feed = {name: np.array(value, np.float32) for name, value in scalars.items()}
            mel, durations = session.run(["mel", "durations"], {"tokens": tokens, **feed})
            assert durations.tolist() == wanted.durations[0].tolist()
            np.testing.assert_allclose(mel, wanted.mel, rtol=1e-3, atol=1e-4)


def test_with_speakers_and_a_vocoder_in_one_file(speakers_corpus: Path, tmp_path: Path):
    import onnxruntime

    torch.manual_seed(0)
    config = tiny(speakers_corpus, tmp_path / "run")
    make_trainer(config).save()
    write_jik876(tmp_path / "voc")
    path, voice = tmp_path / "it.onnx", ["--vocoder", str(tmp_path / "voc")]
    assert main(["--checkpoint", str(tmp_path / "run"), "-o", str(path), *voice]) == 0
    about = json.loads(path.with_suffix(".json").read_text())
    session = onnxruntime.InferenceSession(path)
    assert {i.name for i in session.get_inputs()} == set(about["inputs"]) >= {"speaker"}
    speaker = load_speaker(tmp_path / "run", vocoder=tmp_path / "voc")
    for text, who in zip(TEXTS, ("clara", "anna"), strict=True):
        controls = {"speed": 0.3, "pitch": 2.0, "energy": 1.5}
        wanted = speaker.speak(text, speaker=who, **controls)
        number = [each["name"] for each in about["speakers"]].index(who)
        feed = {name: np.array(value, np.float32) for name, value in controls.items()}
        feed["tokens"] = speaker.info.vocabulary.encode(wanted.phones[0])[None]
        feed["speaker"] = np.array([number])
        mel, durations, audio = session.run(["mel", "durations", "audio"], feed)
        assert durations.tolist() == wanted.durations[0].tolist()
        np.testing.assert_allclose(mel, wanted.mel, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(audio, wanted.audio, atol=1e-3)


def test_both_formats_of_one_name(trained_run: Path, tmp_path: Path, capsys, monkeypatch):
    """One description serves both where it is the same, and else the first keeps its own."""
    # What is in it has tests above, and takes seconds.
    monkeypatch.setattr("sniper.tts.model.graph.export_onnx", _writes_something)
    write_jik876(tmp_path / "voc")
    voice = ["--checkpoint", str(trained_run), "--vocoder", str(tmp_path / "voc")]
    one, two, about = (tmp_path / f"x.{ending}" for ending in ("onnx", "pt2", "json"))
    assert main([*voice, "-o", str(two)]) == 0
    before = two.read_bytes(), about.read_bytes()
    assert "audio" in json.loads(about.read_text())["outputs"]
    capsys.readouterr()
    assert main([*voice[:2], "-o", str(one)]) == 1
    assert capsys.readouterr().err == (
        f"error: {about} would no longer describe {two}: choose another name, or remove x.pt2\n"
    )
    assert (two.read_bytes(), about.read_bytes()) == before and not one.exists()
    assert main([*voice, "-o", str(one)]) == 0
    assert about.read_bytes() == before[1]
    two.unlink()
    assert main([*voice[:2], "-o", str(one)]) == 0
    assert "audio" not in json.loads(about.read_text())["outputs"]


def _writes_something(model: nn.Module, info: CorpusInfo, file: BinaryIO, *_: object) -> None:
    file.write(b"onnx")


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ("it.bin", 2, "expected a name in .onnx or .pt2, got it.bin"),
        ("a file/it.onnx", 1, "a file"),
    ],
)
def test_errors_are_one_line(
    trained_run: Path, tmp_path, capsys, monkeypatch, output, status, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    assert main(["--checkpoint", str(trained_run), "-o", output]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_no_checkpoint_and_no_exporter(trained_run: Path, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "it.onnx")
    assert main(["--checkpoint", str(tmp_path), "-o", out]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--checkpoint", str(trained_run), "-o", out]) == 2
    assert "pip install 'sniper-tts[tts,export]'" in capsys.readouterr().err
