# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks run, and refuse to time what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sniper.tts.aligners.textgrid import timed_text, write_textgrid

ROOT = Path(__file__).parent.parent


def test_microbenchmarks_run(tmp_path):
    """One of a kind, each once and untimed."""
    chosen = "(test_pass or test_layer) and 256-256-5 and 0.2 or relu_dropout or element_masks"
    options = ("-q", "--benchmark-disable", "-p", "no:cacheprovider", "-k", chosen)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "bench"), *options],
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
DRY_SECTIONS += ("profile", "memory check", "compiled step")


def test_every_section_of_the_gpu_suite_runs_dry(gpu_suite, tmp_path):
    """All in one process, with kernels in Triton's interpreter; `compile` is another's work."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu_suite, pathlib\n"
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
    assert all("ms" in r for r in rows["tiles"])
    listed = {s.name for s in gpu_suite.sections(tmp_path, dry=False)}
    others = {"build", "compile", "doctor", "tests", "race check"}
    assert listed == {*DRY_SECTIONS, *others}


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
    monkeypatch.setattr(gpu_suite, "sections", lambda out, dry: played)
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
        [*command, str(tmp_path), "--only", "doctor", "recording"], start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        rows = tmp_path / "recording.jsonl"
        while not (rows.exists() and rows.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        suite.kill()
        suite.wait()
    assert json.loads((tmp_path / "doctor.json").read_text())["status"] == "ok"
    assert "frames" in json.loads(rows.read_text().splitlines()[0])
    assert not (tmp_path / "recording.json").exists()
