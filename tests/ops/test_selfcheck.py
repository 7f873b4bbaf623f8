# SPDX-License-Identifier: Apache-2.0
"""The check of GPU kernels in a child process: the real cases in Triton's interpreter, and faults
on purpose.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch

from sniper.ops import selfcheck
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
    runs: list[tuple] = []

    def play(**verdicts: bool | Verdict):
        named = {
            name.replace("_", " "): Verdict(v, message="" if v else "it raises")
            if isinstance(v, bool)
            else v
            for name, v in verdicts.items()
        }

        def run(*args):
            runs.append(args)
            return named

        monkeypatch.setattr(selfcheck, "run", run)
        return runs

    return play


@pytest.mark.parametrize(("dtype", "block"), [("fp32", 16), ("fp16", 64)])
def test_the_kernels_pass_in_the_interpreter(monkeypatch, dtype, block):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = selfcheck.run("cpu", dtype, block)
    paths = ["pointer"] if dtype == "fp32" else ["tma", "pointer"]
    wanted = {selfcheck.family(p, op) for p in paths for op in ("product", "wgrad")}
    assert set(found) == {selfcheck.ELEMENTWISE, *wanted}
    assert all(v.ok and v.error < 1e-3 and v.seconds > 0 for v in found.values()), found


def test_a_fault_costs_its_family_and_nothing_else(faulty):
    # Two seconds: a child that has begun a family has loaded torch already.
    found = selfcheck.run("cpu", "bf16", 64, cases="faulty_cases", patience=20.0, hang=2.0)
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
    assert said["raises"] == "RuntimeError: PassManager::run failed at line 3"
    assert said["hangs"] == "it did not end within 2 seconds"
    assert "killed by signal 6" in said["crashes"] and "status 3" in said["leaves"]


@pytest.fixture
def faulty(monkeypatch):
    """Children find `faulty_cases`."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))


def test_families_behind_a_death_between_two_are_checked_too(faulty):
    found = selfcheck.run("cpu", "fp32", 64, cases="faulty_cases")
    assert {name: v.ok for name, v in found.items()} == {
        "good": True,
        "wrong": False,
        "good too": True,
        "good at last": True,
    }


def test_a_start_that_fails_later_is_a_verdict_of_its_own(faulty, monkeypatch):
    inner, calls = selfcheck._run_child, []

    def child(*args):
        calls.append(args)
        return inner(*args) if len(calls) == 1 else "no memory is left on the GPU"

    monkeypatch.setattr(selfcheck, "_run_child", child)
    found = selfcheck.run("cpu", "fp32", 64, cases="faulty_cases")
    assert list(found) == ["good", "wrong", "start"] and len(calls) == 2
    assert found["start"].message == "no memory is left on the GPU"


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
