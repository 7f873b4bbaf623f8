# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: timing side by side, and rows that say where they come from."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sniper.ops.timings import device_name

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass
class Row:
    """One provider's time for one pass; its fields are the columns of a result file."""

    op: str
    shape: str
    block: int
    density: float
    dtype: str
    pass_: str
    provider: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio_to_dense: float
    device: str
    threads: int
    versions: str
    commit: str


def time_side_by_side(
    providers: Mapping[str, Callable[[], object]], repeats: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Milliseconds of every call: one call of each provider in turn, `repeats` rounds, so that what
    else the machine does meets all of them alike. The first round warms up and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    for round_ in range(repeats + 1):
        for name, call in providers.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if round_:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def percentiles(times: list[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th."""
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def rows(
    cuts: dict[str, tuple[float, float, float]],
    dense_ms: float,
    device: torch.device,
    suffix: str = "",
    **what: Any,
) -> list[Row]:
    """One row a provider.

    Args:
        cuts: 20th, 50th and 80th percentile in milliseconds by provider.
        dense_ms: what `ratio_to_dense` counts from.
        suffix: behind every provider's name.
        what: op, shape, block, density, dtype and pass_.
    """
    return [
        Row(
            **what,
            provider=name + suffix,
            p20_ms=p20,
            p50_ms=p50,
            p80_ms=p80,
            ratio_to_dense=dense_ms / p50,
            device=device_name(device),
            threads=torch.get_num_threads(),
            versions=versions(),
            commit=commit(),
        )
        for name, (p20, p50, p80) in cuts.items()
    ]


def describe_layer(
    layer: tuple[int, int, int],
    tokens: tuple[int, int],
    density: float,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What the rows of a layer (in, out, taps) on `tokens` (batch, length) have in common."""
    c, n, taps = layer
    return {
        "op": "conv1d" if taps > 1 else "linear",
        "shape": f"{tokens[0]}x{tokens[1]} {c}-{n}-{taps}",
        "block": args.block,
        "density": density,
        "dtype": args.dtype,
    }


def check_close(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Refuses to time what is wrong: relative Frobenius error."""
    error = (
        (got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
    ).item()
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.1e} is over {tolerance:.0e}, not timed")


def versions() -> str:
    """torch and Python."""
    return f"torch {torch.__version__}, python {platform.python_version()}"


@cache
def commit() -> str:
    """Short hash of the code, with `+` when files other than results differ from it; `unknown`
    where there is no git, or no repository. SNIPER_COMMIT names it for a copy without one.
    """
    if given := os.environ.get("SNIPER_COMMIT"):
        return given
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(RESULTS.parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)bench/results"],
        capture_output=True,
        text=True,
    )
    return (head.stdout.strip() or "none") + ("+" if changed.stdout.strip() else "")


def append_rows(stem: str, rows: list[Row]) -> Path:
    """Appends to `bench/results/<stem>.csv`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem}.csv"
    fields = [f.name for f in dataclasses.fields(Row)]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            writer.writerow({k: _rounded(v) for k, v in values.items()})
    return path


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
