# SPDX-License-Identifier: Apache-2.0
"""Custom operations of torch whose plain calls take a shorter way to their kernel.

Torch's dispatcher spends some 0.1 ms of Python on a call of a custom operation and on each call of
its gradient, which is more than a small layer computes. All of it serves whoever looks at
operations from outside: compilers, fakes, dispatch modes, the profiler, function transforms. Where
nobody does, the function is called as it is, in an autograd function if gradients are wanted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from sniper.ops.transforms import transforms_are_active

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_profiler_enabled = torch.autograd._profiler_enabled  # pyright: ignore[reportPrivateImportUsage]
_tracing_state = torch._C._get_tracing_state
_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
# Whether `torch.autograd.grad(is_grads_batched=True)` has put several tensors into one.
_stands_for_several = _functorch.is_legacy_batchedtensor
# Whether it comes from a transform of `torch.func`, which may be over.
_is_wrapped = _functorch.is_functorch_wrapped_tensor


class Operation:
    """A `torch.library.custom_op` and the short way to it; called as the function is.

    Args:
        name: `namespace::name`.
        run: the function, with the annotations from which torch reads a schema.
        mutates_args: the names of arguments that it writes to.

    Attributes:
        op: torch's operation.
    """

    def __init__(self, name: str, run: Callable[..., Any], mutates_args: tuple[str, ...] = ()):
        self._run = run
        self.op = torch.library.custom_op(name, run, mutates_args=mutates_args)
        # Where tensors may be: nothing else needs a look.
        arguments = self.op._opoverload._schema.arguments
        self._tensors = [i for i, each in enumerate(arguments) if "Tensor" in str(each.type)]
        parameters = inspect.signature(run).parameters
        self._written = [i for i, each in enumerate(parameters) if each in mutates_args]
        self._defaults = [each.default for each in parameters.values()]
        self._name = name.replace("::", "_")
        self._apply: Any = None

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """As torch's: shapes and dtypes of the results."""
        self.op.register_fake(fake)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """As torch's, for both ways.

        Args:
            backward: of `ctx` and the gradients of the results.
            setup_context: of `ctx`, `inputs` and `output`.
        """
        self.op.register_autograd(backward, setup_context=setup_context)

        def forward(ctx, *inputs):
            output = self._run_below(inputs)
            setup_context(ctx, inputs, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        function = type(self._name, (torch.autograd.Function,), methods)
        # Torch's own `apply` first looks at each argument for what a transform has left, once more.
        self._apply = super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or _watched():
            return self.op(*args)
        if len(args) < len(self._defaults):
            args = (*args, *self._defaults[len(args) :])
        differentiable = False
        for i in self._tensors:
            value = args[i]
            if value is None:
                continue
            # A subclass may want to see the operation, and a meta tensor has the fake alone.
            plain = type(value) is Tensor or type(value) is nn.Parameter
            if not (plain and (value.is_cpu or value.is_cuda)):
                return self.op(*args)
            if _stands_for_several(value) or _is_wrapped(value):
                return self.op(*args)
            if value.requires_grad:
                differentiable = True
        if not (differentiable and torch.is_grad_enabled()):
            return self._run_below(args)
        # Without a gradient torch's own error says so.
        return self.op(*args) if self._apply is None else self._apply(*args)

    def _run_below(self, args: tuple) -> Any:
        # As torch's own way does; a function may call what has gradients of its own.
        with torch._C._AutoDispatchBelowAutograd():
            result = self._run(*args)
        for i in self._written:
            if args[i] is not None and not args[i].is_inference():
                increment_version(args[i])
        return result


def operation(
    name: str, mutates_args: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Operation]:
    """Decorates a function that becomes an `Operation`.

    Args:
        name, mutates_args: as `Operation` takes them.
    """
    return lambda run: Operation(name, run, mutates_args)


def _watched() -> bool:
    """Whether somebody looks at operations that are called here."""
    return bool(
        _dispatch_modes()
        or _function_modes()
        or _profiler_enabled()
        or _tracing_state() is not None
        or transforms_are_active()
    )
