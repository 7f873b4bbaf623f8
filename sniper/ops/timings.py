# SPDX-License-Identifier: Apache-2.0
"""Which executor is fastest for a pass: measured once, remembered in memory and on disk.

The file lies in $SNIPER_CACHE_DIR (default ~/.cache/sniper). Since choices are remembered, a run
that is stopped and resumed, or run twice, computes with the same kernels and gets the same bits.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

# A kernel within this share of the best is preferred in the order of the candidates: a near tie
# must not be decided by noise, which would change the bits of a run.
TIE = 0.03
# Timed runs per candidate; the fastest counts, since disturbances only ever add time.
RUNS = 3
# A candidate this many times slower than another need not be timed again.
CLEAR = 1.5

_choices: dict[str, dict[str, float]] | None = None
_generation = 0


def fastest(key: str, candidates: dict[str, Callable[[], Any]]) -> str:
    """The name of the candidate to run for `key`, measured now if it is not known.

    Args:
        key: everything that the times depend on.
        candidates: functions by name, the preferred one first; all give the same result.
    """
    choices = _load()
    if key not in choices or not set(candidates) <= set(choices[key]):
        if key in choices:
            outdate()
        choices[key] = _time(candidates)
        _store()
    times = {name: choices[key][name] for name in candidates}
    limit = min(times.values()) * (1 + TIE)
    return next(name for name, t in times.items() if t <= limit)


def known(key: str) -> dict[str, float] | None:
    """Seconds by candidate, if they were measured."""
    return _load().get(key)


def generation() -> int:
    """Changes when choices that were in use may have become others; new ones do not count."""
    return _generation


def outdate() -> None:
    """Says that a choice in use has changed: recorded graphs launch what it was before."""
    global _generation
    _generation += 1


def drop(key: str) -> None:
    """Forgets one choice, here and on disk, so that it is made anew."""
    if _load().pop(key, None) is not None:
        outdate()
        _store(dropped=key)


def forget() -> None:
    """Drops all choices, in memory and on disk."""
    global _choices
    outdate()
    _choices = {}
    _path().unlink(missing_ok=True)


@cache
def machine(device: torch.device) -> str:
    """Names the device and the versions that times depend on."""
    return f"{device_name(device)} torch {torch.__version__}"


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU as the system has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
        return next(names).strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _time(candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least seconds of each, taken in turn; once one is far behind, it is not run again."""
    best = {}
    for name, run in candidates.items():
        _seconds(run)  # warms up
        best[name] = _seconds(run)
    for _ in range(RUNS - 1):
        limit = CLEAR * min(best.values())
        close = [name for name, t in best.items() if t <= limit]
        if len(close) == 1:
            break
        for name in close:
            best[name] = min(best[name], _seconds(candidates[name]))
    return best


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    result = run()
    device = (result[0] if isinstance(result, tuple) else result).device
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _path() -> Path:
    folder = os.environ.get("SNIPER_CACHE_DIR") or Path.home() / ".cache" / "sniper"
    return Path(folder) / "executors-1.json"


def _load() -> dict[str, dict[str, float]]:
    global _choices
    if _choices is None:
        _choices = _read()
    return _choices


def _read() -> dict[str, dict[str, float]]:
    try:
        return json.loads(_path().read_text())
    except (OSError, ValueError, RuntimeError):  # not there, damaged, or no home directory
        return {}


def _store(dropped: str | None = None) -> None:
    """Adds what another process found meanwhile, and replaces the file in one go."""
    global _choices
    # What is on disk wins: a second process must not overturn what the first one runs with.
    _choices = {**_choices, **_read()}
    _choices.pop(dropped, None)
    try:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(_choices, indent=0))
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        pass  # a read-only home: choices live as long as the process
