# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled ahead of time for six chips: no spills, shared memory within the chip's limit,
tensor cores, asynchronous copies.

A sample by default, everything that ships with --all-kernels. Needs no GPU: Triton brings an
assembler and a disassembler.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

import gpu_compat
import kernel_report
import roofline
from conftest import INTERPRETED
from kernel_report import ARCHS, KINDS, Case, all_cases, broken_rules, compile_case, read_report
from sniper.kernels import configs

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

SAMPLE = [
    ("fwd", "tma", 90, "bf16", 64),
    ("dgrad", "tma", 90, "bf16", 128),
    ("wgrad", "tma", 90, "bf16", 64),
    ("dgrad", "tma", 90, "tf32", 64),
    ("wgrad", "tma", 90, "tf32", 128),
    ("fwd", "pointer", 90, "fp16", 32),
    ("wgrad", "pointer", 90, "bf16", 32),
    ("fwd", "pointer", 80, "bf16", 64),
    ("dgrad", "pointer", 80, "fp16", 128),
    ("wgrad", "pointer", 80, "bf16", 64),
    ("wgrad", "pointer", 80, "tf32", 16),
    ("fwd", "pointer", 80, "fp32", 16),
    ("dgrad", "pointer", 86, "bf16", 128),
    ("wgrad", "pointer", 86, "fp32", 64),
    ("wgrad", "pointer", 89, "fp32", 64),
    ("fwd", "pointer", 89, "fp16", 64),
    ("fwd", "pointer", 120, "bf16", 64),
    ("wgrad", "pointer", 120, "bf16", 64),
    ("fwd", "tma", 100, "bf16", 64),
    ("wgrad", "tma", 100, "bf16", 64),
    ("dropout", "pointer", 90, "bf16", 64),
    ("add_norm", "pointer", 90, "bf16", 384),
    ("add_norm_backward", "pointer", 80, "bf16", 384),
    ("norm_sums", "pointer", 90, "fp32", 64),
    ("batch_norm_gradient_sums", "pointer", 90, "bf16", 64),
    ("batch_norm_statistics", "pointer", 80, "fp32", 64),
    ("add_positions_backward", "pointer", 90, "bf16", 64),
    ("loss_parts", "pointer", 90, "bf16", 64),
    ("loss_terms", "pointer", 90, "fp32", 64),
    ("loss_backward", "pointer", 80, "bf16", 64),
    ("repeat_tokens", "pointer", 90, "bf16", 64),
    ("repeat_tokens_backward", "pointer", 90, "bf16", 64),
    ("attention_forward", "tma", 90, "bf16", 192),
    ("attention_backward", "tma", 90, "bf16", 192),
    ("attention_backward", "pointer", 80, "bf16", 192),
    ("attention_sums", "tma", 90, "bf16", 192),
]


def sample() -> list[Case]:
    """The default configuration of each."""
    cases = list(all_cases())
    key = lambda c: (c.pass_, c.path, c.arch, c.dtype, c.block)  # noqa: E731
    return [next(c for c in cases if key(c) == wanted) for wanted in SAMPLE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shipped" in metafunc.fixturenames:
        cases = all_cases() if metafunc.config.getoption("--all-kernels") else sample()
        metafunc.parametrize("shipped", cases, ids=lambda c: "-".join(map(str, vars(c).values())))


def test_compiles_as_the_report_says(shipped: Case):
    import triton

    row, reported = compile_case(shipped), read_report()[shipped]
    assert broken_rules(row) == []
    if triton.__version__ == reported.triton:
        assert row == reported


def test_the_report_names_everything_that_ships():
    report = read_report()
    assert set(report) == set(all_cases())
    assert [row for row in report.values() if broken_rules(row)] == []


def test_shared_memory_is_no_more_than_what_tiles_are_chosen_by():
    """Where a chip has little; only tf32 on an sm_100, which has much, takes more."""
    for row in read_report().values():
        if row.pass_ in ("fwd", "dgrad", "wgrad") and (row.arch, row.dtype) != (100, "tf32"):
            op = "wgrad" if row.pass_ == "wgrad" else "product"
            config = configs.Config(row.tokens, row.width, row.warps, row.stages)
            bound = configs._shared_bytes(op, row.block, KINDS[row.dtype], config)
            assert row.shared_bytes <= bound <= configs.shared_memory(row.arch), row


def test_every_triton_compiles_everything():
    """The committed table: from 3.6 on, all chips, every kernel, dtype and block size."""
    rows = gpu_compat.read_report()
    wanted = {(c.arch, f"{c.pass_} {c.path}", c.dtype, c.block) for c in all_cases()}
    versions = {row.triton for row in rows}
    assert "3.6.0" in versions and {r.triton for r in read_report().values()} <= versions
    for version in versions:
        mine = {(r.arch, r.kernel, r.dtype, r.block) for r in rows if r.triton == version}
        assert mine == wanted, version
    assert [row for row in rows if row.result != "ok"] == []
    assert [row for row in rows if row.shared_bytes > configs.shared_memory(row.arch)] == []


def test_a_row_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_compat, "REPORT", tmp_path / "compat.csv")
    good = next(row for row in read_report().values() if row.pass_ == "fwd")
    spilling = replace(good, spills=12)
    failed = kernel_report.Failed(next(all_cases()), "CompilationError: no")
    rows = [gpu_compat.compiled(found, "3.10.0") for found in (good, spilling, failed)]
    assert [row.result for row in rows] == ["ok", "registers spill", "CompilationError: no"]
    old = replace(rows[0], triton="3.9.0")
    gpu_compat.write_report([*rows, old])
    assert gpu_compat.read_report()[0] == old
    assert sorted(map(str, gpu_compat.read_report())) == sorted(map(str, [*rows, old]))


def test_a_product_beside_one_of_another_kind_is_refused():
    """An `mma` beside a `wgmma`, of which Triton lets one overwrite what the other reads: the sum
    of dy in a weight gradient of small blocks, which an sm_90 is not to make so.
    """
    case = next(c for c in all_cases() if (c.pass_, c.arch, c.block) == ("wgrad", 90, 32))
    assert case.dtype == "bf16" and broken_rules(compile_case(case)) == []
    function, constants, types = kernel_report._kernel(case)
    assert constants.pop("sums") is None
    mixed = kernel_report._compiled(case, function, constants, types | {"sums": "*fp32"})
    (rule,) = broken_rules(mixed)
    assert rule.startswith("multiplies by HGMMA") and rule.endswith(" and HMMA")


def test_an_unknown_chip_is_named():
    assert kernel_report.check_archs(ARCHS) == ARCHS
    with pytest.raises(ValueError, match="arch: expected some of 80, 86.*, got 75; add its shared"):
        kernel_report.check_archs([90, 75])


def test_the_predictions_are_those_of_the_program():
    assert roofline.REPORT.read_text() == roofline.report()
