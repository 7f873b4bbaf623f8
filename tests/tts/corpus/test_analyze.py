# SPDX-License-Identifier: Apache-2.0
"""One utterance at a time, in any number of processes."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.alignment import Alignment
from sniper.tts.corpus.analyze import analyze, analyze_all, pause_share
from sniper.tts.corpus.corpus import Utterance
from sniper.tts.errors import SpeechError

CONFIG = FeatureConfig()


class KillTheWorker(os.PathLike):
    """Ends the process that looks at it, as a lack of memory does."""

    def is_file(self) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    def __fspath__(self) -> str:
        return ""


def utterance(folder: Path, name: str, phones=("a", "sil"), times=(0, 0.5, 1.0)) -> Utterance:
    wav = folder / f"{name}.wav"
    if not wav.exists():
        time = np.arange(22050) / 22050
        soundfile.write(wav, 0.3 * np.sin(2 * np.pi * 150 * time), 22050)
    return Utterance(name, "text", wav, Alignment(phones, np.array(times)))


def test_a_record(tmp_path):
    record = analyze(utterance(tmp_path, "a"), CONFIG)
    assert record.problem == "" and record.n_frames == 86
    assert record.features.durations.tolist() == [43, 43]
    assert record.features.voiced > 0.9 and record.sound[0] == 22050
    assert abs(record.sound[1] - 0.3) < 1e-3 and record.sound[2] == 0


def test_a_file_of_another_length_than_its_alignment_is_not_read(tmp_path, monkeypatch):
    long = utterance(tmp_path, "long", times=(0, 0.5, 1.2))
    monkeypatch.setattr(soundfile, "read", lambda *_, **__: pytest.fail("it was read"))
    assert "lasts 1.20 s but" in analyze(long, CONFIG).problem


def test_problems_are_one_line(tmp_path):
    long = utterance(tmp_path, "long", times=(0, 0.5, 1.2))
    assert "lasts 1.20 s" in analyze(long, CONFIG).problem
    few = utterance(tmp_path, "few", times=(0, 0.5, 1.03))
    assert analyze(few, CONFIG).problem == "", "a few frames are forgiven"
    pauses = utterance(tmp_path, "pauses", phones=("sil", "."))
    assert "no known phoneme" in analyze(pauses, CONFIG).problem
    gone = Utterance("gone", "x", tmp_path / "gone.wav", tmp_path / "gone.TextGrid")
    assert "no such TextGrid" in analyze(gone, CONFIG).problem


def test_order_and_a_killed_worker(tmp_path):
    good = [utterance(tmp_path, f"u{number % 3}") for number in range(24)]
    deadly = Utterance("d", "x", KillTheWorker(), good[0].alignment)
    names = []
    with pytest.raises(SpeechError, match="a worker process was killed.*run the same command"):
        for record in analyze_all([*good, *[deadly] * 20], CONFIG, workers=2):
            names.append(record.id)
    assert names == [u.id for u in good][: len(names)] and len(names) > 0


def test_pause_share():
    phones = [("sil", "a"), ("sil", "b", "sil"), ("c",)]
    assert pause_share(phones, "sil") == (True, False)
    assert pause_share([], "sil") == (False, False)


def test_silence_long_phones_and_unexpected_errors_are_named(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "zero.wav", np.zeros(22050), 22050)
    assert "is silent" in analyze(utterance(tmp_path, "zero"), CONFIG).problem
    soundfile.write(tmp_path / "slow.wav", 0.1 * np.ones(22050 * 30), 22050)
    slow = utterance(tmp_path, "slow", phones=("a",), times=(0, 30))
    assert "the phoneme a 30.0 s" in analyze(slow, CONFIG).problem

    def broken(*_):
        raise ZeroDivisionError("no frames")

    monkeypatch.setattr("sniper.tts.corpus.analyze.extract", broken)
    problem = analyze(utterance(tmp_path, "a"), CONFIG).problem
    assert "a.wav: ZeroDivisionError: no frames" in problem
