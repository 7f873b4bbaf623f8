# SPDX-License-Identifier: Apache-2.0
"""Every example runs as its docstring says, at a small size, and prints what it should."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import sniper

ROOT = Path(__file__).parent.parent
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
SPARSITIES = re.compile(r"epoch (\d+): sparsity (\d+)%")
OUTSIDE = {"huggingface_trainer": "transformers", "lightning_callback": "lightning"}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example as its command does, in an empty folder; gives what it prints. It is in this
    process, which has loaded torch: six processes would load it six times.
    """

    def run(name: str, *arguments: str) -> str:
        if name in OUTSIDE:
            pytest.importorskip(OUTSIDE[name])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES[name]), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def sparsities(out: str) -> list[int]:
    """Percent of each epoch's line, which must count from 0."""
    rows = [(int(epoch), int(percent)) for epoch, percent in SPARSITIES.findall(out)]
    assert [epoch for epoch, _ in rows] == list(range(len(rows)))
    return [percent for _, percent in rows]


def near(found: list[int], asked: list[int]) -> bool:
    """Whole blocks come near a sparsity, not always to the percent."""
    return len(found) == len(asked) and all(
        abs(f - a) <= 3 for f, a in zip(found, asked, strict=True)
    )


def test_every_example_has_a_test_and_begins_with_its_command():
    assert len(EXAMPLES) == 6 and all(f"test_{name}" in globals() for name in EXAMPLES)
    for name, path in EXAMPLES.items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        command = docstring.split("\n")[2].strip()
        assert command == f"python examples/{name}.py"


def recorded_as_g722(path: Path, seconds: float) -> None:
    """A tone, as Debian's packages hold their prompts."""
    import av

    wave = (8000 * np.sin(np.arange(int(16000 * seconds)) * 0.2)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as file:
        stream = file.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)


def test_real_speech(tmp_path, capsys):
    """From unpacked packages; how those are fetched and unpacked is apt's and dpkg's business."""
    example = runpy.run_path(str(ROOT / "examples" / "real_speech" / "make_corpus.py"))
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US_f_Somebody"
    (sounds / "digits").mkdir(parents=True)
    recorded_as_g722(sounds / "vm-from.g722", 1.0)
    recorded_as_g722(sounds / "digits" / "7.g722", 0.5)
    (sounds / "silence").mkdir()
    recorded_as_g722(sounds / "silence" / "7.g722", 7.0)
    recorded_as_g722(sounds / "beep.g722", 0.5)
    recorded_as_g722(sounds / "blink.g722", 0.1)
    texts = tmp_path / example["TRANSCRIPTS"]
    texts.parent.mkdir(parents=True)
    said = "; notes: of none\n\nvm-from: ...from  Waldo's party: one...\ndigits/7: Seven.\n"
    said += "beep: [a tone]\nblink: Quick.\ngone: Away.\nsilence/1: ...\n"
    texts.write_bytes(gzip.compress(said.encode()))
    left_out = example["make"](tmp_path, tmp_path / "corpus")
    assert left_out == ["blink: 0.1 s", "gone: no recording"]
    assert "2 utterances in" in capsys.readouterr().out
    rows = (tmp_path / "corpus" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert rows == [
        "digits_7|Seven.|Seven.",
        "vm-from|from Waldo's party: one|from Waldo's party: one",
    ]
    assert soundfile.info(tmp_path / "corpus" / "wavs" / "digits_7.wav").duration < 0.6
    wave, rate = soundfile.read(tmp_path / "corpus" / "wavs" / "vm-from.wav")
    assert rate == 16000 and 16000 <= len(wave) < 16200
    assert abs(np.abs(wave[4000:12000]).max() - 8000 / 32768) < 0.02  # the tone, as loud as it was
    with pytest.raises(SystemExit, match="expected asterisk-core-sounds-en-g722_.*found none"):
        example["main"](["--out", str(tmp_path / "x"), "--packages", str(tmp_path)])


def test_own_loop(run, tmp_path):
    save = ["--width", "256", "--batches", "10", "--save", "loop.pt"]
    out = run("own_loop", "--epochs", "6", *save)
    assert (tmp_path / "loop.pt").is_file()
    assert near(sparsities(out), [80, 80, 40, 40, 0, 0])
    losses = [float(x) for x in re.findall(r"held-out loss ([\d.]+)", out)]
    assert losses[-1] < losses[0]


def test_own_loop_resumes_where_it_stopped(tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(EXAMPLES["own_loop"]))["main"]
    arguments = ["--epochs", "6", "--width", "256", "--batches", "10"]
    main(arguments)
    whole = capsys.readouterr().out.splitlines()
    saved = [*arguments, "--save", str(tmp_path / "loop.pt")]

    def stop_before_epoch_3(self, epoch, optimizer):
        if epoch == 3:
            raise KeyboardInterrupt
        return step(self, epoch, optimizer)

    step = sniper.Sniper.step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sniper.Sniper, "step", stop_before_epoch_3)
        main(saved)
    main(saved)
    halves = capsys.readouterr().out.splitlines()
    seconds = re.compile(r", [\d.]+ s$")
    assert [seconds.sub("", line) for line in halves] == [seconds.sub("", line) for line in whole]
    main(saved)
    assert capsys.readouterr().out == ""  # it has finished already


