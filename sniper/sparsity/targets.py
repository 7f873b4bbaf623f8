# SPDX-License-Identifier: Apache-2.0
"""What a mask is put on: blocks of block-sparse layers, or single weights of any parameter."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sniper.layers import BlockSparseConv1d, BlockSparseLinear, densify
from sniper.layers.ddp_buckets import make_buckets_anew
from sniper.layers.masked import BlockMaskedLayer, no_replicas
from sniper.layers.selection import check_whole_parameters, left_out_by_type
from sniper.layers.zeros import keep_zeros
from sniper.ops.gradients import hook_gradient, mask_gradient
from sniper.ops.layout import BlockLayout
from sniper.ops.rebuild import Change, rebuild
from sniper.sparsity.blocks import expand_blocks


class BlockTargets:
    """The weights of a model's block-sparse layers; a mask is bool `[N/b, K/b]` or `[N/b, taps,
    C/b]`.

    Args:
        model: after `sparsify`.
        params: the parameters that may be pruned, by name; layers with another weight are left
            alone.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter]):
        # By identity: a layer knows its weight and not what the model calls it.
        names = {id(p): name for name, p in params.items()}
        self.layers: dict[str, BlockSparseLinear | BlockSparseConv1d] = {
            names[id(m.weight)]: m
            for m in model.modules()
            if isinstance(m, (BlockSparseLinear, BlockSparseConv1d)) and id(m.weight) in names
        }
        if not self.layers:
            raise ValueError(
                "model: expected at least one block-sparse layer with a weight to prune, got none"
            )

    def follow(self) -> None:
        """Sees that the layers are there still; their weights are whatever they are now.

        Raises:
            ValueError: one is no block-sparse layer any more.
        """
        for name, layer in self.layers.items():
            if not isinstance(layer, BlockMaskedLayer):
                raise ValueError(
                    f"model: expected its block-sparse layers, got {name} as {type(layer).__name__}"
                    ": densify a copy of the model, or detach() the Sniper before"
                )

    def check_untied(self, model: nn.Module) -> None:
        """Refuses a weight that was tied to another module since, which no mask of its layer is
        meant for.

        Raises:
            ValueError: names it.
        """
        uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())
        _refuse_tied([name for name, p in self.parameters.items() if uses[id(p)] > 1])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that are masked, by name."""
        return {name: cast(nn.Parameter, layer.weight) for name, layer in self.layers.items()}

    @contextlib.contextmanager
    def watch_calls(self) -> Iterator[Callable[[], list[str]]]:
        """Gives a function that names the layers which were not called so far; none where no layer
        was, as in a model that was compiled before.
        """
        called: set[str] = set()

        def notes(name: str) -> Callable[[nn.Module, Any], None]:
            return lambda module, args: called.add(name)

        hooks = [layer.register_forward_pre_hook(notes(n)) for n, layer in self.layers.items()]
        try:
            yield lambda: [name for name in self.layers if called and name not in called]
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Without masks while the `with` block lasts: pruned weights are 0 and have gradients."""
        layouts = {layer: layer._layout for layer in self.layers.values()}
        try:
            for layer in layouts:
                layer._layout = None
                mask_gradient(layer.weight, None)
            yield
        finally:
            for layer, layout in layouts.items():
                layer._layout = layout
                mask_gradient(layer.weight, layout)

    def zero_pruned(self) -> None:
        """Zeroes what the masks prune."""
        for layer in self.layers.values():
            layer.zero_pruned()

    def leave_dense(self, names: list[str]) -> None:
        """Layers that are not to be masked after all are plain ones again.

        Raises:
            ValueError: no layer would be left.
        """
        # All at once: a refusal must leave the model as it was.
        if set(names) == set(self.layers):
            raise ValueError(
                "model: expected at least one layer that is called, got a model that reads the "
                f"weights of {', '.join(names)} itself"
            )
        for name in names:
            densify(self.layers.pop(name))

    def has_mask(self, name: str) -> bool:
        return self.layers[name].layout is not None

    def get_mask(self, name: str) -> Tensor | None:
        return self.layers[name].block_mask

    def copy_mask(self, name: str) -> Tensor:
        """The mask in force, all True without one, for the caller to keep."""
        layer = self.layers[name]
        mask = layer.block_mask  # a copy
        ones = torch.ones(layer.block_mask_shape, dtype=torch.bool, device=layer.weight.device)
        return ones if mask is None else mask

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Puts the mask on and zeroes what it prunes."""
        self.layers[name].set_block_mask(mask)

    def change_masks(
        self, masks: dict[str, Tensor], counts: dict[str, int], init: dict[str, Tensor]
    ) -> None:
        """Puts new masks on; what becomes active takes its value from `init`, if it has one.

        Args:
            masks: by name, as `set_mask` takes them.
            counts: how many entries of each are True.
            init: initial values by name, of the parameters' shapes.
        """
        # Remembered, so that a failure half way takes back what this call has begun.
        new = [layer for layer in self.layers.values() if layer.layout is None]
        changes, moved = [], []
        for name, layer in self.layers.items():
            mask = masks[name].to(layer.weight.device)
            if layer._ensure_layout():
                moved.append(layer.weight)
            assert layer.layout is not None
            changes.append(Change(layer.layout, layer.weight, mask, counts[name], init.get(name)))
        try:
            make_buckets_anew(moved)
            rebuild(changes)
        except BaseException:
            for layer in new:  # a layout that nobody has written would prune everything
                layer.set_block_mask(None)
            raise

    def state(self, name: str) -> list[Tensor]:
        """Everything that says which weights are active, for comparison between processes."""
        layout = self.layers[name].layout
        return [] if layout is None else layout.written()

    def gradient_mask(self, name: str) -> BlockLayout | None:
        """Which blocks of a gradient may differ from 0; None: all."""
        layout = self.layers[name].layout
        return None if layout is None or layout.is_full else layout

    def expand(self, name: str, mask: Tensor) -> Tensor:
        """The mask per weight, of the parameter's shape."""
        layer = self.layers[name]
        return expand_blocks(mask, layer.block_size, layer.weight.shape)

    def density(self, name: str) -> float:
        """Share of active weights, in [0, 1]."""
        return getattr(self.layers[name], "density", 1.0)  # 1 too once it was made dense

    def detach(self) -> None:
        """Lifts the masks."""
        for layer in self.layers.values():
            if isinstance(layer, BlockMaskedLayer):  # else it is dense already
                layer.set_block_mask(None)


def _refuse_tied(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"model: expected the parameters that are masked as they were, got {names[0]} tied to "
            "another module's since: tie weights before you make the Sniper, or call detach() and "
            "make a new one"
        )


class ElementTargets:
    """Parameters masked weight by weight; a mask is bool of the parameter's shape.

    Args:
        model: the module whose forward re-zeroes pruned weights where gradients are not masked.
        params: the parameters, by name.
        mask_gradients: pruned weights get zero gradients. False leaves gradients alone, as the
            authors' code does, and zeroes the weights before each forward, too.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter], mask_gradients: bool):
        self.parameters = params
        self._masks: dict[str, Tensor] = {}
        self._active: dict[str, int] = {}  # how many entries of a mask are True
        self._mask_gradients = mask_gradients
        self._model = model
        self._lifted = False
        # By the name of a parameter, or "" for the model's.
        self._hooks: dict[str, RemovableHandle] = {}
        if mask_gradients:
            for name, p in params.items():
                self._hooks[name] = hook_gradient(p, self._gradient_hook(name))
        else:
            self._hooks[""] = model.register_forward_pre_hook(self._before_forward)
        # Behind every step, since a loss need not call the model itself: Lightning's training_step
        # calls what is in it.
        keep_zeros(self)

    def follow(self) -> None:
        """Masks parameters that have taken the place of those it knew, as `load_state_dict` puts
        them there with `assign=True`.
        """
        for name, known in list(self.parameters.items()):
            try:
                p = self._model.get_parameter(name)
            except AttributeError:  # the module is another one now
                continue
            if p is known or p.shape != known.shape:
                continue
            self.parameters[name] = p
            if name in self._hooks:
                self._hooks[name].remove()
                self._hooks[name] = hook_gradient(p, self._gradient_hook(name))
            if self._prunes(name):
                self._zero(name)

    def check_untied(self, model: nn.Module) -> None:
        """Refuses a parameter that was tied to an embedding or normalisation layer since, which are
        never masked; to others it may be.

        Raises:
            ValueError: names it.
        """
        never = left_out_by_type(model)
        _refuse_tied([name for name, p in self.parameters.items() if id(p) in never])

    def _before_forward(self, module: nn.Module, args: tuple) -> None:
        # A method, not a lambda: a copied or pickled model takes its masks along.
        if getattr(module, "_is_replica", False):
            raise no_replicas()
        check_whole_parameters(module)
        self.follow()
        self.zero_pruned()

    def check_whole(self, sharded: Sequence[Tensor]) -> None:
        """Refuses a model with masks to which one of `sharded` belongs: since it was sharded its
        parameters are others, which nothing masks.

        Raises:
            ValueError: how it is sharded, and what to use instead.
        """
        ids = {id(p) for p in sharded}
        if self._masks and any(id(p) in ids for p in self._model.parameters()):
            check_whole_parameters(self._model)

    def detach(self) -> None:
        """Lifts the masks and takes the hooks away."""
        for hook in self._hooks.values():
            hook.remove()
        self._masks, self._active = {}, {}

    @contextlib.contextmanager
    def watch_calls(self) -> Iterator[Callable[[], list[str]]]:
        """Single weights are masked whoever reads them."""
        yield lambda: []

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Gradients as they are while the `with` block lasts; pruned weights stay 0."""
        self._lifted = True
        try:
            yield
        finally:
            self._lifted = False

    def leave_dense(self, names: list[str]) -> None:
        """Lets single parameters be as they are."""
        for name in names:
            del self.parameters[name]

    def has_mask(self, name: str) -> bool:
        return name in self._masks

    def get_mask(self, name: str) -> Tensor | None:
        return self._mask_on(name, self.parameters[name].device)

    def copy_mask(self, name: str) -> Tensor:
        """The mask in force, all True without one, for the caller to keep."""
        mask, p = self.get_mask(name), self.parameters[name]
        return torch.ones_like(p, dtype=torch.bool) if mask is None else mask.clone()

    def set_mask(self, name: str, mask: Tensor, count: int | None = None) -> None:
        """Puts the mask on and zeroes what it prunes; `count` is how many entries are True."""
        # The mask itself is kept, no copy: all stages are in memory already.
        self._masks[name] = mask.to(self.parameters[name].device)
        self._active[name] = int(mask.sum()) if count is None else count
        if not self._is_full(name):
            self._zero(name)

    @torch.no_grad()
    def change_masks(
        self, masks: dict[str, Tensor], counts: dict[str, int], init: dict[str, Tensor]
    ) -> None:
        """Puts new masks on; what becomes active takes its value from `init`, if it has one.

        Args:
            masks: by name, of the parameters' shapes.
            counts: how many entries of each are True.
            init: initial values by name.
        """
        for name, p in self.parameters.items():
            before = self.get_mask(name)
            # The authors' code finds newly active weights by their value, 0; an update has moved
            # pruned ones since the last forward, so they are zeroed first.
            if before is not None and not self._mask_gradients:
                self._zero(name)
            self.set_mask(name, masks[name], counts[name])
            if before is None or name not in init:
                continue
            mask = self._present_mask(name, p.device)
            # The authors' code restores whatever is exactly zero and active.
            newly = mask & ~before if self._mask_gradients else (p == 0) & mask
            p.data.copy_(torch.where(newly, init[name].to(p.device), p.data))

    def state(self, name: str) -> list[Tensor]:
        """Everything that says which weights are active, for comparison between processes."""
        return [self._masks[name]] if name in self._masks else []

    def gradient_mask(self, name: str) -> Tensor | None:
        """Which values of a gradient may differ from 0; None: all."""
        return self.get_mask(name) if self._prunes(name) else None

    def expand(self, name: str, mask: Tensor) -> Tensor:
        """The mask itself."""
        return mask

    def density(self, name: str) -> float:
        """Share of active weights, in [0, 1]."""
        mask = self._masks.get(name)
        return 1.0 if mask is None or mask.numel() == 0 else self._active[name] / mask.numel()

    def _is_full(self, name: str) -> bool:
        """Whether the mask prunes nothing, so that a dense phase costs nothing."""
        return self._active[name] == self._masks[name].numel()

    def _gradient_hook(self, name: str) -> Callable[[Tensor], Tensor | None]:
        def hook(grad: Tensor) -> Tensor | None:
            if self._lifted or name not in self._masks or self._is_full(name):
                return None
            # masked_fill, not a product: an infinite gradient of a pruned weight must not become
            # NaN.
            return grad.masked_fill(~self._present_mask(name, grad.device), 0)

        return hook

    def _mask_on(self, name: str, device: torch.device) -> Tensor | None:
        mask = self._masks.get(name)
        if mask is not None and mask.device != device:  # the model was moved
            mask = self._masks[name] = mask.to(device)
        return mask

    def _present_mask(self, name: str, device: torch.device) -> Tensor:
        mask = self._mask_on(name, device)
        assert mask is not None, name
        return mask

    @torch.no_grad()
    def _zero(self, name: str) -> None:
        p = self.parameters[name]
        p.data.masked_fill_(~self._present_mask(name, p.device), 0)

    def masked_parameters(self) -> list[nn.Parameter]:
        """The parameters of which something is pruned now."""
        self.follow()
        return [p for name, p in self.parameters.items() if self._prunes(name)]

    def zero_pruned(self, parameter: nn.Parameter | None = None) -> None:
        """Zeroes what the masks prune, of one parameter or of all; an update may have moved it."""
        for name, p in self.parameters.items():
            if (parameter is None or p is parameter) and self._prunes(name):
                self._zero(name)

    def _prunes(self, name: str) -> bool:
        return name in self._masks and not self._is_full(name)
