# SPDX-License-Identifier: Apache-2.0
"""What autocast makes of an operand."""

from __future__ import annotations

import torch
from torch import Tensor

from sniper.ops.geometry import check_tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives the operands of a product of `x`, or None where it gives none.

    Autocast leaves doubles alone, and knows no meta device.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def cast_once(x: Tensor) -> Tensor:
    """`x` as products take it, for whoever gives it to several of them: one cast, and one of its
    gradient, in place of one each.

    Args:
        x: floating-point values.

    Returns:
        Itself where autocast is off, or has nothing to change.

    Raises:
        ValueError: x is no tensor.
    """
    check_tensor("x", x)
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)
