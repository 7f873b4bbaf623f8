# SPDX-License-Identifier: Apache-2.0
"""`python -m sniper.compare`: what it takes, what it refuses, what it leaves."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import Compared
from speech import command

from sniper.compare.__main__ import _of_the_whole, _parser, main
from sniper.compare.evaluate import read_evaluation, read_words

REPORT = ["epochs.csv", "loss.png", "report.html", "results.csv", "results.json"]


def test_what_it_leaves(compared: Compared):
    assert sorted(p.name for p in (compared.out / "report").iterdir()) == REPORT
    assert "A <small> matrix: 3 arms x 2 seeds, 3 epochs each, 1 threads" in compared.said
    assert f"{compared.out}/report/report.html: 0." in compared.said
    assert (compared.out / "report/report.html").stat().st_size < 1_500_000


def test_the_report_alone(compared: Compared, capsys: pytest.CaptureFixture):
    before = (compared.out / "report" / "report.html").read_text()
    shutil.rmtree(compared.out / "report")
    assert main(compared.options("--report-only")) == 0
    assert "6 of 6 runs are trained already" in capsys.readouterr().out
    after = (compared.out / "report" / "report.html").read_text()
    assert after == before  # with the command that trained, not this one


def test_the_report_of_what_there_is(compared: Compared, tmp_path: Path, capsys):
    """Before the beginning, before the end, and with an arm that has nothing yet."""
    options = ["--config", str(compared.file), "--output", str(tmp_path), "--report-only"]
    assert main(options) == 1
    assert "the report lacks 6 of 6 runs:\n" in capsys.readouterr().err
    assert "dense, seed 0, is not finished" in (tmp_path / "report/report.html").read_text()
    shutil.copytree(compared.run("dense").folder, tmp_path / "runs" / "dense" / "seed-0")
    assert main(options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "the report lacks 5 of 6 runs:" and "  block seed 0: not begun" in lines
    text = (tmp_path / "report" / "report.html").read_text()
    assert "SNIPER 60→0 %, seed 0, is not finished (not begun)" in text
    assert main([*options, "--arms", "dense", "--seeds", "0"]) == 0
    assert "not finished" not in (tmp_path / "report" / "report.html").read_text()


def test_the_report_while_a_run_is_stopped(compared: Compared, tmp_path: Path):
    run = tmp_path / "runs" / "dense" / "seed-0"
    shutil.copytree(compared.run("dense").folder, run)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "stopped"}))
    options = ["--config", str(compared.file), "--output", str(tmp_path), "--report-only"]
    assert main(options) == 1
    rows = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert [row.split(",")[2:4] for row in rows if row.startswith("dense,0,")] == [["stopped", "3"]]


def test_a_damaged_run_is_missing_and_named(compared: Compared, tmp_path: Path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared.out, out)
    index = out / "runs/dense/seed-0/checkpoints/index.json"
    index.write_text("[1")
    options = ["--config", str(compared.file), "--output", str(out), "--report-only"]
    assert main(options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "the report lacks 1 of 6 runs:"
    assert lines[1].startswith(f"  dense seed 0: damaged: {index} cannot be read: ")
    assert "dense, seed 0, is not finished (damaged" in (out / "report/report.html").read_text()


@pytest.mark.parametrize("only", ["--report-only", "--evaluate-only"])
def test_a_folder_that_is_not_there_is_not_made(compared: Compared, tmp_path: Path, only, capsys):
    for name in ("nowhere", "file"):
        (tmp_path / "file").touch()
        options = ["--config", str(compared.file), "--output", str(tmp_path / name), only]
        assert main(options) == 2
        said = capsys.readouterr().err
        assert (
            said == f"error: --output: expected the folder of a comparison, got {tmp_path / name}\n"
        )
    assert os.listdir(tmp_path) == ["file"]


def test_an_output_that_is_a_link_to_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "out").symlink_to("nowhere")
    assert main(["--output", str(tmp_path / "out")]) == 2
    expected = f"expected a folder, got {tmp_path / 'out'}, a link to nowhere, where nothing is"
    assert expected in capsys.readouterr().err


def test_shares_and_the_report_of_all(matrix_file: Path, tmp_path: Path, capsys):
    """Two shares at once, of a matrix with one run each, then the report; heard by pocketsphinx."""
    options = ["--config", str(matrix_file), "--output", str(tmp_path), "--threads", "1"]
    options += ["--arms", "block,dense", "--seeds", "0", "--sentences", "1"]
    options += ["train.epochs=1", "train.batches_per_epoch=2"]
    other = command("compare", *options, "--shard", "2/2")
    assert main([*options, "--shard", "1/2"]) == 0
    said = other.communicate(timeout=300)
    assert other.returncode == 0, said
    assert "share 2/2 is done" in said[0] and "share 1/2 is done" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()
    assert main([*options, "--report-only"]) == 0
    rows = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert [r.split(",")[:3] for r in rows[1:]] == [[a, "0", "trained"] for a in ("block", "dense")]
    assert "--shard" not in (tmp_path / "report" / "report.html").read_text()
    # What a model of two updates says is heard as something, and hardly ever as what it says.
    (count,) = read_words(tmp_path / "truth")["words"]
    for row in ("block", "dense"):
        found = read_evaluation(tmp_path / "runs" / row / "seed-0", 1)["checkpoints"]
        assert all(2 * found[which]["word_errors"][0] > count for which in ("final", "best"))
    capsys.readouterr()
    assert main([*options, "--shard", "1/3"]) == 2
    assert "--shard 1/3: expected at most 2 shares, one a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (["--sha", "1/2", "--seeds", "0"], "--seeds 0"),
        (["--shard=01/2", "--evaluate-only", "train.epochs=1"], "train.epochs=1"),
        (["--config", "1/2", "--shard", "1/2", "--ev", "--", "a=b"], "--config 1/2 -- a=b"),
    ],
)
def test_the_command_of_the_whole_can_be_run(part: list[str], whole: str):
    """However the options that are for one share are written."""
    assert shlex.join(_of_the_whole(part)) == whole
    options = _parser().parse_intermixed_args(["--report-only", *_of_the_whole(part)])
    assert options.report_only and options.shard is None and not options.evaluate_only


def test_other_settings_are_refused(compared: Compared, capsys: pytest.CaptureFixture):
    assert main(compared.options("train.warmup=7")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {compared.out} holds runs with other settings:\nblock seed 0:")
    assert "\n  train.warmup: 20 there, 7 now\n" in said
    assert main(compared.options("--jobs", "2", "--threads", "2")) == 2
    assert "train.threads: 1 there, 2 now" in capsys.readouterr().err


def test_two_at_once_are_refused(compared: Compared, capsys: pytest.CaptureFixture):
    program = "import sys, pathlib; from sniper.tts.locks import only_one\n"
    program += "with only_one(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(compared.out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"in\n"
    assert main(compared.options("--report-only")) == 2
    other.communicate(b"\n")
    said = capsys.readouterr().err
    assert said.startswith(f"error: {compared.out} is in use by process {other.pid} on ")
    assert said.endswith("; wait for it, or use another --output\n")


@pytest.mark.parametrize("name", ["yaml", "jinja2", "matplotlib"])
def test_a_missing_package_is_told_before_anything_is_trained(name: str, tmp_path: Path):
    """In a process of its own, which has imported nothing yet."""
    program = f"import sys; sys.modules[{name!r}] = None; import sniper.compare.__main__ as m; "
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program + "sys.exit(m.main(sys.argv[1:]))",
            "--output",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
    )
    expected = f"error: not installed: {name}: pip install 'sniper-tts[demo]'\n"
    assert (done.returncode, done.stderr) == (2, expected) and not (tmp_path / "x").exists()


def test_help_tells_the_exit_status(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Exit status: 0 complete" in said
    # A line may end at a hyphen.
    assert "demo, demo-ablation, demo-blocks, ljspeech" in said.replace("- ", "-")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--seeds", "a"], "list of whole numbers such as 0,1,2 value: 'a'"),
        (["--evaluate-only", "--report-only"], "not allowed with"),
        (["--shard", "3/2"], "expected I/N with 1 <= I <= N, such as 2/8, got '3/2'"),
        (["--shard", "1/2", "--report-only"], "--report-only is of all shares"),
    ],
)
def test_wrong_arguments(arguments, words, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nothing"], "expected a matrix (demo, "),
        (["--arms", "dense,sparse"], "--arms: expected some of dense, dense-rates"),
        (["train.epoch=3"], "did you mean train.epochs"),
        (["train.seed=3"], "train.seed is the matrix's own"),
        (["--vocoder", ""], "vocoder: expected a path, got ''"),
    ],
)
def test_wrong_settings(arguments, words, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--output", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said
    assert not (tmp_path / "out").exists()
