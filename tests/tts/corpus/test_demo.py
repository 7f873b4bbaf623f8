# SPDX-License-Identifier: Apache-2.0
"""The synthetic corpus on disk."""

import json

import numpy as np
import pytest
import soundfile

from sniper.tts.corpus.corpus import read_corpus
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.errors import SpeechError


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_layout_and_when_it_is_done_again(tmp_path):
    write_demo_corpus(tmp_path, 4, seed=4, voice="en-us", progress=False)
    first = contents(tmp_path)
    corpus = read_corpus(tmp_path)
    assert len(corpus.utterances) == 4 and corpus.problems == [] and len(first) == 7
    for utterance in corpus.utterances:
        info = soundfile.info(utterance.wav)
        assert (info.samplerate, info.channels, info.subtype) == (22050, 1, "PCM_16")
        np.testing.assert_allclose(utterance.alignment.boundaries[-1], info.duration)
    assert "synthetic" in json.loads((tmp_path / "synthesis.json").read_text())["kind"]

    stamp = (tmp_path / "metadata.csv").stat().st_mtime_ns
    write_demo_corpus(tmp_path, 4, seed=4, voice="en-us", progress=False)
    assert (tmp_path / "metadata.csv").stat().st_mtime_ns == stamp, "finished work is left alone"

    # As a kill leaves it: no marker, and something half written.
    (tmp_path / "synthesis.json").unlink()
    (tmp_path / "wavs" / "demo-00002.wav").write_bytes(b"")
    (tmp_path / "wavs" / "demo-00009.wav").write_bytes(b"")
    write_demo_corpus(tmp_path, 4, seed=4, voice="en-us", progress=False)
    assert contents(tmp_path) == first, "equal bytes"


def test_errors_come_out_of_the_other_process(tmp_path):
    with pytest.raises(SpeechError, match="no voice 'nobody'"):
        write_demo_corpus(tmp_path, 2, seed=0, voice="nobody", progress=False)
    with pytest.raises(ValueError, match="1..100000"):
        write_demo_corpus(tmp_path, 0, seed=0, voice="en-us", progress=False)
