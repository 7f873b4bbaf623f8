# SPDX-License-Identifier: Apache-2.0
"""Which kernel and tile sizes a pass is launched with: a built-in table, or what was measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import rounding, selfcheck, timings
from sniper.ops.backends.triton import launch
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout


class Tiling(NamedTuple):
    """How a pass is launched.

    Args:
        path: `tma` (the copy engine of sm_90 and newer) or `pointer` (any GPU from sm_80).
        config: tile sizes, warps and pipeline stages.
    """

    path: str
    config: configs.Config

    def __str__(self) -> str:
        c = self.config
        return f"{self.path} {c.tokens}x{c.width} {c.warps} warps {c.stages} stages"


def tilings(which: str, layout: BlockLayout, *operands: Tensor) -> list[Tiling]:
    """Everything that may run a pass on these tensors, the preferred first."""
    x = operands[0]
    # The interpreter makes Python of a kernel: a fault raises there and takes no process with it.
    if x.device.type != "cuda":
        return every_tiling(which, layout, *operands)
    trusted = trusted_paths(which, layout.block_size, x)
    return [t for t in every_tiling(which, layout, *operands) if t.path in trusted]


def trusted_paths(which: str, block_size: int, x: Tensor) -> list[str]:
    """The paths whose kernels fit x's GPU and have passed their check, the preferred first; warns
    once where none fits.
    """
    op, fitting = op_of(which), []
    for path in paths_of(block_size, x):
        if _fitting(op, path, block_size, launch.kind(x), x.device):
            fitting.append(path)
    if not fitting:
        _warn_that_none_fits(op, block_size, launch.kind(x), x.device)
    return [p for p in fitting if selfcheck.trusted(x, block_size, selfcheck.family(p, op))]


def paths_of(block_size: int, x: Tensor) -> list[str]:
    """The paths that a GPU has for a dtype and block size, the preferred first."""
    tma = configs.has_tma(launch.arch(x.device)) and block_size >= 64 and launch.kind(x) != "fp32"
    return ["tma", "pointer"] if tma else ["pointer"]


def op_of(which: str) -> str:
    """The family of kernels that runs a pass: `product` or `wgrad`."""
    return "wgrad" if which == "wgrad" else "product"


def every_tiling(which: str, layout: BlockLayout, *operands: Tensor) -> list[Tiling]:
    """Everything that could run a pass on these tensors, checked or not, the preferred first."""
    device, block, values = operands[0].device, layout.block_size, launch.kind(operands[0])
    op, paths = op_of(which), paths_of(layout.block_size, operands[0])
    if "tma" in paths and not all(_copy_engine_takes(t) for t in operands):
        paths = ["pointer"]
    return [
        Tiling(path, config)
        for path in paths
        for config in _fitting(op, path, block, values, device)
    ]


def pick_tiling(
    which: str, layout: BlockLayout, geometry: Geometry, x: Tensor, other: Tensor
) -> Tiling:
    """The measured best of `tilings` if it was tuned, else the table's for this length."""
    known = layout.known
    batch, length = x.shape[:2]
    # All but the length itself that this depends on, and the layout's version.
    key = (
        "tilings",
        which,
        x.dtype,
        launch.kind(x),
        _copy_engine_takes(x),
        _copy_engine_takes(other),
        (batch * length).bit_length(),
        geometry.dilation,
        timings.generation(),
        timings.clock(),
    )
    found = known.get(key)
    if found is None:
        found = known[key] = _measured_or_fitting(which, layout, geometry, x, other)
    best, path, fitting = found
    if best is not None:
        return best
    if geometry.taps == 1:
        # Without taps the launch makes one sequence of all (`launch.flat`).
        length *= batch
    config = configs.for_length(fitting, length)
    rows = layout.shape[2 if which == "dgrad" else 0]
    if which != "wgrad" and layout.nnz >= configs.DEEP_FROM * rows:
        config = max((c for c in fitting if c.tokens == config.tokens), key=lambda c: c.stages)
    return Tiling(path, config)


