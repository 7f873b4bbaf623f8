# SPDX-License-Identifier: Apache-2.0
"""SNIPER training in which the early sparsity is wall-clock speed."""

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
