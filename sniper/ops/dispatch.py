# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs a pass: the fastest one measured, or the one that is forced."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sniper import _C
from sniper.ops import timings
from sniper.ops.backends import cpu, dense, reference, triton
from sniper.ops.backends.triton import launch
from sniper.ops.geometry import Epilogue, Geometry

EXECUTORS: dict[str, ModuleType] = {
    "triton": triton,
    "cpu": cpu,
    "dense": dense,
    "reference": reference,
}
# Those that end a forward pass themselves.
FUSED = (triton, cpu)

_forced: str | None = None
_autotune = False
# What ran last, by layout and pass, for `explain`.
_last: weakref.WeakKeyDictionary[Any, dict[str, tuple[str, str]]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def executor(name: str) -> Iterator[None]:
    """Forces one implementation for every layer and pass inside the `with` block.

    Args:
        name: `triton` or `cpu` (our kernels), `dense` (torch on the zero-filled weight) or
            `reference`.

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


def autotune(enabled: bool) -> None:
    """Whether, on a GPU, each new combination of pass, shape, dtype and density times all tile
    sizes of our kernels at its first use. The times are kept on disk. Off by default: then a
    built-in table chooses, unless the disk knows better.
    """
    global _autotune
    _autotune = enabled


def forced() -> str | None:
    """The implementation that `executor` forces, if any."""
    return _forced


def run(which: str, layout: Any, geometry: Geometry, *args: Any) -> Any:
    """Runs pass `which` (`fwd`, `dgrad` or `wgrad`) on the executor in force.

    Args:
        args: x, weight, bias, epilogue for `fwd`; dy, weight, length for `dgrad`;
            dy, x, whether dL/db is wanted for `wgrad`, which gives a pair.
    """
    calls = {
        name: _call(EXECUTORS[name], which, layout, geometry, args)
        for name in _candidates(layout, args[0])
    }
    key = _key(which, layout, geometry, args[0])
    if _autotune and "triton" in calls and not triton.tuned(which, layout, geometry, args[0]):
        # No epilogue, no sum of dy: tile sizes do not depend on them.
        triton.tune(which, layout, geometry, *args[: 2 if which == "wgrad" else 3])
        timings.drop(key)  # it was made with another tile size
    if _forced is not None and not layout.outgrown:
        name = _forced
        calls.setdefault(name, _call(EXECUTORS[name], which, layout, geometry, args))
    elif len(calls) == 1:
        name = next(iter(calls))
    else:
        name = timings.fastest(key, calls)
    _last.setdefault(layout, {})[which] = (name, key)
    return calls[name]()


def last_runs(layout: Any) -> dict[str, tuple[str, dict[str, float] | None]]:
    """What ran last for a layout: by pass, the executor and the seconds that were measured."""
    return {w: (name, timings.known(key)) for w, (name, key) in _last.get(layout, {}).items()}


def _candidates(layout: Any, x: Tensor) -> list[str]:
    if layout.outgrown:
        return ["dense"]  # it alone reads the whole weight
    if layout.block_size in triton.BLOCK_SIZES and triton.available(x.dtype, x.device):
        return ["triton", "dense"]
    ours = x.device.type == "cpu" and cpu.available(x.dtype)
    return ["cpu", "dense"] if ours and layout.block_size in cpu.BLOCK_SIZES else ["dense"]


def _call(
    module: ModuleType, which: str, layout: Any, geometry: Geometry, args: tuple
) -> Callable[[], Any]:
    if which == "fwd":
        x, weight, bias, epilogue = args
        if module in FUSED:
            return partial(module.fwd, x, weight, bias, layout, geometry, *epilogue)
        return partial(_fwd_then, module.fwd, epilogue, x, weight, bias, layout, geometry)
    if which == "dgrad":
        dy, weight, length = args
        return partial(module.dgrad, dy, weight, layout, geometry, length)
    dy, x, bias = args
    if bias and hasattr(module, "wgrad_bias"):
        return partial(module.wgrad_bias, dy, x, layout, geometry)
    return partial(_wgrad_then, module.wgrad, bias, dy, x, layout, geometry)


def _fwd_then(fwd: Callable[..., Tensor], epilogue: Epilogue, *args: Any) -> Tensor:
    """For executors that do not fuse the epilogue."""
    y = fwd(*args)
    if epilogue.relu and epilogue.p and y.is_cuda:
        return triton.dropout(y, epilogue.p, epilogue.seed, relu=True)
    if epilogue.relu:
        y = y.relu_()
    return cpu.dropout(y, epilogue.p, epilogue.seed) if epilogue.p else y


def _wgrad_then(
    wgrad: Callable[..., Tensor], bias: bool, dy: Tensor, *args: Any
) -> tuple[Tensor, Tensor | None]:
    """For executors that do not sum dy on the way."""
    return wgrad(dy, *args), dy.sum((0, 1)) if bias else None


def _key(which: str, layout: Any, geometry: Geometry, x: Tensor) -> str:
    """Everything that the times depend on; tokens by power of two, density in tenths."""
    device = x.device
    threads = f" {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    kind = "" if device.type == "cpu" else f" {launch.kind(x)}"
    rows, taps, cols = layout.shape
    tokens = (x.shape[0] * x.shape[1]).bit_length()
    return (
        f"{timings.machine(device)} {_C.cpu.instruction_set()}{threads} "
        f"{which} {x.dtype}{kind} {rows}x{taps}x{cols} blocks of {layout.block_size} "
        f"dilation {geometry.dilation} 2^{tokens} tokens density {round(10 * layout.density)}/10"
    )
