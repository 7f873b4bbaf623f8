# SPDX-License-Identifier: Apache-2.0
"""Every file of ours, damaged in every way: noticed and named, or without influence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from campaigning import (
    DAMAGES,
    JSON_DAMAGES,
    TEXT,
    Damage,
    Matrix,
    Trained,
    call,
    linked,
    nothing_lost,
    refused,
    seeded,
    tree,
)
from speech import differences, everything

from sniper import BlockSparseLinear, ops
from sniper.ops import selfcheck, timings


def _cases(files: dict[str, str]) -> list[tuple[str, str]]:
    """(file, damage) for files by pattern; those in JSON have more ways to be wrong."""
    return [
        (file, damage)
        for file, kind in files.items()
        for damage in (JSON_DAMAGES if kind == "json" else DAMAGES)
    ]


def _damage(folder: Path, pattern: str, how: str) -> Path:
    """Damages the file that a pattern names."""
    (path,) = folder.glob(pattern)
    damage: Damage = JSON_DAMAGES[how]
    damage(path, seeded(pattern, how))
    return path


RUN = {
    "config.yaml": "text",
    "checkpoints/index.json": "json",
    "checkpoints/step-*/meta.json": "json",
    "checkpoints/step-*/model.safetensors": "tensors",
    "checkpoints/step-*/state.pt": "tensors",
}


@pytest.mark.parametrize("file, how", _cases(RUN))
def test_a_damaged_run_goes_on_right_or_not_at_all(
    file: str, how: str, trained: Trained, tmp_path: Path
):
    run = linked(trained.run, tmp_path / "run")
    path = _damage(run, file, how)
    before = tree(run)
    done = call("train", *trained.arguments(run))
    if done.status == 0:
        assert "resumed at epoch 2" in done.out  # no checkpoint was thrown away in silence
        assert differences(everything(run), trained.result) == []
        return
    said = refused(done, path.name, path.parent.name, statuses=(1, 2))
    nothing_lost(before, run)
    if "--fresh" in said and how in ("cut-50", "folder"):  # the remedy works
        assert call("train", *trained.arguments(run), "--fresh").status == 0
        assert differences(everything(run), trained.result) == []


SPOKEN = {k: v for k, v in RUN.items() if "config" not in k}


@pytest.mark.parametrize("file, how", _cases(SPOKEN))
def test_a_damaged_checkpoint_speaks_right_or_not_at_all(
    file: str, how: str, trained: Trained, tmp_path: Path
):
    run = linked(trained.run, tmp_path / "run")
    path = _damage(run, file, how)
    before, wav = tree(run), tmp_path / "out.wav"
    done = call("synthesize", TEXT, "--checkpoint", run, "-o", wav)
    if done.status == 0:
        assert wav.read_bytes() == trained.spoken
    else:
        refused(done, path.name, path.parent.name, str(run), statuses=(1,))
        assert not wav.exists()
    nothing_lost(before, run)


PREPARED = {"corpus.json": "json", "train.safetensors": "tensors", "valid.safetensors": "tensors"}


@pytest.mark.parametrize("file, how", _cases(PREPARED))
def test_damaged_features_train_right_or_not_at_all(
    file: str, how: str, trained: Trained, tmp_path: Path
):
    corpus, run = linked(trained.corpus, tmp_path / "corpus"), tmp_path / "run"
    path = _damage(corpus, file, how)
    before = tree(corpus)
    done = call("train", *trained.arguments(run, corpus))
    if done.status == 0:
        assert differences(everything(run), trained.result) == []
        return
    refused(done, path.name, f"{corpus} ", statuses=(2,))
    nothing_lost(before, corpus)
    assert not (run / "checkpoints").exists()
    if how in ("cut-50", "removed"):  # the remedy works
        prepare = ["demo", "--out", corpus, "--utterances", 24, "--valid", 3, "--quiet"]
        assert call("prepare", *prepare, "--workers", 1, "--force").status == 0
        assert tree(corpus) == tree(trained.corpus)


SOURCES = {
    "corpus/metadata.csv": "text",
    "corpus/alignments.jsonl": "text",
    "corpus/synthesis.json": "json",
    "corpus/wavs/demo-00007.wav": "wav",
}


@pytest.mark.parametrize("file, how", _cases(SOURCES))
def test_a_damaged_source_is_mended_or_told(file: str, how: str, trained: Trained, tmp_path: Path):
    """A preparation of the demo that was stopped after it had spoken."""
    corpus = linked(trained.corpus, tmp_path / "corpus")
    for name in PREPARED:
        (corpus / name).unlink()
    path = _damage(corpus, file, how)
    prepare = ["demo", "--out", corpus, "--utterances", 24, "--valid", 3, "--quiet"]
    done = call("prepare", *prepare, "--workers", 1)
    if done.status == 0 and "left out" not in done.out:
        whole = tree(trained.corpus)
        assert {k: v for k, v in tree(corpus).items() if k in PREPARED} == {
            k: v for k, v in whole.items() if k in PREPARED
        }
        return
    if done.status == 0:
        assert path.stem in done.out or path.name in done.out, done.out
        return
    refused(done, path.name, statuses=(1, 2))
    assert not (corpus / "corpus.json").exists()


COMPARED = {
    "runs/block/seed-0/result.json": "json",
    "runs/block/seed-0/evaluation.json": "json",
    "truth/f0.npz": "tensors",
    "runs/block/seed-0/checkpoints/index.json": "json",
}
FEW = ("empty", "cut-50", "flip-a", "zeros", "folder", "removed", "json-list", "json-null")


@pytest.mark.parametrize("file, how", [case for case in _cases(COMPARED) if case[1] in FEW])
def test_a_damaged_comparison_ends_in_the_same_figures(
    file: str, how: str, matrix: Matrix, tmp_path: Path
):
    out = linked(matrix.out, tmp_path / "out")
    path = _damage(out, file, how)
    done = call("compare", *matrix.options(out), "--sentences", "1")
    if done.status == 0:
        got, wanted = (_figures(folder) for folder in (out, matrix.out))
        assert got == wanted
        return
    assert done.status in (1, 2), done.err
    assert "Traceback" not in done.err and path.name in done.err, done.err


def _figures(out: Path) -> dict:
    """What was measured of each arm, but for times."""
    runs = {}
    for path in sorted(out.glob("runs/*/*/evaluation.json")):
        runs[path.parent.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    assert len(runs) == 2
    return runs


def _layer() -> BlockSparseLinear:
    torch.manual_seed(0)
    layer = BlockSparseLinear(32, 32, block_size=16)
    layer.set_block_mask(torch.tensor([[True, False], [False, True]]))
    return layer


@pytest.mark.parametrize("how", JSON_DAMAGES)
def test_damaged_timings_are_measured_anew(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    layer, x = _layer(), torch.randn(5, 32)
    with ops.use_backend("reference"):
        wanted = layer(x)
    layer(x)
    (path,) = tmp_path.glob("backend-times-*.json")
    JSON_DAMAGES[how](path, seeded("timings", how))
    monkeypatch.setattr(timings, "_choices", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.testing.assert_close(_layer()(x), wanted)
    assert len(said) <= 1 and all(path.name in str(w.message) for w in said)
    if how not in ("folder",):  # which nobody can replace by a file
        assert json.loads(path.read_text(encoding="utf-8"))["choices"]


@pytest.mark.parametrize("how", JSON_DAMAGES)
def test_damaged_verdicts_are_found_anew(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(selfcheck, "_machine", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    found = {"tma product": selfcheck.Verdict(True, 0.001, 2.0)}
    ran = []
    monkeypatch.setattr(selfcheck, "run", lambda *more, **known: ran.append(more) or found)

    def verdicts() -> dict:
        monkeypatch.setattr(selfcheck, "_verdicts", {})
        return selfcheck.check(torch.device("cuda", 0), "bf16", 64)

    assert verdicts() == verdicts() == found and len(ran) == 1
    (path,) = tmp_path.glob("self-check-*.json")
    JSON_DAMAGES[how](path, seeded("verdicts", how))
    assert verdicts()["tma product"].ok
    assert len(ran) == 2 or how in ("longer", "flip-a", "flip-b", "flip-c")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_dictionary(how: str, trained: Trained, tmp_path: Path):
    path = tmp_path / "user.dict"
    path.write_text("hello HH AH0 L OW1\nriver R IH1 V ER0\n" * 20, encoding="utf-8")
    DAMAGES[how](path, seeded("dictionary", how))
    root, out = trained.corpus / "corpus", tmp_path / "out"
    prepare = ["ljspeech", "--root", root, "--out", out, "--lexicon", path, "--quiet"]
    done = call("prepare", *prepare, "--workers", 1)
    if how in ("random", "folder", "loop", "removed", "zeros"):
        refused(done, path.name, statuses=(2,))
        assert not (out / "corpus.json").exists()
    else:  # a dictionary is text that a person writes: what is still a line of one counts
        assert done.status in (0, 2), done.err
        if done.status:
            refused(done, path.name, statuses=(2,))
