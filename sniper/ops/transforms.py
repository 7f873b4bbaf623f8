# SPDX-License-Identifier: Apache-2.0
"""Function transforms that custom ops do not take part in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functions_are_transformed = torch._C._are_functorch_transforms_active


def transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work around this call.

    A custom op has a backward of its own. `torch.func.grad`, `jvp`, `vmap` and dual numbers do not
    see it: some raise, and `jvp` silently takes the derivative to be zero. Ops compute by torch's
    own functions there, which all transforms know.
    """
    return not torch.compiler.is_compiling() and transforms_are_active()


def transforms_are_active() -> bool:
    """`transformed`, for whoever knows that nothing is compiled here."""
    return _functions_are_transformed() or forward_ad._current_level >= 0


def leaves_the_process() -> bool:
    """Whether this call is recorded for a file, by `torch.export` or `torch.jit.trace`: what the
    graph of a block-sparse product refers to is in this process alone.
    """
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def is_batched(t: Tensor) -> bool:
    """Whether `vmap` goes over several tensors that this one stands for."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while functorch.is_gradtrackingtensor(t):
        t = functorch.get_unwrapped(t)
    return functorch.is_batchedtensor(t)


def has_memory(t: Tensor) -> bool:
    """Whether a tensor has numbers at an address: it is no meta or fake one, and none that stands
    for others in a transform.
    """
    plain = type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return plain and not (
        torch._is_functional_tensor(t)  # pyright: ignore[reportPrivateImportUsage]
        or functorch.is_functorch_wrapped_tensor(t)
    )
