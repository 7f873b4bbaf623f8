# SPDX-License-Identifier: Apache-2.0
"""Block-sparse products and the choice of what runs them."""

import warnings
from typing import Any

from sniper.ops.attention import attention
from sniper.ops.autocast import cast_once
from sniper.ops.block_matmul import block_matmul
from sniper.ops.dispatch import autotune, use_backend
from sniper.ops.dropout import dropout, relu_dropout
from sniper.ops.explain import explain
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout
from sniper.ops.memory import keep_freed_memory

__all__ = [
    "BlockLayout",
    "Geometry",
    "attention",
    "autotune",
    "block_matmul",
    "cast_once",
    "dropout",
    "explain",
    "keep_freed_memory",
    "relu_dropout",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "executor":
        warnings.warn(
            "sniper.ops.executor: old name; write sniper.ops.use_backend",
            DeprecationWarning,
            stacklevel=2,
        )
        return use_backend
    raise AttributeError(f"module 'sniper.ops' has no attribute {name!r}")
