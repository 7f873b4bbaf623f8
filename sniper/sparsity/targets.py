# SPDX-License-Identifier: Apache-2.0
"""What a mask is put on: blocks of block-sparse layers, or single weights of any parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sniper.layers import BlockSparseConv1d, BlockSparseLinear
from sniper.sparsity.masks import expand_blocks


class BlockTargets:
    """The weights of a model's block-sparse layers; a mask is bool `[N/b, K/b]` or `[N/b, taps,
    C/b]`.

    Args:
        model: after `sparsify`.
        params: the parameters that may be pruned, by name; layers with another weight are left
            alone.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter]):
        names = {id(p): name for name, p in params.items()}
        self.layers: dict[str, BlockSparseLinear | BlockSparseConv1d] = {
            names[id(m.weight)]: m
            for m in model.modules()
            if isinstance(m, (BlockSparseLinear, BlockSparseConv1d)) and id(m.weight) in names
        }
        if not self.layers:
            raise ValueError(
                "expected at least one block-sparse layer with a weight to prune, got none"
            )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: layer.weight for name, layer in self.layers.items()}

    def get_mask(self, name: str) -> Tensor | None:
        return self.layers[name].block_mask

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Puts the mask on and zeroes what it prunes."""
        self.layers[name].set_block_mask(mask)

    def expand(self, name: str, mask: Tensor) -> Tensor:
        """The mask per weight, of the parameter's shape."""
        layer = self.layers[name]
        return expand_blocks(mask, layer.block_size, layer.weight.shape)

    def density(self, name: str) -> float:
        return self.layers[name].density


class ElementTargets:
    """Parameters masked weight by weight; a mask is bool of the parameter's shape.

    Args:
        model: the module whose forward re-zeroes pruned weights where gradients are not masked.
        params: the parameters, by name.
        mask_gradients: pruned weights get zero gradients, so that they stay zero. False leaves
            gradients alone and zeroes the weights before each forward instead, as the authors' code
            does.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter], mask_gradients: bool):
        self.parameters = params
        self._masks: dict[str, Tensor] = {}
        self._full: set[str] = (
            set()
        )  # masks that prune nothing, so that a dense phase costs nothing
        if mask_gradients:
            for name, p in params.items():
                p.register_hook(self._gradient_hook(name))
        else:
            model.register_forward_pre_hook(lambda module, args: self._zero_pruned())

    def get_mask(self, name: str) -> Tensor | None:
        return self._mask_on(name, self.parameters[name].device)

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Puts the mask on and zeroes what it prunes."""
        self._masks[name] = mask.to(self.parameters[name].device)
        if bool(mask.all()):
            self._full.add(name)
        else:
            self._full.discard(name)
            self._zero(name)

    def expand(self, name: str, mask: Tensor) -> Tensor:
        """The mask itself."""
        return mask

    def density(self, name: str) -> float:
        mask = self._masks.get(name)
        return 1.0 if mask is None or mask.numel() == 0 else int(mask.sum()) / mask.numel()

    def _gradient_hook(self, name: str) -> Callable[[Tensor], Tensor | None]:
        def hook(grad: Tensor) -> Tensor | None:
            if name in self._full or name not in self._masks:
                return None
            # masked_fill, not a product: an infinite gradient of a pruned weight must not become
            # NaN.
            return grad.masked_fill(~self._mask_on(name, grad.device), 0)

        return hook

    def _mask_on(self, name: str, device: torch.device) -> Tensor | None:
        mask = self._masks.get(name)
        if mask is not None and mask.device != device:  # the model was moved
            mask = self._masks[name] = mask.to(device)
        return mask

    @torch.no_grad()
    def _zero(self, name: str) -> None:
        p = self.parameters[name]
        p.data.masked_fill_(~self._mask_on(name, p.device), 0)

    def _zero_pruned(self) -> None:
        for name in self._masks.keys() - self._full:
            self._zero(name)