def test_own_model(run):
    sizes = ["--width", "128", "--layers", "1", "--batches", "6", "--length", "32"]
    out = run("own_model", "--epochs", "3", *sizes)
    assert re.search(r"encoder\.layers\.0\.linear1 .* block-sparse, 64", out)
    assert re.search(r"head .* excluded", out)
    assert re.search(r"encoder\.layers\.0\.linear1 +0\.\d+ +(cpu|dense)", out)  # explain's table
    assert near(sparsities(out), [80, 40, 0])
    assert out.endswith("the weights load into the plain model\n")


def test_digits(run):
    out = run("digits", "--epochs", "10")
    assert near(sparsities(out), [80, 80, 40, 40, 20, 20, 10, 10, 0, 0])
    assert float(re.findall(r"held-out digits ([\d.]+)%", out)[-1]) > 90


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run")
@pytest.mark.parametrize("name", ["own_loop", "own_model", "digits"])
def test_examples_ask_for_a_gpu_that_is_there(name, monkeypatch):
    main = runpy.run_path(str(EXAMPLES[name]))["main"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises((AssertionError, RuntimeError), match="CUDA|NVIDIA"):
        main([])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["own_loop", "own_model", "digits"])
def test_examples_run_on_a_gpu(name, capsys):
    runpy.run_path(str(EXAMPLES[name]))["main"](["--epochs", "5"])
    assert sparsities(capsys.readouterr().out)[-1] == 0
    assert torch.cuda.max_memory_allocated() > 0


def test_huggingface_trainer(run, tmp_path):
    sizes = ["--hidden", "128", "--utterances", "8", "--output", "run"]
    out = run("huggingface_trainer", "--epochs", "3", *sizes)
    assert sparsities(out) == [80, 40, 0]
    assert re.search(r"training loss \d+\.\d+, \d+ parameters were masked", out)
    assert (tmp_path / "run/checkpoint-3/sniper.pt").is_file()


def test_serve(trained_run, monkeypatch):
    monkeypatch.setenv("RUN", str(trained_run))
    served = runpy.run_path(str(EXAMPLES["serve"]))
    assert "/speak" in served["app"].openapi()["paths"]
    answer = served["speak"]("The grey horse slept.")
    assert answer.media_type == "audio/wav"
    audio, rate = soundfile.read(io.BytesIO(answer.body))
    assert rate == 22050 and abs(audio).max() > 0
    with pytest.raises(served["HTTPException"], match="no known phoneme"):
        served["speak"]("?!")


def test_serve_answers_over_the_network(trained_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES["serve"])],
            env={**os.environ, "RUN": str(trained_run), "VOCODER": "", "PORT": str(port)},
            stdout=written,
            stderr=written,
        )
    address = f"http://127.0.0.1:{port}/speak?"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        query = urllib.parse.urlencode({"text": "The grey horse slept.", "speed": 2})
        with urllib.request.urlopen(address + query, timeout=60) as answer:
            assert answer.headers["content-type"] == "audio/wav"
            audio, rate = soundfile.read(io.BytesIO(answer.read()))
        assert rate == 22050 and abs(audio).max() > 0
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address + "text=%3F%21", timeout=60)
        assert refused.value.code == 422
        assert "no known phoneme" in json.loads(refused.value.read())["detail"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130, -signal.SIGINT), log.read_text()
    assert "Traceback" not in log.read_text()


def test_lightning_callback(run):
    out = run("lightning_callback", "--epochs", "3", "--width", "128")
    assert sparsities(out) == [80, 40, 0]
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < losses[0]
