# SPDX-License-Identifier: Apache-2.0
"""When an earlier preparation counts; test_prepare runs whole ones."""

import json
import os

import numpy as np
import pytest
import soundfile

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.alignment import Alignment
from sniper.tts.corpus.build import (
    Plan,
    analyze_rest,
    find_finished,
    refuse_other_settings,
)
from sniper.tts.corpus.corpus import Corpus, Utterance
from sniper.tts.corpus.workfile import WorkFile
from sniper.tts.errors import SpeechError

PLAN = Plan({"kind": "demo"}, FeatureConfig(), valid=2)


def finish(out, settings):
    content = {
        "settings": settings,
        "counts": {"train": 5},
        "seconds": 9.5,
        "problems": [["a", "b"]],
    }
    (out / "corpus.json").write_text(json.dumps(content))
    (out / "train.safetensors").touch()


def test_finished_only_with_the_same_settings(tmp_path):
    assert find_finished(tmp_path, PLAN) is None
    finish(tmp_path, PLAN.settings())
    found = find_finished(tmp_path, PLAN)
    assert (found.counts, found.problems, found.fresh) == ({"train": 5}, [("a", "b")], False)
    with pytest.raises(SpeechError, match="split.valid is 2 there, 3 now.*--force"):
        find_finished(tmp_path, Plan({"kind": "demo"}, FeatureConfig(), valid=3))


def test_force_removes_what_was_there(tmp_path):
    finish(tmp_path, {})
    (tmp_path / "other.txt").touch()
    assert find_finished(tmp_path, PLAN, force=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_work_that_a_kill_left_behind_is_removed(tmp_path, force):
    finish(tmp_path, PLAN.settings())
    for name in ("prepare.work", "prepare.work-journal"):
        (tmp_path / name).touch()
    assert (find_finished(tmp_path, PLAN, force) is None) == force
    left = {path.name for path in tmp_path.iterdir()}
    assert left == (set() if force else {"corpus.json", "train.safetensors"})


def test_damage_is_said(tmp_path):
    finish(tmp_path, PLAN.settings())
    (tmp_path / "train.safetensors").unlink()
    with pytest.raises(SpeechError, match="lacks a file.*--force"):
        find_finished(tmp_path, PLAN)
    for text in ("", "[]", '{"settings": 1}', "{"):
        (tmp_path / "corpus.json").write_text(text)
        with pytest.raises(SpeechError, match="damaged.*--force"):
            find_finished(tmp_path, PLAN)


def test_all_differences_are_listed(tmp_path):
    refuse_other_settings(tmp_path, {"a": {"b": 1}}, {"a": {"b": 1}})
    with pytest.raises(SpeechError, match="a.b is 1 there, 2 now; c is None there, 3 now"):
        refuse_other_settings(tmp_path, {"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})


def test_work_counts_by_id_and_fingerprint(tmp_path):
    alignment = Alignment(("a", "sil"), np.array([0, 0.5, 1.0]))
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(np.arange(22050) / 20), 22050)
    a, b, c = (Utterance(name, "x", tmp_path / f"{name}.wav", alignment) for name in "abc")
    work = WorkFile(tmp_path / "w", {})

    def analyzed(*utterances):
        positions = analyze_rest(Corpus([*utterances], [], True), FeatureConfig(), work, 1, False)
        assert [work.read(position).id for position in positions] == [u.id for u in utterances]
        return len(work)

    assert analyzed(a, c) == 2
    assert analyzed(a, b, c) == 3, "only the one that came back in the middle"
    assert analyzed(c) == 3
    os.utime(a.wav, ns=(1, 1))
    assert analyzed(a, b, c) == 4, "only the one that changed"
    work.close()
