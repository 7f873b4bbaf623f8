# SPDX-License-Identifier: Apache-2.0
"""Breaks the CUDA sources in one place at a time, and sees whether the tests find it.

python tests/cuda_shim/mutate.py [--sample 5] [--only mask_rebuild] [--list]

A change is a barrier that is taken out, an early return that is taken out, or a bound that is one
too far. Ends with status 1 where a change that nobody explained survives. All of them take about a
quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from cuda_shim.build import CSRC, build  # noqa: E402

TESTS = {
    "mask_bits": ["tests/ops/test_bits.py"],
    "mask_rebuild": ["tests/sparsity/test_blocks.py", "tests/ops/test_rebuild.py"],
}
MASK_TESTS = ["tests/sparsity/test_masking.py"]
DEVICE_FUNCTION = re.compile(r"^(?:template <.*>\n)?(?:__global__|__device__) .*?^}", re.M | re.S)
CHANGES = {
    "no barrier": (re.compile(r"__syncthreads\(\);"), ""),
    "no early return": (re.compile(r"if \([^\n]*\) return;"), ""),
    # Not in the smaller of two, `a < b ? a : b`, where it makes no difference.
    "one too far": (re.compile(r" < (?!(\S+) \? \S+ : \1)"), " <= "),
}
# What nothing can find, by file, change and the line it is in, because the program stays the same.
EMPTY_ROUND = "a last round in which every thread is out of bounds and does nothing"
REDUNDANT: dict[tuple[str, str, str], str] = {
    **{
        (file, "nothing", ""): "the sources as they are"
        for file in ("mask_bits.cu", "mask_rebuild.cu", "mask_search.cuh")
    },
    (
        "mask_bits.cu",
        "one too far",
        "for (int j = 0; j < 8 && 8 * i + j < n; j++) "
        "byte |= static_cast<uint8_t>((values[8 * i + j] & 1) << j);",
    ): "the ninth bit does not fit into the byte",
    (
        "mask_following.cu",
        "no early return",
        "if (search.left == 0 || search.left == search.equal) return;",
    ): "saves a pass over values of which none, or each, goes",
    (
        "mask_following.cu",
        "one too far",
        "for (int64_t base = search.begin; base < search.end; base += kThreads) {",
    ): EMPTY_ROUND,
    (
        "mask_rebuild.cu",
        "one too far",
        "for (int64_t base = 0; base < rows; base += kThreads) {",
    ): EMPTY_ROUND,
    (
        "mask_rebuild.cu",
        "one too far",
        "for (int64_t base = 0; base < width; base += kWarp) {",
    ): EMPTY_ROUND,
    (
        "mask_rebuild.cu",
        "one too far",
        "for (int64_t base = 0; base < width; base += kWarp) { (again)",
    ): EMPTY_ROUND,
    (
        "mask_search.cuh",
        "no early return",
        "if (search.left == 0 || search.begin + blockIdx.y * static_cast<int64_t>(kThreads) "
        ">= search.end) return;",
    ): "saves adding up nothing, or what nobody looks at",
}


@dataclass(frozen=True)
class Mutant:
    """One change: `text` of `file` from `begin` to `end` becomes `new`."""

    file: str
    change: str
    line: int
    code: str
    begin: int
    end: int
    new: str

    @property
    def reason(self) -> str | None:
        """Why it may survive."""
        return REDUNDANT.get((self.file, self.change, self.code))

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.change}: {self.code}"


def mutants() -> Iterator[Mutant]:
    """Every change, by file; first none at all, which must survive."""
    for file, change, code in REDUNDANT:
        if change == "nothing":
            yield Mutant(file, change, 1, code, 0, 0, "")
    for path in sorted([*(CSRC / "cuda").glob("mask_*.cu"), *(CSRC / "cuda").glob("mask_*.cuh")]):
        text = path.read_text()
        for function in DEVICE_FUNCTION.finditer(text):
            for change, (pattern, new) in CHANGES.items():
                seen: set[str] = set()
                for found in pattern.finditer(text, function.start(), function.end()):
                    line = text.count("\n", 0, found.start())
                    code = text.splitlines()[line].strip()
                    if code.startswith("//"):
                        continue
                    while code in seen:  # twice in one line, or in one function
                        code += " (again)"
                    seen.add(code)
                    yield Mutant(path.name, change, line + 1, code, found.start(), found.end(), new)


def survives(mutant: Mutant) -> bool:
    """Whether the tests pass with it."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(CSRC, csrc)
        path = csrc / "cuda" / mutant.file
        text = path.read_text()
        path.write_text(text[: mutant.begin] + mutant.new + text[mutant.end :])
        module = build(csrc, Path(folder) / "objects")
        tests = TESTS.get(Path(mutant.file).stem, MASK_TESTS)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "shim", *tests]
        try:
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider"],
                cwd=ROOT,
                env=os.environ
                | {"SNIPER_CUDA_SHIM": str(module), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                capture_output=True,
                text=True,
                timeout=150,
            )
        except subprocess.TimeoutExpired:
            return False  # a kernel that does not end is found too
    if done.returncode not in (0, 1):  # a crash is found as well
        assert done.returncode < 0, done.stdout + done.stderr
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="this many, drawn")
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--list", action="store_true", help="print them, run nothing")
    args = parser.parse_args()
    chosen = [m for m in mutants() if args.only in m.file]
    if args.sample:
        chosen = random.sample(chosen, min(args.sample, len(chosen)))
    unexplained = 0
    for mutant in chosen:
        if args.list:
            print(mutant)
            continue
        start = time.perf_counter()
        survived = survives(mutant)
        wrong = survived != (mutant.reason is not None)
        unexplained += wrong
        word = "survived" if survived else "caught"
        why = f" ({mutant.reason})" if mutant.reason else " (WHY?)" if wrong else ""
        print(f"{word}{why} {time.perf_counter() - start:.0f} s  {mutant}", flush=True)
    if not args.list:
        print(f"{len(chosen)} changes, {unexplained} not as expected")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
