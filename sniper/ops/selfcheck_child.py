# SPDX-License-Identifier: Apache-2.0
"""The process in which GPU kernels are checked; see `sniper.ops.selfcheck`.

python -m sniper.ops.selfcheck_child --device 0 --dtype bf16 --block-size 64
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import torch

from sniper.ops.selfcheck import CASES, Verdict


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
    with open(options.news, "a", encoding="utf-8") if options.news else sys.stdout as out:

        def tell(entry: dict[str, Any]) -> None:
            print(json.dumps(entry), file=out, flush=True)

        for family, run_check in checks.items():
            if family in done:
                continue
            tell({"begins": family})
            started = time.monotonic()
            error, message = None, ""
            try:
                error = run_check()
            except Exception as problem:
                text = " ".join(str(problem).split())[:300]
                message = text if isinstance(problem, ValueError) else _named(problem, text)
            verdict = Verdict(not message, error, time.monotonic() - started, message)
            tell({"family": family, "verdict": asdict(verdict)})
            # After an illegal access every later call fails: the next family needs a new process.
            if message and device.type == "cuda":
                torch.cuda.synchronize()


def _named(problem: Exception, text: str) -> str:
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


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
    _child(parser.parse_args(argv))


if __name__ == "__main__":
    main()
