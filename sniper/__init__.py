# SPDX-License-Identifier: Apache-2.0
"""SNIPER training in which the early sparsity is wall-clock speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Editors and type checkers do not run `__getattr__`, which loads these names.
if TYPE_CHECKING:
    from sniper.layers import BlockSparseConv1d, BlockSparseLinear, densify, sparsify
    from sniper.sparsity import (
        Fixed,
        Following,
        LearningRateScale,
        NewWeights,
        Sniper,
        SparsitySchedule,
        masks,
        saliency,
    )

__version__ = "0.1.0"

__all__ = [
    "BlockSparseConv1d",
    "BlockSparseLinear",
    "Fixed",
    "Following",
    "LearningRateScale",
    "NewWeights",
    "Sniper",
    "SparsitySchedule",
    "densify",
    "masks",
    "saliency",
    "sparsify",
]

_ROOMS = ("distributed", "layers", "ops", "optim", "sparsity")


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a command is there at once, and answers Ctrl-C while torch loads.
    if name in _ROOMS:
        return import_module(f"sniper.{name}")
    if name in __all__:
        for room in ("layers", "sparsity"):
            found = getattr(import_module(f"sniper.{room}"), name, None)
            if found is not None:
                # Python asks `__getattr__` for what is not there, so each name is looked for once.
                globals()[name] = found
                return found
    raise AttributeError(f"module 'sniper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
