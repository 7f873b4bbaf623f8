# SPDX-License-Identifier: Apache-2.0
"""A run measured on held-out sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from comparing import Compared
from safetensors.torch import load_file, save_file
from vocoders import write_jik876

from sniper.compare import evaluate as module
from sniper.compare import files, recognition
from sniper.compare.evaluate import (
    METRICS,
    evaluate,
    load_truth,
    masks_by_layer,
    read_evaluation,
    read_words,
)
from sniper.training import checkpoint
from sniper.training.trainer import make_sniper
from sniper.tts.audio.vocoder import load_vocoder
from sniper.tts.corpus.dataset import FeatureDataset
from sniper.tts.model.fastspeech2 import FastSpeech2


@pytest.fixture
def valid(demo_corpus: Path) -> FeatureDataset:
    return FeatureDataset(demo_corpus / "valid.safetensors")


def test_figures_of_every_sentence(compared: Compared, valid: FeatureDataset):
    run = compared.run("dense").folder
    found = read_evaluation(run, 3)
    assert found["ids"] == valid.ids
    for which, stored in (("final", "last"), ("best", "best")):
        part = found["checkpoints"][which]
        saved = checkpoint.read_meta(checkpoint.find(run, stored))["progress"]
        assert part["epoch"] == saved["epoch"] and tuple(part["metrics"]) == METRICS
        values = {name: np.array(v, dtype=float) for name, v in part["metrics"].items()}
        assert all(v.shape == (3,) for v in values.values())
        assert np.isfinite([values[m] for m in METRICS if m != "log_f0_rmse"]).all()
        assert (values["voicing_error"] <= 1).all() and (values["mcd"] > 1).all()
        # The trainer's own figure weighs sentences by their frames.
        frames = valid.mel_lengths / valid.mel_lengths.sum()
        expected = saved["history"][-1]["valid"]["total"]
        assert (values["loss"] * frames).sum() == pytest.approx(expected, rel=0.05)
    assert read_evaluation(run, 2) is None and read_evaluation(run.parent) is None


def test_truth_is_found_out_once(
    compared: Compared,
    valid: FeatureDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listener: ModuleType,
):
    shutil.copytree(compared.out / "truth", tmp_path / "truth")
    with monkeypatch.context() as patch:
        patch.setattr(module, "mel_to_audio", None)
        truth = load_truth(tmp_path / "truth", valid, 32)
    assert len(truth.f0) == 3
    assert [len(f) for f in truth.f0] == valid.mel_lengths.tolist()
    assert all((f > 60).any() and (f[f > 0] <= 400).all() for f in truth.f0)
    voiced = np.concatenate([np.log(f[f > 0]) for f in truth.f0])
    assert abs(np.median(voiced) - valid.info.statistics.pitch_mean) < 0.05
    # Of other sentences, or cut off: found out anew.
    monkeypatch.setattr(module, "mel_to_audio", lambda mel, *_, **__: np.ones(len(mel) * 256))
    assert len(load_truth(tmp_path / "truth", valid, 2).f0) == 2
    assert len(load_truth(tmp_path / "truth", valid, 1).f0) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "other lengths", "not arrays", "no sound"])
def test_a_damaged_truth_is_found_out_anew(
    compared: Compared, valid: FeatureDataset, tmp_path: Path, damage: str
):
    shutil.copytree(compared.out / "truth", tmp_path / "truth")
    path = tmp_path / "truth" / "f0.npz"
    content, before = path.read_bytes(), load_truth(tmp_path / "truth", valid, 3)
    if damage == "cut":
        path.write_bytes(content[:3000])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "other lengths":
        short = {f"f0-{i}": f[:-1] for i, f in enumerate(before.f0)}
        files.write_arrays(path, {"ids": np.array(valid.ids[:3]), **short})
    elif damage == "not arrays":
        path.write_text("[]")
    else:
        (tmp_path / "truth" / "1.mp3").unlink()
        (tmp_path / "truth" / "2-recorded.mp3").unlink()
    after = load_truth(tmp_path / "truth", valid, 3)
    assert [f.tolist() for f in after.f0] == [f.tolist() for f in before.f0]
    assert files.read_arrays(path).keys() == {"ids", "f0-0", "f0-1", "f0-2"}
    names = sorted(p.name for p in (compared.out / "truth").glob("*.mp3"))
    assert sorted(p.name for p in (tmp_path / "truth").glob("*.mp3")) == names


def test_recordings_are_found_where_the_corpus_lay(
    compared: Compared, valid: FeatureDataset, demo_corpus: Path, tmp_path: Path
):
    """Features in one folder, the recordings that they were prepared from in another."""
    for name in ("valid.safetensors", "corpus.json"):
        shutil.copy(demo_corpus / name, tmp_path / name)
    moved = FeatureDataset(tmp_path / "valid.safetensors")
    assert module._recording(moved, 0) is None
    described = json.loads((tmp_path / "corpus.json").read_text())
    described["settings"]["corpus"]["root"] = str(demo_corpus / "corpus")
    (tmp_path / "corpus.json").write_text(json.dumps(described))
    np.testing.assert_array_equal(module._recording(moved, 0), module._recording(valid, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: [],
        lambda e: {**e, "version": 0},
        lambda e: {**e, "ids": None},
        lambda e: {**e, "ids": e["ids"][1:]},
        lambda e: {**e, "checkpoints": {"final": e["checkpoints"]["final"]}},
        lambda e: {**e, "checkpoints": {**e["checkpoints"], "best": 3}},
        lambda e: {k: v for k, v in e.items() if k != "layers"},
    ],
)
def test_a_damaged_evaluation_counts_as_none(compared: Compared, tmp_path: Path, change):
    whole = files.read_json(compared.run("dense").folder / "evaluation.json")
    files.write_json(tmp_path / "evaluation.json", whole)
    assert read_evaluation(tmp_path) == whole
    files.write_json(tmp_path / "evaluation.json", change(whole))
    assert read_evaluation(tmp_path) is None


def test_the_truth_has_no_distance_to_itself(
    compared: Compared, valid: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    truth = load_truth(compared.out / "truth", valid, 3)
    speaker = module.load_speaker(compared.run("dense").folder)
    item = valid[1]
    monkeypatch.setattr(module, "_infer", lambda *_: (truth.mel(1), item.durations))
    found = module._measure(speaker, truth, 1)
    zero = ("mcd", "log_f0_rmse", "voicing_error", "duration_ms", "length_percent")
    assert {name: found[name] for name in zero} == pytest.approx(dict.fromkeys(zero, 0), abs=1e-5)
    assert found["loss"] > 1 and found["mel_l1"] > 0.1  # those are teacher-forced


def test_samples_can_be_heard(compared: Compared, valid: FeatureDataset):
    features = valid.info.features
    for folder in (compared.out / "truth", compared.run("block", 1).folder / "samples"):
        for index in range(3):
            audio, rate = soundfile.read(folder / f"{index}.mp3")
            assert rate == features.sample_rate and np.abs(audio).max() > 0.5
    recorded, _ = soundfile.read(compared.out / "truth" / "2-recorded.mp3")
    assert len(recorded) == pytest.approx(valid.mel_lengths[2] * features.hop_length, abs=3000)


def test_another_vocoder_speaks_the_samples_anew(
    compared: Compared, valid: FeatureDataset, tmp_path: Path, listener: ModuleType
):
    write_jik876(tmp_path / "voc")
    run, voice = tmp_path / "run", str(tmp_path / "voc")
    shutil.copytree(compared.run("dense").folder, run)
    shutil.copytree(compared.out / "truth", tmp_path / "truth")
    before = (tmp_path / "truth/1.mp3").read_bytes()
    assert read_evaluation(run, 3, None) is not None and read_evaluation(run, 3, voice) is None
    truth = load_truth(tmp_path / "truth", valid, 3, voice)
    audio = load_vocoder(voice, valid.info.features)(truth.mel(1))
    heard = soundfile.read(tmp_path / "truth/1.mp3")[0][: len(audio)]
    assert np.corrcoef(heard, audio[: len(heard)])[0, 1] > 0.8
    metrics = read_evaluation(run)["checkpoints"]["best"]["metrics"]
    again = evaluate(run, truth)["checkpoints"]["best"]["metrics"]
    assert all(again[name] == pytest.approx(metrics[name], nan_ok=True) for name in METRICS)
    assert read_evaluation(run, 3, voice) is not None and read_evaluation(run, 3, None) is None
    # And back: who has nothing to do with a vocoder hears Griffin-Lim.
    load_truth(tmp_path / "truth", valid, 3)
    assert (tmp_path / "truth/1.mp3").read_bytes() == before


def test_broken_weights_give_no_figures(compared: Compared, valid: FeatureDataset, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(compared.run("dense").folder, run)
    shutil.rmtree(run / "samples")
    for path in (run / "checkpoints").rglob("model.safetensors"):
        weights = load_file(path)
        for name in weights:
            weights[name].fill_(float("nan")) if name.startswith("duration_predictor") else None
        save_file(weights, path)
        meta = json.loads(path.with_name("meta.json").read_text(encoding="utf-8"))
        del meta["checksums"]  # the weights are meant to be others
        path.with_name("meta.json").write_text(json.dumps(meta), encoding="utf-8")
    found = evaluate(run, load_truth(compared.out / "truth", valid, 3))
    metrics = found["checkpoints"]["final"]["metrics"]
    assert all(metrics[name] == [None] * 3 for name in ("mcd", "loss", "duration_ms"))
    assert np.isfinite(metrics["mel_l1"]).all()  # with true durations there is a mel
    assert read_evaluation(run)["checkpoints"]["final"]["metrics"]["mcd"] == [None] * 3
    assert not (run / "samples").exists()


def test_speech_without_an_end_is_not_measured(
    compared: Compared, valid: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    truth = load_truth(compared.out / "truth", valid, 3)
    speaker = module.load_speaker(compared.run("dense").folder)
    endless = truth.mel(0).repeat(11, axis=0)
    monkeypatch.setattr(module, "_infer", lambda *_: (endless, valid[0].durations * 11))
    found = module._measure(speaker, truth, 0)
    assert found["length_percent"] == pytest.approx(1000) and found["duration_ms"] > 100
    assert np.isnan(found["mcd"]) and np.isfinite(found["loss"])


def test_masks_by_layer(compared: Compared, valid: FeatureDataset):
    run = compared.run("block")
    layers = masks_by_layer(run.folder)
    saved = checkpoint.load(run.folder)
    model = FastSpeech2(run.config.fastspeech2_config(len(valid.info.vocabulary), 80))
    model.load_state_dict(saved.weights)
    sniper = make_sniper(model, run.config)
    state = {**saved.state["sniper"], "sparsity": 0.6, "init": {}}
    sniper.load_state_dict(state)
    expected = sniper.densities()
    assert {name: layer["density"]["0.6"] for name, layer in layers.items()} == expected
    assert min(expected.values()) < 0.5 < max(expected.values())
    for layer in layers.values():
        assert list(layer["density"]) == ["0.6", "0.3", "0"] and layer["density"]["0"] == 1.0
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(layer["masks"]["0.6"]), dtype=np.uint8))
        out, taps, width = layer["blocks"]
        assert layer["numel"] == out * taps * width * 16 * 16
        assert bits.sum() == round(layer["density"]["0.6"] * out * taps * width)
    assert masks_by_layer(compared.run("dense").folder) == {}
    assert isinstance(saved.state["sniper"]["masks"][0.6], dict) and torch.is_grad_enabled()


def test_words_that_a_recogniser_gets_wrong(
    compared: Compared, valid: FeatureDataset, listener: ModuleType
):
    """The listener of these tests hears a word in each quarter of a second."""
    known = read_words(compared.out / "truth")
    assert known["ids"] == valid.ids
    assert known["words"] == [len(text.split()) for text in valid.texts]
    features = valid.info.features

    def errors(index: int, samples: int) -> int:
        heard = ["a"] * int(samples / features.sample_rate / 0.25)
        return recognition.word_errors(recognition.words_of(valid.texts[index]), heard)

    copies = [errors(i, frames * features.hop_length) for i, frames in enumerate(valid.mel_lengths)]
    assert known["copies"] == copies
    assert known["recordings"] == [errors(i, len(module._recording(valid, i))) for i in range(3)]
    for arm in ("dense", "block"):
        folder = compared.run(arm).folder
        found = read_evaluation(folder)["checkpoints"]
        for which, stored in (("final", "last"), ("best", "best")):
            speaker = module.load_speaker(checkpoint.find(folder, stored))
            spoken = [module._infer(speaker, valid[index]) for index in range(3)]
            expected = [
                errors(i, len(mel) * features.hop_length) for i, (mel, _) in enumerate(spoken)
            ]
            assert found[which]["word_errors"] == expected


def test_where_nobody_listens_there_are_no_words(
    compared: Compared,
    valid: FeatureDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr("sniper.compare.recognition.why_not", lambda info: "no recogniser")
    run = shutil.copytree(compared.run("dense").folder, tmp_path / "run")
    truth = load_truth(tmp_path, valid, 1)
    assert "no word error rate: no recogniser" in capsys.readouterr().out
    found = evaluate(run, truth)
    assert found["checkpoints"]["final"]["word_errors"] is None
    assert read_words(tmp_path) is None
    assert read_evaluation(run, 1)["checkpoints"] == found["checkpoints"]
