# SPDX-License-Identifier: Apache-2.0
"""The process in which GPU kernels are checked; see `sniper.ops.selfcheck`.

python -m sniper.ops.selfcheck_child --device 0 --dtype bf16 --block-size 64
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sniper.ops.selfcheck import CASES, Verdict, doubtful, lacking


def _child(options: argparse.Namespace) -> None:
    """Checks family by family and tells each at once."""
    device = torch.device("cpu" if options.device == "cpu" else f"cuda:{options.device}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    cases = importlib.import_module(options.cases)
    allow_tf32 = options.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    done = set(json.loads(options.done))
    checks = cases.families(options.dtype, options.block_size, device)
    with contextlib.ExitStack() as stack:
        out = sys.stdout  # not ours to close
        if options.news:
            out = stack.enter_context(open(options.news, "a", encoding="utf-8"))

        def tell(entry: dict[str, Any]) -> None:
            # Flushed at once, since the next kernel may end this process.
            print(json.dumps(entry), file=out, flush=True)

        part, parts = map(int, options.part.split("/"))
        for number, (family, run_check) in enumerate(checks.items()):
            if number % parts != part or family in done:
                continue
            tell({"begins": family})
            started = time.monotonic()
            try:
                verdict = Verdict(True, run_check())
            except Exception as problem:
                verdict = _failed(problem)
            verdict = replace(verdict, seconds=time.monotonic() - started)
            tell({"family": family, "verdict": asdict(verdict)})
            # After an illegal access every later call fails: the next family needs a new process.
            if not verdict.ok and device.type == "cuda":
                torch.cuda.synchronize()


def _failed(problem: Exception) -> Verdict:
    from triton.errors import TritonError

    text = " ".join(str(problem).split())[:300]
    if isinstance(problem, ValueError):  # wrong values
        return Verdict(False, message=text)
    named = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
    # What launches a kernel is compiled too. The compiler's own words are not in its error.
    if isinstance(problem, subprocess.CalledProcessError):
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        without = "" if header.exists() else f"; {header} is not there (python3-dev or -devel)"
        return lacking(f"the C compiler failed{without}: {named}")
    if "C compiler" in text:
        return lacking(named)
    if isinstance(problem, TritonError):  # it cannot be compiled for this GPU
        return Verdict(False, message=named)
    # A full memory or disk is told in many ways, by torch, Triton and the system.
    return doubtful(named)


def main(argv: list[str] | None = None) -> None:
    """The child's side; without `--news` it prints what it finds."""
    parser = argparse.ArgumentParser(
        prog="python -m sniper.ops.selfcheck_child", description=__doc__
    )
    parser.add_argument("--device", default="0", help="index of the GPU, or cpu")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16", "tf32", "fp32"])
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--cases", default=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--news", help=argparse.SUPPRESS)
    parser.add_argument("--done", default="[]", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th family, from the K-th on")
    _child(parser.parse_args(argv))


if __name__ == "__main__":
    main()
