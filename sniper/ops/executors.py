# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs a pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor

from sniper.ops import dense, reference
from sniper.ops.geometry import Geometry

EXECUTORS: dict[str, ModuleType] = {"dense": dense, "reference": reference}

_forced: str | None = None


@contextlib.contextmanager
def executor(name: str) -> Iterator[None]:
    """Forces one implementation for every layer and pass inside the `with` block.

    Raises:
        ValueError: `name` is none of them.
    """
    if name not in EXECUTORS:
        raise ValueError(f"executor: expected one of {', '.join(EXECUTORS)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def run(which: str, layout: Any, geometry: Geometry, *args: Any) -> Tensor:
    """Runs pass `which` (`fwd`, `dgrad` or `wgrad`) on the executor in force."""
    module = EXECUTORS[_forced or "dense"]
    if which == "fwd":
        x, weight, bias = args
        return module.fwd(x, weight, bias, layout, geometry)
    if which == "dgrad":
        dy, weight, length = args
        return module.dgrad(dy, weight, layout, geometry, length)
    dy, x = args
    return module.wgrad(dy, x, layout, geometry)
