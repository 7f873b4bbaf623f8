# SPDX-License-Identifier: Apache-2.0
"""Residual, dropout and LayerNorm as a Transformer puts them together, one kernel on a GPU."""

from __future__ import annotations

from torch import Tensor, nn

from sniper.layers.dropout import Dropout
from sniper.ops import norm as ops


def add_norm(
    x: Tensor, branch: Tensor, dropout: nn.Module, norm: nn.Module, for_product: bool = False
) -> tuple[Tensor, Tensor]:
    """`s = x + dropout(branch)` and `norm(s)`: one visit forward and one backward on a GPU.

    What our kernel does not know is called as it is: another class of norm or dropout, modules with
    hooks, other dtypes and devices.

    Args:
        x: the residual `[..., C]`.
        branch: what is added to it, of x's shape.
        dropout: an `nn.Dropout` for its rate and mode, or any module.
        norm: an `nn.LayerNorm` over C, or any module.
        for_product: the kernel may give the second result as products take it, in autocast's
            dtype, which saves them a cast; set it where nothing else reads the result.

    Returns:
        s and `norm(s)`, both of x's shape.
    """
    if type(dropout) in (nn.Dropout, Dropout) and not _hooked(dropout):
        p = dropout.p if dropout.training else 0.0
        # At p = 1 the scale is infinite; torch's own dropout defines that result.
        if p < 1 and _fuses(x, norm, branch):
            return ops.add_norm(x, branch, norm.weight, norm.bias, norm.eps, p, for_product)
    s = x + dropout(branch)
    return s, norm(s)


def layer_norm(x: Tensor, norm: nn.Module, for_product: bool = False) -> Tensor:
    """`norm(x)`; arguments as for `add_norm`."""
    if _fuses(x, norm):
        return ops.add_norm(x, None, norm.weight, norm.bias, norm.eps, 0.0, for_product)[1]
    return norm(x)


def _fuses(x: Tensor, norm: nn.Module, branch: Tensor | None = None) -> bool:
    if type(norm) is not nn.LayerNorm or _hooked(norm):
        return False
    weight = norm.weight
    # torch's stubs say that both are always there.
    if weight is None or norm.bias is None or weight.dtype != norm.bias.dtype:
        return False
    return ops.fuses_norm(x, weight, branch)


def _hooked(module: nn.Module) -> bool:
    """Whether somebody watches this module's calls, which a fused kernel would not make."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
