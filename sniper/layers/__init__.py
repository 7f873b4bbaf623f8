# SPDX-License-Identifier: Apache-2.0
"""Block-sparse Linear and Conv1d over dense parameters."""

from sniper.layers.batch_norm import batch_norm
from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.convert import ModuleReport, SparsifyReport, densify, sparsify
from sniper.layers.dropout import Dropout, relu_dropout
from sniper.layers.linear import BlockSparseLinear
from sniper.layers.masked import layout_versions
from sniper.layers.residual import add_norm, layer_norm
from sniper.ops.layout import BlockLayout

__all__ = [
    "BlockLayout",
    "BlockSparseConv1d",
    "BlockSparseLinear",
    "Dropout",
    "ModuleReport",
    "SparsifyReport",
    "add_norm",
    "batch_norm",
    "densify",
    "layer_norm",
    "layout_versions",
    "relu_dropout",
    "sparsify",
]
