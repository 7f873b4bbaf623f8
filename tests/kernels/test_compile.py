# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled ahead of time for three chips: no spills, tensor cores, asynchronous copies.

A sample by default, everything that ships with --all-kernels. Needs no GPU: Triton brings an
assembler and a disassembler.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import roofline
from conftest import INTERPRETED
from kernel_report import Case, all_cases, broken_rules, compile_case, read_report

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

SAMPLE = [
    ("fwd", "tma", 90, "bf16", 64),
    ("dgrad", "tma", 90, "bf16", 128),
    ("wgrad", "tma", 90, "bf16", 64),
    ("dgrad", "tma", 90, "tf32", 64),
    ("wgrad", "tma", 90, "tf32", 128),
    ("fwd", "pointer", 90, "fp16", 32),
    ("fwd", "pointer", 80, "bf16", 64),
    ("dgrad", "pointer", 80, "fp16", 128),
    ("wgrad", "pointer", 80, "bf16", 64),
    ("wgrad", "pointer", 80, "tf32", 16),
    ("fwd", "pointer", 80, "fp32", 16),
    ("fwd", "tma", 100, "bf16", 64),
    ("wgrad", "tma", 100, "bf16", 64),
    ("dropout", "pointer", 90, "bf16", 64),
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


def test_the_predictions_are_those_of_the_program():
    assert roofline.REPORT.read_text() == roofline.report()
