# SPDX-License-Identifier: Apache-2.0
"""Gradients in the order of their dimensions, for LBFGS, which reads them as one vector.

The weight of a convolution with a mask lies in memory as kernels walk it, and autograd lays its
gradient out like it. LBFGS wants a view of that as a vector, which this memory order does not have.
"""

from __future__ import annotations

import functools

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

# Weights whose gradients are laid out anew already. By identity, since tensors compare by value.
_flattened = WeakTensorKeyDictionary()


@functools.cache
def serve_lbfgs() -> None:
    """From now on an LBFGS takes weights that kernels walk in an order of their own."""
    # Behind all optimizers at once: layers do not know which one the user will make, or when.
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    # By name, for subclasses and for copies of it in other libraries.
    if not any(kind.__name__ == "LBFGS" for kind in type(optimizer).__mro__):
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if _is_permuted(p) and p not in _flattened:
                # Gradients come from the closure, inside the step.
                p.register_post_accumulate_grad_hook(_lay_out)
                _flattened[p] = True


def _is_permuted(p: Tensor) -> bool:
    return p.dim() == 3 and not p.is_contiguous() and p.permute(0, 2, 1).is_contiguous()


def _lay_out(p: Tensor) -> None:
    assert p.grad is not None
    p.grad = p.grad.contiguous()
