# SPDX-License-Identifier: Apache-2.0
"""Residual, dropout and LayerNorm as a Transformer puts them together, one kernel on a GPU."""

from __future__ import annotations

from torch import Tensor, nn

from sniper.layers.dropout import changed, check_kinds, drop_rate
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

    Raises:
        ValueError: no tensors, no modules.
    """
    check_kinds(x=(x, Tensor), branch=(branch, Tensor))
    check_kinds(dropout=(dropout, nn.Module), norm=(norm, nn.Module))
    p, known = drop_rate(dropout), _known(norm)
    if p is not None and known is not None and ops.fuses_norm(x, known.weight, branch):
        return ops.add_norm(x, branch, known.weight, known.bias, known.eps, p, for_product)
    s = x + dropout(branch)
    return s, norm(s)


def layer_norm(
    x: Tensor,
    norm: nn.Module,
    for_product: bool = False,
    relu: bool = False,
    dropout: nn.Module | None = None,
) -> Tensor:
    """`norm(x)`, or `dropout(norm(relu(x)))`, in one kernel forward and one backward on a GPU.

    Args:
        x: `[..., C]`.
        norm, for_product: as for `add_norm`.
        relu: whether there is one before it.
        dropout: behind it; None: there is none.

    Returns:
        What comes out, of x's shape.

    Raises:
        ValueError: no tensor, no module.
    """
    check_kinds(x=(x, Tensor), norm=(norm, nn.Module))
    if dropout is not None:
        check_kinds(dropout=(dropout, nn.Module))
    p, known = 0.0 if dropout is None else drop_rate(dropout), _known(norm)
    if p is not None and known is not None and (relu or p):
        if ops.fuses_norm(x, known.weight, more=True):
            args = (known.weight, known.bias, known.eps, p, for_product, relu)
            return ops.add_norm(x, None, *args)[1]
    x = x.relu() if relu else x
    if known is not None and ops.fuses_norm(x, known.weight):
        y = ops.add_norm(x, None, known.weight, known.bias, known.eps, 0.0, for_product)[1]
    else:
        y = norm(x)
    return y if dropout is None else dropout(y)


def _known(norm: nn.Module) -> nn.LayerNorm | None:
    """Itself where it is a LayerNorm as the kernel computes it."""
    if not isinstance(norm, nn.LayerNorm) or changed(norm, nn.LayerNorm):
        return None
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    return norm if weight is not None and bias is not None and weight.dtype == bias.dtype else None
