# SPDX-License-Identifier: Apache-2.0
"""SNIPER for any module: saliency, masks, schedule, and the object that ties them to a training
loop.
"""

from sniper.sparsity.masks import masks
from sniper.sparsity.pruner import Sniper
from sniper.sparsity.saliency import saliency
from sniper.sparsity.schedule import SparsitySchedule

__all__ = ["Sniper", "SparsitySchedule", "masks", "saliency"]
