# SPDX-License-Identifier: Apache-2.0
"""The check of GPU kernels in a child process: the real cases in Triton's interpreter, and faults
on purpose.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from sniper.kernels import configs
from triton.runtime.errors import OutOfResources

from sniper.ops import selfcheck, selfcheck_child
from sniper.ops.backends.triton import launch, tuning
from sniper.ops.selfcheck import Verdict

CUDA = torch.device("cuda", 0)
X = type("X", (), {"dtype": torch.bfloat16, "device": CUDA})()


@pytest.fixture
def a_gpu(monkeypatch, tmp_path):
    """Plays a GPU whose kernels are known to do what `verdicts` says."""
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(selfcheck, "_machine", lambda index: "Some GPU sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Some GPU")
    monkeypatch.setattr(launch, "arch", lambda device: 90)
    monkeypatch.setattr(launch, "shared_memory", lambda device: configs.shared_memory(90))
    runs: list[tuple] = []

    def play(**verdicts: bool | Verdict):
        named = {
            name.replace("_", " "): Verdict(v, message="" if v else "it raises")
            if isinstance(v, bool)
            else v
            for name, v in verdicts.items()
        }

        def run(*args, known):
            runs.append(args)
            return {**named, **known}

        monkeypatch.setattr(selfcheck, "run", run)
        return runs

    return play


@pytest.fixture
def cases_here(monkeypatch):
    """Children find `faulty_cases` and the like."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.parametrize(("dtype", "block"), [("fp32", 16), ("fp16", 64)])
def test_the_kernels_pass_in_the_interpreter(cases_here, monkeypatch, request, dtype, block):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cases = selfcheck.CASES if request.config.getoption("--all-kernels") else "quick_cases"
    found = selfcheck.run("cpu", dtype, block, cases=cases)
    paths = ["pointer"] if dtype == "fp32" else ["tma", "pointer"]
    wanted = {selfcheck.family(p, op) for p in paths for op in ("product", "wgrad")}
    wanted |= {selfcheck.ELEMENTWISE, selfcheck.NORM, selfcheck.BATCH_NORM, selfcheck.LOSS}
    wanted.add(selfcheck.REGULATOR)
    # It takes values of two bytes alone.
    assert set(found) == wanted | ({selfcheck.ATTENTION} if dtype == "fp16" else set())
    assert all(v.ok and v.error < 1e-3 and v.seconds > 0 for v in found.values()), found


def test_a_fault_costs_its_family_and_nothing_else(cases_here):
    """Two children share the families: one that crashes has others behind it, one that hangs has
    another fault.
    """
    # Two seconds: a child that has begun a family has loaded torch already.
    limits = {"hang": 2.0, "children": 2}
    found = selfcheck.run("cpu", "bf16", 64, cases="faulty_cases", **limits)
    assert {name: v.ok for name, v in found.items()} == {
        "good": True,
        "wrong": False,
        "raises": False,
        "hangs": False,
        "crashes": False,
        "leaves": False,
        "good too": True,
    }
    said = {name: v.message for name, v in found.items()}
    assert "expected the reference's values" in said["wrong"]
    assert said["raises"].startswith("RuntimeError: PassManager::run failed at line 3")
    assert said["hangs"].startswith("it did not end within 2 seconds; it is checked again after")
    doubtful = {name for name, v in found.items() if v.until is not None}
    assert doubtful == {"raises", "hangs", "leaves"}
    assert "killed by signal 6" in said["crashes"] and "status 3" in said["leaves"]


