# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a pass: the fastest one measured, or the one that is forced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sniper import _C
from sniper.kernels import configs
from sniper.ops import rounding, timings
from sniper.ops.backend import Backend
from sniper.ops.backends import CPU, DENSE, REFERENCE, TRITON, elementwise
from sniper.ops.backends.triton import launch, tuning
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout

BACKENDS: dict[str, Backend] = {b.name: b for b in (TRITON, CPU, DENSE, REFERENCE)}


class _Run(NamedTuple):
    """What ran a pass, and what says why it did."""

    backend: str
    key: str
    candidates: int
    forced: bool
    dtype: torch.dtype
    device: torch.device


# Not a context variable: autograd runs backward passes on threads of its own.
_forced: Backend | None = None
_autotune = False
_MOST_KNOWN = 256  # of a layout: there are many lengths


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces one backend for every layer and pass inside the `with` block.

    Args:
        name: `triton` or `cpu` (our kernels), `dense` (torch on the masked weight) or `reference`.

    Raises:
        ValueError: `name` is none of them.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    global _forced
    before, _forced = _forced, BACKENDS[name]
    try:
        yield
    finally:
        _forced = before


def autotune(enabled: bool) -> None:
    """Whether, on a GPU, each new combination of pass, shape, dtype and density times all tile
    sizes of our kernels at its first use. The times are kept on disk. Off by default: then a
    built-in table chooses, unless the disk knows better.

    Args:
        enabled: from now on, in this process.

    Raises:
        ValueError: no bool.
    """
    if not isinstance(enabled, bool):
        raise ValueError(f"autotune: expected True or False, got {enabled!r}")
    global _autotune
    _autotune = enabled


def forced() -> str | None:
    """The backend that `use_backend` forces, if any."""
    return None if _forced is None else _forced.name


def choose(
    which: str,
    layout: BlockLayout,
    geometry: Geometry,
    *args: Any,
    into: Tensor | None = None,
    gate: tuple[Tensor, float] | None = None,
) -> Callable[[], Any]:
    """Pass `which` (`fwd`, `dgrad` or `wgrad`) on the backend in force, ready to be called.

    Args:
        args: x, weight, bias, epilogue for `fwd`; dy, weight, length for `dgrad`;
            dy, x, whether dL/db is wanted for `wgrad`, which gives a pair.
        into: `[N, taps * C]` that `wgrad` adds dL/dW to, in active blocks, and returns.
        gate: x and p where `x = dropout(relu(z), p)`: `dgrad` gives dL/dz.
    """
    made = _choose(which, layout, geometry, args)
    layout.runs[which] = made
    chosen = BACKENDS[made.backend]
    call = _call(chosen, which, layout, geometry, args)
    if gate is not None:
        if chosen is CPU or chosen is TRITON:
            dgrad = CPU.dgrad if chosen is CPU else TRITON.dgrad
            return partial(dgrad, args[0], args[1], layout, geometry, args[2], *gate)
        return lambda: elementwise.relu_dropout_backward(call(), *gate)
    if into is None:
        return call
    # Ours add in place by themselves; others give a matrix, which is added afterwards.
    if chosen is CPU or chosen is TRITON:
        wgrad = CPU.wgrad if chosen is CPU else TRITON.wgrad
        return partial(wgrad, args[0], args[1], layout, geometry, args[2], into=into)
    # One visit of active blocks in place of a mask for all of them and an addition.
    if chosen is DENSE and TRITON.takes("wgrad", args[0], layout):
        return partial(_add_active, into, layout, geometry, *args)
    return partial(_add_to, into, call)


def _choose(which: str, layout: BlockLayout, geometry: Geometry, args: tuple) -> _Run:
    """As `_choose_anew`, kept with the layout by all else that it depends on: to ask again takes
    longer than a small layer computes.
    """
    x, known = args[0], layout.known
    batch, length = x.shape[:2]
    depends = (
        which,
        x.dtype,
        (batch * length).bit_length(),
        geometry.dilation,
        None if _forced is None else _forced.name,
        _autotune,
        timings.generation(),
        layout.outgrown,
        torch.get_num_threads() if x.is_cpu else (launch.kind(x), timings.clock()),
    )
    made = known.get(depends)
    if made is None:
        made = _choose_anew(which, layout, geometry, args)
        # What was not measured well is not looked at again while a graph is recorded, but later.
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return made
        if len(known) >= _MOST_KNOWN:
            known.clear()
        # Where measuring has outdated what was chosen, this is looked up once more.
        known[depends] = made
    return made


