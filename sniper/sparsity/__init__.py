# SPDX-License-Identifier: Apache-2.0
"""SNIPER for any module: saliency, masks, schedule, and the object that ties them to a training
loop.
"""

from sniper.sparsity.masking import Fixed, Following, masks
from sniper.sparsity.optimizer import LearningRateScale, NewWeights
from sniper.sparsity.schedule import SparsitySchedule
from sniper.sparsity.scoring import saliency
from sniper.sparsity.sniper import Sniper

__all__ = [
    "Fixed",
    "Following",
    "LearningRateScale",
    "NewWeights",
    "Sniper",
    "SparsitySchedule",
    "masks",
    "saliency",
]
