# SPDX-License-Identifier: Apache-2.0
"""Block-sparse products and the choice of what runs them."""

from sniper.ops.attention import attention
from sniper.ops.block_matmul import block_matmul
from sniper.ops.dispatch import autotune, executor
from sniper.ops.dropout import dropout, relu_dropout
from sniper.ops.explain import explain
from sniper.ops.geometry import Geometry, register_layout
from sniper.ops.memory import keep_freed_memory

__all__ = [
    "Geometry",
    "attention",
    "autotune",
    "block_matmul",
    "dropout",
    "executor",
    "explain",
    "keep_freed_memory",
    "register_layout",
    "relu_dropout",
]
