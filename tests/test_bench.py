# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks run, and refuse to time what is wrong."""

from __future__ import annotations

import csv
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from speech import fit, tiny

from sniper.compare.__main__ import main as compare
from sniper.compare.worker import machine
from sniper.training.config import dump
from sniper.tts.aligners.textgrid import timed_text, write_textgrid

ROOT = Path(__file__).parent.parent


def test_microbenchmarks_run(tmp_path):
    """One of a kind, each once and untimed."""
    chosen = "(test_pass or test_layer) and 256-256-5 and 0.2 or relu_dropout or element_masks"
    options = ("-q", "--benchmark-disable", "-p", "no:cacheprovider", "-k", chosen)
    # No plugin but the one that it needs: others take seconds to load.
    only = ("-p", "pytest_benchmark.plugin")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "bench"), *only, *options],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # Three passes by two providers and three that F.linear cannot do; a module, two elementwise
    # passes and the masks by two providers each.
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^14 passed, 3 skipped, \d+ deselected", done.stdout, re.M), done.stdout


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x, p: F.dropout(F.relu(x), 1.05 * p), "relu_dropout kept: relative error"),
        (lambda x, p: F.relu(x) / (1 - p), "dropped 0.0000, expected 0.2"),
        (lambda x, p: F.dropout(F.leaky_relu(x), p), "relu_dropout fwd: relative error"),
    ],
)
def test_what_fails_its_reference_is_not_timed(monkeypatch, wrong, words):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import bench_elementwise

    monkeypatch.setitem(bench_elementwise.OPS["relu_dropout"], "ours", wrong)
    with pytest.raises(SystemExit, match=words):
        bench_elementwise.measure("relu_dropout", torch.device("cpu"), repeats=1)