def test_kernels_with_faults_fail_the_real_comparison(cases_here, monkeypatch):
    """Two with an entry that is off, one that Triton refuses, one that hangs."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # A second child computes while one hangs.
    limits = {"hang": 12.0, "children": 2}
    found = selfcheck.run("cpu", "fp32", 16, cases="faulty_kernels", **limits)
    for whole in (selfcheck.LOSS, selfcheck.REGULATOR):
        assert found.pop(whole).ok
    assert len(found) == 4
    assert not any(v.ok for v in found.values())
    said = {name: v.message for name, v in found.items()}
    assert "expected the reference's values within 1e-05 of the" in said["pointer product"]
    assert said["norm"].startswith("dx: expected the reference's values")
    assert "shared memory, required: 300000" in said["elementwise"]
    assert said["pointer wgrad"].startswith("it did not end within 12 seconds")


def test_what_the_machine_lacks_is_said_in_its_own_words(cases_here, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = selfcheck.run("cpu", "fp16", 64, cases="faulty_cases")
    said = {name: v.message for name, v in found.items()}
    assert "Failed to find C compiler" in said["no compiler"]
    assert "/nowhere/Python.h is not there (python3-dev or -devel)" in said["no header"]
    assert "Tried to allocate" in said["full"] and "doctor --recheck" in said["full"]
    assert all("the next start checks again" in said[name] for name in ("no compiler", "no header"))
    left = {name: v.until - selfcheck.time.time() for name, v in found.items() if v.until}
    assert 0 < left["no compiler"] <= 60 and 0 < left["no header"] <= 60 < left["full"]


@pytest.mark.parametrize(
    ("problem", "kept"),
    [
        (ValueError("dx: expected the reference's values"), True),
        (OutOfResources(300000, 232448, "shared memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_be_the_machines_doing_is_checked_again(problem, kept):
    """A full memory or disk comes in many classes; wrong values and a kernel that no compiler takes
    are the versions' doing.
    """
    verdict = selfcheck_child._failed(problem)
    assert verdict.holds and (verdict.until is None) == kept


@pytest.mark.parametrize(("number", "kept"), [(11, True), (15, False), (9, False), (2, False)])
def test_a_death_from_outside_is_no_kernels_fault(tmp_path, number, kept):
    child = selfcheck._Child(["--cases", "no_such_cases"], tmp_path / "news", (1.0, 1.0))
    with child:
        child._process.kill()
        child._process.wait()
        child._process.returncode = -number
        verdict = child.failure()
    assert verdict is not None and (verdict.until is None) == kept
    assert f"killed by signal {number}" in verdict.message


def test_a_compiler_that_was_installed_is_found_by_the_next_process(a_gpu, monkeypatch):
    without = RuntimeError("Failed to find C compiler. Please specify via CC")
    runs = a_gpu(elementwise=selfcheck_child._failed(without), pointer_product=True)
    with pytest.warns(UserWarning, match="C compiler.* the next start checks again"):
        assert not selfcheck.trusted(X, 64, selfcheck.ELEMENTWISE)
    a_gpu(elementwise=True)
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    # Those that start together with the first take its word for it.
    now = selfcheck.time.time()
    monkeypatch.setattr(selfcheck.time, "time", lambda: now + 61)
    assert selfcheck.trusted(X, 64, selfcheck.ELEMENTWISE) and len(runs) == 2


def test_without_a_file_for_its_news_the_child_prints_and_leaves_stdout_open(cases_here):
    program = (
        "from sniper.ops import selfcheck_child\n"
        "selfcheck_child.main(['--device', 'cpu', '--dtype', 'tf32', '--cases', 'faulty_cases'])\n"
        "print('still open')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *news, last = done.stdout.splitlines()
    assert last == "still open" and [*json.loads(news[1])] == ["family", "verdict"]


def test_families_behind_a_death_between_two_are_checked_too(cases_here):
    found = selfcheck.run("cpu", "fp32", 64, cases="faulty_cases")
    assert {name: v.ok for name, v in found.items()} == {
        "good": True,
        "wrong": False,
        "good too": True,
        "good at last": True,
    }


def test_a_start_that_fails_later_is_a_verdict_of_its_own(cases_here, monkeypatch, tmp_path):
    inner, calls = selfcheck._Child, []

    class NotBegun(contextlib.AbstractContextManager):
        news = tmp_path / "none"

        def __exit__(self, *_: object) -> None:
            pass

        def is_at_work(self) -> bool:
            return False

        def failure(self) -> Verdict:
            return Verdict(False, message="no memory is left on the GPU")

    def child(*args):
        calls.append(args)
        return inner(*args) if len(calls) == 1 else NotBegun()

    monkeypatch.setattr(selfcheck, "_Child", child)
    found = selfcheck.run("cpu", "fp32", 64, cases="faulty_cases")
    assert list(found) == ["good", "wrong", "start"] and len(calls) == 2
    assert found["start"].message == "no memory is left on the GPU"


def test_whoever_ends_the_check_ends_its_children(cases_here, monkeypatch):
    inner, children = selfcheck._Child, []

    def child(*args):
        children.append(inner(*args))
        return children[-1]

    def interrupted(news: Path):
        raise KeyboardInterrupt

    monkeypatch.setattr(selfcheck, "_Child", child)
    monkeypatch.setattr(selfcheck, "_read_news", interrupted)
    with pytest.raises(KeyboardInterrupt):
        selfcheck.run("cpu", "bf16", 64, cases="faulty_cases", children=2)
    assert len(children) == 2 and all(not each.is_at_work() for each in children)


def test_a_failed_start_is_tried_again_by_the_next_process(a_gpu, monkeypatch, tmp_path):
    runs = a_gpu(start=False)
    with pytest.warns(UserWarning, match="leaves out its start"):
        assert not selfcheck.trusted(X, 64, "pointer product")
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    with pytest.warns(UserWarning):
        assert not selfcheck.trusted(X, 64, "pointer product")
    assert len(runs) == 2 and not (tmp_path / "self-check-1.json").exists()


def test_a_child_that_cannot_start_is_one_verdict():
    found = selfcheck.run("cpu", "bf16", 64, cases="no_such_cases")
    assert [v.ok for v in found.values()] == [False]
    assert "No module named 'no_such_cases'" in found["start"].message


def test_a_verdict_is_found_once_and_read_by_the_next_process(a_gpu, monkeypatch, tmp_path):
    runs = a_gpu(pointer_product=True, pointer_wgrad=True)
    for _ in range(2):
        assert selfcheck.trusted(X, 64, "pointer product")
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    assert selfcheck.trusted(X, 64, "pointer product") and len(runs) == 1
    assert selfcheck.trusted(X, 32, "pointer product") and len(runs) == 2
    saved = json.loads((tmp_path / "self-check-1.json").read_text())
    assert len(saved["verdicts"]) == 2


def test_a_doubtful_verdict_is_taken_again_after_a_while(a_gpu, monkeypatch):
    runs = a_gpu(
        pointer_product=True,
        pointer_wgrad=selfcheck.doubtful("it did not end within 120 seconds"),
    )
    with pytest.warns(UserWarning, match="checked again after a day, or by .*--recheck"):
        assert not selfcheck.trusted(X, 64, "pointer wgrad")
    a_gpu(pointer_wgrad=True)
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    with pytest.warns(UserWarning, match="did not end"):
        assert not selfcheck.trusted(X, 64, "pointer wgrad") and len(runs) == 1
    now = selfcheck.time.time()
    monkeypatch.setattr(selfcheck.time, "time", lambda: now + selfcheck.DOUBT + 1)
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    assert selfcheck.trusted(X, 64, "pointer wgrad") and len(runs) == 2
    assert selfcheck.trusted(X, 64, "pointer product")  # not checked again


def test_everything_is_checked_anew_when_asked(a_gpu):
    runs = a_gpu(pointer_product=False)
    with pytest.warns(UserWarning):
        assert not selfcheck.trusted(X, 64, "pointer product")
    a_gpu(pointer_product=True)
    assert selfcheck.check(CUDA, "bf16", 64, anew=True)["pointer product"].ok and len(runs) == 2
    assert selfcheck.trusted(X, 64, "pointer product")


ONE_OF_TWO = """
import sys, time, torch
from sniper.ops import selfcheck
from sniper.ops.selfcheck import Verdict
selfcheck._machine = lambda index: "Some GPU sm_90"
torch.cuda.get_device_name = lambda index=None: "Some GPU"
def run(index, dtype, block_size, known):
    print("checks", dtype, flush=True)
    time.sleep(0.5)
    return {"pointer product": Verdict(True, 1e-3)}
