# SPDX-License-Identifier: Apache-2.0
"""For training in several processes with a loop of one's own; docs/distributed.md says how."""

from __future__ import annotations

from sniper.sparsity.ddp import compress_gradients
from sniper.sparsity.exchange import GradientExchange

__all__ = ["GradientExchange", "compress_gradients"]
