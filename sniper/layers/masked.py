# SPDX-License-Identifier: Apache-2.0
"""What block-sparse layers share: a block mask over a dense weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sniper.layers.ddp_buckets import make_buckets_anew
from sniper.layers.flat_gradients import serve_lbfgs
from sniper.layers.zeros import keep_zeros
from sniper.ops.gradients import mask_gradient
from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import zero_pruned_
from sniper.ops.sharded import check_whole, sharding_of


def check_block_size(block_size: object) -> int:
    """`block_size` as an int >= 1, or a ValueError."""
    # True is an int in Python, and would cut blocks of one weight.
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size: expected a whole number >= 1, got {block_size!r}")
    return block_size


def layout_versions(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """What changes when a mask does.

    Args:
        model: any module.

    Returns:
        Handle and version of the layout of every block-sparse layer; zeros for one without a mask.

    Raises:
        ValueError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a module, got {model!r:.80}")
    return versions_of(m for m in model.modules() if isinstance(m, BlockMaskedLayer))


def versions_of(layers: Iterable[BlockMaskedLayer]) -> tuple[tuple[int, int], ...]:
    """`layout_versions`, of layers that are known."""
    layouts = (layer.layout for layer in layers)
    return tuple((0, 0) if each is None else (each.handle, each.version) for each in layouts)


def check_sizes(**sizes: object) -> None:
    """Refuses sizes of a layer that are no whole numbers >= 1.

    Raises:
        ValueError: names the first one.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {size!r}")
        if size >= 2**31:  # torch would say so in twenty lines, most of them C++
            raise ValueError(f"{name}: expected a size that memory can hold, got {size}")


def no_replicas() -> ValueError:
    """For torch.nn.DataParallel over several GPUs."""
    return ValueError(
        "model: expected one process a GPU, got DataParallel, whose replicas lie where no mask is: "
        "use DistributedDataParallel (start with torchrun)"
    )


class _MaskCopy(Tensor):
    """A layer's block mask as it was. Whoever writes to an entry is told that no layer sees it."""

    # What is computed from it is a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def __setitem__(self, place, value) -> None:
        warnings.warn(
            "block_mask: expected to be read, got a write: it is a copy, which the layer does not "
            "see; write to block_mask.clone() and give that to set_block_mask",
            stacklevel=2,
        )
        super().__setitem__(place, value)