selfcheck.run = run
for dtype in ("bf16", "tf32", "fp16"):
    assert selfcheck.check(torch.device("cuda", 0), dtype, 64)["pointer product"].ok
"""


def test_of_two_processes_one_checks(tmp_path):
    environment = {**os.environ, "SNIPER_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [p.returncode for p in both] == [0, 0], said
    checked = sorted(line for out, _ in said for line in out.splitlines())
    assert checked == ["checks bf16", "checks fp16", "checks tf32"]
    assert len(json.loads((tmp_path / "self-check-1.json").read_text())["verdicts"]) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}', '{"format": 1, "verdicts": [3]}'])
def test_a_damaged_file_is_checked_anew(a_gpu, tmp_path, text):
    runs = a_gpu(pointer_product=True)
    (tmp_path / "self-check-1.json").write_text(text)
    assert selfcheck.trusted(X, 64, "pointer product") and len(runs) == 1


def test_a_damaged_verdict_is_checked_anew(a_gpu, tmp_path):
    runs = a_gpu(pointer_product=True)
    entry = {"Some GPU sm_90 bf16 blocks of 64": {"pointer product": {"ok": "yes"}}}
    (tmp_path / "self-check-1.json").write_text(json.dumps({"format": 1, "verdicts": entry}))
    assert selfcheck.trusted(X, 64, "pointer product") and len(runs) == 1


def test_a_folder_that_cannot_be_written_only_forgets(a_gpu, monkeypatch, tmp_path):
    a_gpu(pointer_product=True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert selfcheck.trusted(X, 64, "pointer product")


def test_one_warning_a_reason(a_gpu):
    a_gpu(tma_product=False, tma_wgrad=False, pointer_product=True, pointer_wgrad=True)
    with pytest.warns(UserWarning, match="leaves out its tma product, tma wgrad kernels") as said:
        assert tuning.trusted_paths("fwd", 64, X) == ["pointer"]
    assert len(said) == 1 and "sniper.doctor --json" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.trusted_paths("wgrad", 64, X) == ["pointer"]


@pytest.mark.filterwarnings("ignore:sniper leaves out")
def test_a_pass_without_any_path_runs_dense_and_the_others_do_not(a_gpu):
    a_gpu(tma_product=True, pointer_product=True, tma_wgrad=False, pointer_wgrad=False)
    assert tuning.trusted_paths("fwd", 64, X) == ["tma", "pointer"]
    assert tuning.trusted_paths("wgrad", 64, X) == []


def test_the_check_can_be_skipped(a_gpu, monkeypatch):
    runs = a_gpu(pointer_product=False)
    monkeypatch.setenv("SNIPER_SELF_CHECK", "skip")
    assert selfcheck.trusted(X, 64, "pointer product") and not runs