def test_two_alignments_are_held_against_each_other(monkeypatch, tmp_path):
    """English in ARPAbet against espeak-ng's phones, of other words in one place."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import bench_align

    def write(name: str, words: list[tuple[str, list[tuple[str, float, float]]]]) -> Path:
        path = tmp_path / name / "TextGrid" / "a.TextGrid"
        write_textgrid(path, timed_text(words, 1.5, -1.0, 30))
        return path.parent

    cat = [("K", 0.1, 0.2), ("AE1", 0.2, 0.3), ("T", 0.3, 0.4)]
    second = [("k", 0.13, 0.21), ("ˈæ", 0.21, 0.36), ("t", 0.36, 0.5)]
    first = write("one", [("cat", cat), ("uh", [("AH1", 0.4, 0.5)]), ("ah", [("AA1", 0.6, 0.9)])])
    other = write(
        "two", [("cat", second), ("oh", [("ˈoʊ", 0.5, 0.6)]), ("ah", [("ˈɑː", 0.7, 0.9)])]
    )
    row = bench_align.between(first, other, "two words")
    # cat begins 30 ms late and ends 100 late, ah begins 100 late and ends as it does.
    assert (row["first"], row["second"], row["word_borders"]) == ("one", "two", 4)
    assert (row["median_ms"], row["within_50ms"], row["within_100ms"]) == (65.0, 0.5, 1.0)
    # The borders inside of K AE T: 10 and 60 ms late.
    assert (row["phone_borders"], row["phone_median_ms"]) == (2, 35.0)
    with pytest.raises(SystemExit, match="no TextGrids of the same words"):
        bench_align.between(first, tmp_path / "nothing", "")


@pytest.fixture
def gpu_suite(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "cache"))
    return importlib.import_module("gpu_suite")


DRY_SECTIONS = ("rates", "layers", "step", "recording", "training", "attention", "tiles")
DRY_SECTIONS += ("profile", "memory check", "torch compile", "compiled step", "drop-in")


def test_every_section_of_the_gpu_suite_runs_dry(gpu_suite, tmp_path):
    """All in one process, with kernels in Triton's interpreter; `compile` is another's work."""
    program = (
        "import sys; sys.path[:0] = [sys.argv[1], 'tests']\n"
        "import quick_interpreter, gpu_suite, pathlib\n"
        "for name in sys.argv[3:]:\n"
        "    gpu_suite.run_here(name, pathlib.Path(sys.argv[2]) / f'{name}.jsonl', dry=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "bench"), str(tmp_path), *DRY_SECTIONS],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {
        name: [json.loads(x) for x in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in DRY_SECTIONS
    }
    assert all(rows.values())
    assert {"recorded", "dense device ms", "cpu host ms"} <= set(rows["layers"][0])
    assert [r["recorded"] for r in rows["recording"][1:-1]] == [1] * 6
    assert max(rows["recording"][-1]["positions"]) > 2048
    assert {r["step"] for r in rows["step"]} == {"eager", "dense", "sparse"}
    assert all(r["running on ms"] > 0 for r in rows["step"])
    assert all("ms" in r for r in rows["tiles"])
    assert rows["drop-in"][0]["losses differ by"] < 1e-5
    listed = {s.name for s in gpu_suite.sections(tmp_path, dry=False)}
    others = {"build", "compile", "doctor", "tests", "race check"}
    assert listed == {*DRY_SECTIONS, *others}


def test_epochs_of_the_trainer_are_timed_where_there_is_speech(gpu_suite, demo_corpus, tmp_path):
    rows = tmp_path / "trainer.jsonl"
    gpu_suite.run_here("trainer", rows, dry=True, corpus=demo_corpus)
    found = [json.loads(x) for x in rows.read_text().splitlines()]
    assert [(r["arm"], r["sparsity"]) for r in found] == [
        *[("sniper", 0.8)] * 2,
        *[("sniper", 0.0)] * 2,
        *[("dense", 0.0)] * 2,
    ]
    assert all(r["frames/s"] > 0 and r["epoch s"] >= r["training s"] for r in found)
    with_corpus = gpu_suite.sections(tmp_path, False, demo_corpus)
    (section,) = (s for s in with_corpus if s.name == "trainer")
    assert section.command[-2:] == ["--corpus", str(demo_corpus)]


def test_a_section_that_hangs_or_fails_stops_no_other(gpu_suite, monkeypatch, tmp_path, capsys):
    def section(name: str, program: str, limit: float, **more):
        return gpu_suite.Section(name, [sys.executable, "-c", program], limit, **more)

    row = f"open({str(tmp_path / 'hangs.jsonl')!r}, 'w').write('{{\"a\": 1}}\\n{{\"b')"
    played = [
        section("hangs", f"import time; {row}; print('begun', flush=True); time.sleep(60)", 2),
        section("raises", "raise SystemExit('no such kernel')", 20),
        gpu_suite.Section("cannot start", ["/no/such/program"], 20),
        section("needs", "", 20, needs="no-such-sanitizer"),
        section("good", "print('done')", 20),
    ]
    monkeypatch.setattr(gpu_suite, "TOO_SHORT", 1)
    monkeypatch.setattr(gpu_suite, "sections", lambda *_: played)
    monkeypatch.setattr(gpu_suite, "facts", lambda dry: {"device": "Some GPU", "commit": "abc"})
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main(["--out", str(tmp_path)])
    assert ended.value.code == 1
    found = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert {name: r["status"] for name, r in found.items()} == {
        "hangs": "stopped after 2 s",
        "raises": "failed, exit 1",
        "cannot-start": "failed: [Errno 2] No such file or directory: '/no/such/program'",
        "needs": "left out: no-such-sanitizer is not there",
        "good": "ok",
    }
    assert found["hangs"]["rows"] == [{"a": 1}] and found["hangs"]["tail"] == ["begun"]
    assert found["raises"]["tail"] == ["no such kernel"]
    assert all(r["device"] == "Some GPU" and r["commit"] == "abc" for r in found.values())
    assert re.search(r"^good +\d+\.\d s  ok$", capsys.readouterr().out, re.M)


def test_a_kill_loses_the_running_section_alone(gpu_suite, tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu_suite.py"), "--dry", "--out"]
    suite = subprocess.Popen(
        [*command, str(tmp_path), "--only", "doctor", "training"], start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        rows = tmp_path / "training.jsonl"
        while not (rows.exists() and rows.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        suite.kill()
        suite.wait()
    assert json.loads((tmp_path / "doctor.json").read_text())["status"] == "ok"
    assert "last loss" in json.loads(rows.read_text().splitlines()[0])
    assert not (tmp_path / "training.json").exists()


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("learning")


def _small_matrix(corpus: Path, folder: Path) -> Path:
    settings = {"ema": 0.8, "epochs": 4}
    base = tiny(corpus, folder / "unused", train=settings, sparsity={"max_lr_scale": 2.0})
    (folder / "base.yaml").write_text(dump(base), encoding="utf-8")
    steps = {0: 0.6, 1: 0.3, 2: 0.0}
    matrix = {
        "config": "base.yaml",
        "seeds": [0, 1],
        "arms": [
            {"name": "dense", "sparsity": {"schedule": {0: 0.0}}},
            {"name": "blocks", "seeds": [1], "sparsity": {"schedule": steps}},
        ],
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(matrix), encoding="utf-8")
    return path


def test_what_was_learned_elsewhere_becomes_a_report(learning, demo_corpus, tmp_path, monkeypatch):
    matrix, parts = _small_matrix(demo_corpus, tmp_path), tmp_path / "parts"
    parts.mkdir()
    common = [str(matrix), "--prepared", str(demo_corpus)]
    more = ["--out", str(parts), "--device", "cpu", "--main", "blocks", "--mels", "small.blocks.*"]
    options = learning.parser().parse_args(["train", *common, *more])
    runs = learning.runs_of(options)
    assert [(r["arm"], r["seed"], r["keep"]) for r in runs] == [
        ("blocks", 1, True),
        ("dense", 0, False),
        ("dense", 1, False),
    ]
    asked = ["--out", str(parts), "--arms", "blocks,dense", "--seeds", "3"]
    others = learning.runs_of(learning.parser().parse_args(["train", *common, *asked]))
    assert [(r["arm"], r["seed"]) for r in others] == [("blocks", 3), ("dense", 3)]
    for run in runs:
        result, mels = learning.train_one(run, options)
        name = f"small.{run['arm']}.{run['seed']}"
        (parts / f"{name}.json").write_text(json.dumps(result))
        if mels:
            np.savez(parts / f"{name}.npz", **mels)
    # What a checkpoint would say: the losses are those of the trainer.
    config = learning.config_of(runs[0], [], "cpu")
    output, cut = str(tmp_path / "same"), {"data": config.data.model_copy(update={"kind": "demo"})}
    same = fit(config.model_copy(update={"output": output, **cut}))
    found = json.loads((parts / "small.blocks.1.json").read_text())
    assert [r["train"] for r in found["history"]] == [r["train"] for r in same.progress.history]
    assert found["raw"] != [r["valid"]["total"] for r in found["history"]]
    assert {len(pair) for row in found["history"] for pair in row.get("within", [])} == {3}

    stage = {"arm": "blocks", "change_seconds": 0.5, "score_seconds": 2.0}
    rates = {0.6: 400.0, 0.3: 200.0, 0.0: 100.0}
    stages = [{**stage, "sparsity": s, "frames_per_second": r} for s, r in rates.items()]
    measured = {"machine": machine(), "matrices": {str(matrix): {"dense": 80.0, "stages": stages}}}
    (tmp_path / "seconds.json").write_text(json.dumps(measured))
    out = tmp_path / "out"
    there = ["--parts", str(parts), "--seconds", str(tmp_path / "seconds.json")]
    options = learning.parser().parse_args(["assemble", *common, *there, "--output", str(out)])
    monkeypatch.setattr("sniper.compare.recognition.heard", lambda audio, features: ["the"])
    assert learning.assemble(options) == 0
    assert (parts / "small.blocks.1.sound.json").exists()
    assert learning.assemble(options) == 0  # beside what was heard the first time
    assert compare(["--config", str(matrix), "--output", str(out), "--report-only"]) == 0

    data = json.loads((out / "report/results.json").read_text())
    blocks = next(arm for arm in data["arms"] if arm["name"] == "blocks")
    (run,) = blocks["runs"]
    frames = [row["frames"] for row in found["history"]]
    spent = np.cumsum([frames[0] / 400, frames[1] / 200, frames[2] / 100, frames[3] / 100])
    assert run["seconds"] == pytest.approx(spent, abs=0.01)
    assert run["loss"] == [round(row["valid"]["total"], 5) for row in found["history"]]
    assert blocks["metrics"]["final"]["mcd"]["mean"] == pytest.approx(
        np.mean(found["metrics"]["final"]["mcd"])
    )
    assert 0 <= blocks["metrics"]["final"]["voicing_error"]["mean"] <= 1
    assert [row["epoch"] for row in blocks["setbacks"]] == [1, 2]
    assert [row["name"] for row in data["words"]] == ["recordings", "copy synthesis", "blocks"]
    assert blocks["accounts"]["changes"] == pytest.approx(1.0)
    assert blocks["accounts"]["scoring"] == pytest.approx(2.0)


def test_rates_between_stages_that_were_measured(learning, demo_corpus, tmp_path):
    matrix = _small_matrix(demo_corpus, tmp_path)
    config_of_arm = functools.partial(learning.config_of_arm, str(demo_corpus), [], str(matrix))
    stage = {"arm": "blocks", "change_seconds": 0.0, "score_seconds": 0.0}
    stages = [
        {**stage, "sparsity": s, "frames_per_second": r} for s, r in ((0.6, 400.0), (0.3, 200.0))
    ]
    rates = learning.Rates({"dense": 80.0, "stages": stages}, config_of_arm)
    blocks = config_of_arm("blocks")
    assert rates.at(blocks, 0.45) == pytest.approx(1 / ((1 / 400 + 1 / 200) / 2))
    assert rates.at(config_of_arm("dense"), 0.0) == 80.0
    with pytest.raises(ValueError, match=r"expected a sparsity in \[0.3, 0.6\], got 0.0"):
        rates.at(blocks, 0.0)


def _part(folder: Path, arm: str, rate: float, odd: float, even: float, seed: int = 0) -> None:
    losses = [even, odd, even, odd, even]
    part = {
        "matrix": "some/demo.yaml",
        "arm": arm,
        "seed": seed,
        "device": "a chip",
        "config": {"train": {"lr": rate}},
        "history": [{"valid": {"total": 9.0}}, {"valid": {"total": 1.25}}],
        "metrics": {"final": {"loss": losses, "mcd": [1.0, 2.0, 3.0, 4.0, 5.0]}},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"demo.{arm}.{seed}.json").write_text(json.dumps(part))


def test_a_learning_rate_is_chosen_on_every_other_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    learning_rates = importlib.import_module("learning_rates")
    folders = [tmp_path / name for name in ("half", "one", "twice")]
    tried = ((0.5, 1.0, 1.4), (1.0, 1.2, 1.2), (2.0, 1.1, 1.0))
    for folder, (rate, odd, even) in zip(folders, tried, strict=True):
        _part(folder, "clear", rate, odd, even)
        _part(folder, "level", rate, 1.2 - rate / 100, 1.2)  # within the scatter
    _part(folders[1], "clear", 1.0, 0.1, 0.1, seed=1)  # which does not choose
    _part(folders[1], "alone", 1.0, 1.0, 1.0)
    (folders[1] / "demo.clear.0.sound.json").write_text('{"log_f0_rmse": [0.1]}')
    parts = ["--parts", *map(str, folders)]
    assert learning_rates.main([*parts, "--out", str(tmp_path / "rates.csv")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| | 0.5 | 1 | 2 | chosen | by the others |",
        "|---|---|---|---|---|---|",
        "| demo clear | 1.000 | 1.200 | 1.100 | 0.5 | 2 |",
        "| demo level | 1.195 | 1.190 | 1.180 | 1 | 1 |",
    ]
    with (tmp_path / "rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    of_twice = {"rate": "2", "loss": "1.25", "loss_odd": "1.1", "loss_even": "1", "distortion": "3"}
    found = [row for row in rows if row["arm"] == "clear" and row["rate"] == "2"]
    assert [{key: row[key] for key in of_twice} for row in found] == [of_twice]
    with pytest.raises(SystemExit, match="expected every run once, got demo.clear.0.json twice"):
        learning_rates.main([*parts, str(folders[0]), "--out", str(tmp_path / "rates.csv")])


def test_espnet_that_is_missing_is_named():
    """In an interpreter that finds no such package, whether or not there is one."""
    program = (
        "import sys; sys.modules['espnet2'] = None; sys.argv = sys.argv[1:]; import runpy; "
        "sys.path.insert(0, 'bench'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    options = ("--espnet", "--only", "espnet", "--serve", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", program, "bench/bench_train_step.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install --no-deps espnet typeguard")
    assert done.stderr.count("\n") == 1
