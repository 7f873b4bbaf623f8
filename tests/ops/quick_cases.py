# SPDX-License-Identifier: Apache-2.0
"""The real cases of the self-check, in an interpreter that is quicker, for `test_selfcheck.py`."""

import quick_interpreter  # noqa: F401

from sniper.ops import selfcheck_cases
from sniper.ops.backends.triton import tuning
from sniper.ops.selfcheck_cases import families

__all__ = ["families"]


def sample(which, layout, *operands):
    """Of each path's tilings of a product one: the largest forward, the smallest backward; of a
    weight gradient's all. What is left out is the same kernel with another number.
    """
    every = tuning.every_tiling(which, layout, *operands)
    if which == "wgrad":
        return every
    ordered = sorted(every, key=lambda t: t.config.tokens, reverse=which == "dgrad")
    return list({tiling.path: tiling for tiling in ordered}.values())


selfcheck_cases._Case.tilings = lambda self, which: sample(
    which, self.layout, *self._operands(which)[:2]
)