def _measured_or_fitting(
    which: str, layout: BlockLayout, geometry: Geometry, *operands: Tensor
) -> tuple[Tiling | None, str, list[configs.Config]]:
    """The measured best; path and tile sizes of the table among which the length decides."""
    usable = tilings(which, layout, *operands)
    times = timings.known(tuning_key(which, layout, geometry, operands[0]))
    # Times that lack a tiling are of another choice of candidates, and might hide a faster one.
    if times and all(str(t) in times for t in usable):
        return min(usable, key=lambda t: times[str(t)]), "", []
    path = usable[0].path
    fitting = [t.config for t in usable if t.path == path]
    if which == "wgrad":
        grouped = layout.density >= configs.GROUPED_FROM
        fitting = [c for c in fitting if (c.width > 1) == grouped] or fitting
    return None, path, fitting


def tuning_key(which: str, layout: BlockLayout, geometry: Geometry, x: Tensor) -> str:
    """Everything that times depend on; tokens by power of two, density in tenths."""
    rows, taps, inner = layout.shape
    machine = timings.machine(x.device)
    # Tokens count in powers of two, or every batch of another length would be tuned for minutes.
    tokens = (x.shape[0] * x.shape[1]).bit_length()
    return (
        f"triton {machine} {which} {x.dtype} {launch.kind(x)} {rows}x{taps}x{inner} blocks of "
        f"{layout.block_size} dilation {geometry.dilation} 2^{tokens} tokens "
        f"density {round(10 * layout.density)}/10"
    )


def tune(
    which: str,
    layout: BlockLayout,
    geometry: Geometry,
    operands: tuple[Tensor, Tensor],
    run: Callable[[Tiling], Tensor],
) -> str:
    """Times every tiling of a pass on these tensors; later calls use the fastest.

    The times are kept on disk by shape, dtype, density in tenths and device.

    Args:
        which: `fwd`, `dgrad` or `wgrad`.
        operands: the pass's x or dy, and its weight or x.
        run: computes the pass with one tiling.

    Returns:
        What was chosen, in words.
    """
    if not tuned(which, layout, geometry, operands[0]):
        timings.outdate()  # until now the table's tiling ran
    calls = {str(t): (lambda t=t: run(t)) for t in tilings(which, layout, *operands)}
    tf32 = launch.kind(operands[0]) == "tf32"
    noise = rounding.noise(which, *operands, geometry, tf32)
    return timings.fastest(tuning_key(which, layout, geometry, operands[0]), calls, noise=noise)


def tuned(which: str, layout: BlockLayout, geometry: Geometry, x: Tensor) -> bool:
    """Whether `tune` has times for a pass on tensors such as its first, x or dy."""
    return timings.known(tuning_key(which, layout, geometry, x)) is not None


def _fitting(
    op: str, path: str, block: int, kind: str, device: torch.device
) -> list[configs.Config]:
    limit = launch.shared_memory(device)
    return configs.candidates(op, path, block, kind, launch.arch(device), limit)


@cache
def _warn_that_none_fits(op: str, block: int, kind: str, device: torch.device) -> None:
    warnings.warn(
        f"block-sparse layers run dense in their {op} of {kind} blocks of {block}: no tile fits "
        f"the {launch.shared_memory(device)} bytes of shared memory of {device}",
        stacklevel=3,
    )


def _copy_engine_takes(t: Tensor) -> bool:
    """Whether address and rows are aligned to 16 bytes, or will be in the copy that is made of a
    tensor whose channels are not dense.
    """
    if not t.numel():
        return False
    *outer, last = t.stride()
    if last != 1:
        return True
    size = t.element_size()
    for stride in outer:
        if stride <= 0 or stride * size % 16:
            return False
    return t.data_ptr() % 16 == 0