def _choose_anew(which: str, layout: BlockLayout, geometry: Geometry, args: tuple) -> _Run:
    x = args[0]
    backends = candidates(which, layout, x)
    key = _key(which, layout, geometry, x)
    if _autotune and TRITON in backends and not tuning.tuned(which, layout, geometry, x):
        # No epilogue, no sum of dy: tile sizes do not depend on them.
        TRITON.tune(which, layout, geometry, *args[: 2 if which == "wgrad" else 3])
        timings.drop(key)  # it was made with another tile size
    if _forced is not None and not layout.outgrown:
        chosen = _forced
    elif len(backends) == 1:
        chosen = backends[0]
    else:
        calls = {b.name: _call(b, which, layout, geometry, args) for b in backends}
        p = args[3].p if which == "fwd" else 0.0
        tf32 = x.is_cuda and launch.kind(x) == "tf32"
        noise = rounding.noise(which, x, args[1], geometry, tf32, p)
        chosen = BACKENDS[timings.fastest(key, calls, noise=noise)]
    return _Run(chosen.name, key, len(backends), chosen is _forced, x.dtype, x.device)


def _add_active(
    into: Tensor, layout: BlockLayout, geometry: Geometry, dy: Tensor, x: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    TRITON.add_blocks(DENSE.whole_wgrad(dy, x, geometry), layout, into)
    return into, elementwise.column_sums(dy) if with_bias else None


def _add_to(into: Tensor, wgrad: Callable[[], Any]) -> Any:
    dw, db = wgrad()
    return into.add_(dw), db


def candidates(which: str, layout: BlockLayout, x: Tensor) -> list[Backend]:
    """The backends that may run a pass on `x` or `dy`, the preferred first."""
    if layout.outgrown:
        return [DENSE]  # it alone reads the whole weight
    ours = [b for b in (TRITON, CPU) if b.takes(which, x, layout)]
    # torch comes last, where `timings.fastest` expects what is trusted.
    return [*ours, DENSE]


def runs_for(layout: BlockLayout, parts: Sequence[BlockLayout]) -> None:
    """What runs for `layout` is from now on what runs for these, too."""
    for part in parts:
        part.runs = layout.runs


def last_runs(layout: BlockLayout) -> dict[str, tuple[str, dict[str, float] | None, str]]:
    """What ran last for a layout: by pass, the backend, the seconds that were measured, and what
    kept other backends from being tried or used; empty if nothing did.
    """
    runs = layout.runs.items()
    return {w: (r.backend, timings.known(r.key), _why(r, layout)) for w, r in runs}


def _why(run: _Run, layout: BlockLayout) -> str:
    """What kept our kernels out."""
    if run.forced:
        return "forced"
    if run.candidates > 1:
        failed = timings.failed(run.key)
        return f"{', '.join(failed)} left out: wrong values or an error" if failed else ""
    if layout.outgrown:
        return "dense alone reads weights outside the mask"
    kind = f"{str(run.dtype).removeprefix('torch.')} in blocks of {layout.block_size}"
    if run.device.type != "cuda":
        return f"no kernel of ours takes {kind} on this device"
    if run.dtype not in launch.DTYPES or layout.block_size not in configs.BLOCK_SIZES:
        return f"no kernel of ours takes {kind}"
    return launch.why_not(run.device.index) or "our kernels failed their check on this GPU"


def _call(
    backend: Backend, which: str, layout: BlockLayout, geometry: Geometry, args: tuple
) -> Callable[[], Any]:
    if which == "fwd":
        x, weight, bias, epilogue = args
        return partial(backend.fwd, x, weight, bias, layout, geometry, epilogue)
    if which == "dgrad":
        dy, weight, length = args
        return partial(backend.dgrad, dy, weight, layout, geometry, length)
    dy, x, with_bias = args
    return partial(backend.wgrad, dy, x, layout, geometry, with_bias)


def _key(which: str, layout: BlockLayout, geometry: Geometry, x: Tensor) -> str:
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