class BlockMaskedLayer(nn.Module):
    """Mixin for a layer with `weight` `[N, K]` or `[N, C, taps]`; see `BlockSparseLinear` and
    `BlockSparseConv1d`.
    """

    weight: Tensor
    block_size: int
    # Class attributes, so that a layer whose class was swapped needs no other preparation.
    _layout: BlockLayout | None = None

    def _init_blocks(self, block_size: int) -> None:
        n, c = self.weight.shape[:2]
        b = check_block_size(block_size)
        if n % b or c % b:
            raise ValueError(
                f"block_size: expected a divisor of both dimensions, "
                f"got {block_size} for a weight of {n} x {c}"
            )
        self.block_size = block_size

    @property
    def block_mask_shape(self) -> tuple[int, ...]:
        """`(N/b, K/b)`, for a convolution `(N/b, taps, C/b)`."""
        n, c, *taps = self.weight.shape
        return (n // self.block_size, *taps, c // self.block_size)

    @property
    def block_mask(self) -> Tensor | None:
        """A copy of the mask, bool of `block_mask_shape`, or None when every weight is free."""
        if self._layout is None:
            return None
        mask = self._layout.block_mask.reshape(self.block_mask_shape).clone()
        return mask.as_subclass(_MaskCopy)

    @property
    def density(self) -> float:
        """Share of active weights, in [0, 1]; 1 without a mask."""
        return 1.0 if self._layout is None else self._layout.density

    @property
    def layout(self) -> BlockLayout | None:
        """The index arrays of the present mask."""
        return self._layout

    @torch.no_grad()
    def set_block_mask(self, mask: Tensor | None) -> None:
        """Sets which blocks are active and zeroes the weight in all others.

        Blocks that were pruned before and are active now hold zeros, until whoever called writes
        their values.

        Args:
            mask: bool of `block_mask_shape`, True where active, or None for a plain dense layer.

        Raises:
            ValueError: another shape or dtype.
        """
        if mask is None:
            if self._layout is not None:
                # Graphs that are still to run backward hold this layout; from now on it stands for
                # a weight that is dense.
                self._layout.retire()
            self._layout = None
            mask_gradient(self.weight, None)
            return
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"block mask: expected a bool tensor, got {got}")
        if tuple(mask.shape) != self.block_mask_shape:
            raise ValueError(
                f"block mask: expected shape {self.block_mask_shape}, got {tuple(mask.shape)}"
            )
        # A weight that is trained is trained with what is allocated here, wherever that is.
        with torch.inference_mode(self.weight.is_inference()), torch.no_grad():
            if self._ensure_layout():
                make_buckets_anew([self.weight])
            assert self._layout is not None
            self._layout.update(mask)
            self.zero_pruned()

    @torch.no_grad()
    def _ensure_layout(self) -> bool:
        """Prepares for a mask: memory that kernels can walk, and a layout that is still to be
        written if there is none. Returns whether the weight has changed its order in memory, which
        `make_buckets_anew` has to know.
        """
        check_whole("weight", self.weight)
        # Memory first: what is written into a layout is about the order in which kernels will walk.
        before = self.weight.stride()
        self._use_kernel_memory_order()
        if self._layout is None:
            n, *taps, c = self.block_mask_shape
            shape = (n, taps[0] if taps else 1, c)
            # On the meta device a mask would have no values.
            device = torch.device("cpu") if self.weight.is_meta else self.weight.device
            self._layout = BlockLayout.unwritten(shape, self.block_size, device)
        keep_zeros(self)
        mask_gradient(self.weight, self._layout)
        return self.weight.stride() != before

    def _use_kernel_memory_order(self) -> None:
        """Lays a convolution's weight out as `[N, taps, C]`; shape and Parameter stay what they
        are.
        """
        # A gradient that is there already follows: fused optimizers walk both as flat memory.
        for tensor in (self.weight, self.weight.grad):
            if tensor is None:
                continue
            rows = tensor.data.permute(0, 2, 1) if tensor.dim() == 3 else tensor.data
            if not rows.is_contiguous():
                rows = rows.contiguous()
                tensor.data = rows.permute(0, 2, 1) if tensor.dim() == 3 else rows
        if self.weight.dim() == 3:
            serve_lbfgs()

    def masked_parameters(self) -> list[Tensor]:
        """Its weight, while something of it is pruned."""
        layout = self._layout
        # A full mask prunes nothing, so a dense stage pays for no zeroing after its steps.
        kept = layout is None or layout.is_full or layout.outgrown
        return [] if kept else [self.weight]

    def check_whole(self, sharded: Sequence[Tensor]) -> None:
        """Refuses a masked weight that is one of `sharded`, or lies in one of them.

        Raises:
            ValueError: how it is sharded, and what to use instead.
        """
        if self._layout is None:
            return
        for p in sharded:
            # A flat parameter knows the modules whose weights it holds.
            held = (info.module for info in getattr(p, "_param_infos", ()))
            if p is self.weight or any(module is self for module in held):
                check_whole("weight", p)

    def zero_pruned(self, parameter: Tensor | None = None) -> None:
        """Zeroes what the mask prunes; the weight is its only parameter that has any."""
        if self._layout is not None:
            check_whole("weight", self.weight)
            zero_pruned_(self.weight, self._layout)

    def _replicate_for_data_parallel(self):
        if self._layout is not None:
            raise no_replicas()
        return super()._replicate_for_data_parallel()

    def __setstate__(self, state: dict) -> None:
        # Copies and unpickled layers have not been through `set_block_mask`.
        super().__setstate__(state)
        if self._layout is None:
            return
        keep_zeros(self)
        mask_gradient(self.weight, self._layout)
        if self._layout.outgrown or sharding_of(self.weight):
            return
        # What comes into a copy's pruned blocks from now on counts, as in an average of the
        # weights; what somebody had left there before does not.
        if not self._layout.was_copy:
            self.zero_pruned()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._layout is not None:
            self._bring_layout()
            self._use_kernel_memory_order()
        return self

    def _bring_layout(self) -> None:
        # On the meta device a mask would lose its values.
        if self._layout is not None and not self.weight.is_meta:
            self._layout = self._layout.to(self.weight.device)
            # Nor need it be the same parameter.
            mask_gradient(self.weight, self._layout)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        if self._layout is not None:
            # With assign=True the weight may come from another device.
            self._bring_layout()
            # A state dict may bring values into pruned blocks; what kernels skip must stay zero.
            self._use_kernel_memory_order()
            if not self._layout.outgrown:
                self.zero_pruned()

    def _blocks_repr(self) -> str:
        return f"block_size={self.block_size}, density={self.density:.3f}"
