# SPDX-License-Identifier: Apache-2.0
"""Block-sparse products on NVIDIA GPUs from sm_80, in Triton. Nothing here waits for the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sniper.kernels import configs
from sniper.ops import selfcheck
from sniper.ops.backend import check_shape, out_length, sum_dtype
from sniper.ops.backends.triton import elementwise, launch, tuning
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK, column_sums, dropout_args
from sniper.ops.backends.triton.tuning import Tiling, pick_tiling, tune
from sniper.ops.geometry import NO_EPILOGUE, Epilogue, Geometry, dropout_words
from sniper.ops.layout import BlockLayout


class End(NamedTuple):
    """What becomes of a product's float32 tile before it is stored; see `kernels.common`."""

    bias: Tensor | None = None
    seed: Tensor | None = None
    gate: Tensor | None = None
    threshold: int = 0
    scale: float = 1.0
    relu: bool = False


NO_END = End()


@dataclass(frozen=True)
class TritonBackend:
    """Our GPU kernels: float32 (as tf32 where torch allows it), bfloat16 and float16, summed in
    float32.

    Passes are as in `sniper.ops.backend.Backend`, with one argument more: `tiling` says how to
    launch; None takes the measured or built-in one. A seed is an int64 scalar on the device, or a
    number, which costs a launch; it zeroes what the same seed zeroes on the CPU.
    """

    name: str = "triton"
    fuses_epilogue: bool = True
    fuses_bias_grad: bool = True

    def takes(self, which: str, x: Tensor, layout: BlockLayout) -> bool:
        """As the protocol has it; checks a GPU's kernels first, and warns once if they fail."""
        if layout.block_size not in configs.BLOCK_SIZES or not launch.usable(x):
            return False
        # Dense torch counts in 64 bits, so such a tensor still has somebody to run it.
        if not launch.countable(x):
            return False
        return bool(tuning.trusted_paths(which, layout.block_size, x))

    def serves(self, x: Tensor) -> bool:
        """Whether elementwise kernels may run on tensors such as this."""
        if not launch.usable(x) or not elementwise.countable(x):
            return False
        return selfcheck.trusted(x, ELEMENTWISE_BLOCK, selfcheck.ELEMENTWISE)

    def fwd(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: BlockLayout,
        geometry: Geometry,
        epilogue: Epilogue = NO_EPILOGUE,
        tiling: Tiling | None = None,
    ) -> Tensor:
        n, c = launch.check_layout(layout, geometry, x.device)
        launch.check("x", x, x, (None, None, c))
        launch.check("weight", weight, x, (n, geometry.taps * c))
        if bias is not None:
            launch.check("bias", bias, x, (n,), or_float32=True)
            # An expanded bias has a stride of 0, which the kernel does not ask for.
            bias = bias.contiguous()
        # Not zeros: a block row without active blocks is written too, with its bias.
        y = x.new_empty(x.shape[0], out_length(geometry, x.shape[1]), n)
        seed, threshold, scale = dropout_args(epilogue.p, epilogue.seed, x.device)
        end = End(bias, seed, None, threshold, scale, epilogue.relu)
        tiling = tiling or pick_tiling("fwd", layout, geometry, x, weight)
        return _product(tiling, x, weight, y, layout, geometry, end)

    def dgrad(
        self,
        dy: Tensor,
        weight: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        length: int,
        gate: Tensor | None = None,
        p: float = 0.0,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """As the protocol has it. With `gate = dropout(relu(z), p)` of dx's shape and dy's dtype,
        dL/dz in place of the gradient of `gate` itself.
        """
        n, c = launch.check_layout(layout, geometry, dy.device)
        launch.check("dy", dy, dy, (None, out_length(geometry, length), n))
        launch.check("weight", weight, dy, (n, geometry.taps * c))
        end = NO_END
        if gate is not None:
            launch.check("gate", gate, dy, (dy.shape[0], length, c))
            # Read where dx is written, by the same offsets.
            end = End(gate=gate.contiguous(), scale=dropout_words(p)[1])
        dx = dy.new_empty(dy.shape[0], length, c)
        tiling = tiling or pick_tiling("dgrad", layout, geometry, dy, weight)
        return _product(tiling, dy, weight, dx, layout, geometry, end, transposed=True)

    def wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        with_bias: bool = False,
        tiling: Tiling | None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As the protocol has it. Tokens are split among programs whose sums are added in a fixed
        order: equal inputs give equal bits. With `into`, contiguous float32 of dL/dW's shape, the
        active blocks are added to it, the others are not touched, and it is what is returned.
        """
        n, c = launch.check_layout(layout, geometry, x.device)
        launch.check("x", x, x, (None, None, c))
        launch.check("dy", dy, x, (x.shape[0], out_length(geometry, x.shape[1]), n))
        dw = into
        if dw is None:
            # Zeros, since programs exist for active blocks alone and nobody visits the others.
            dw = x.new_zeros(n, geometry.taps * c)
        else:
            _check_into(dw, (n, geometry.taps * c), x.device)
        tiling = tiling or pick_tiling("wgrad", layout, geometry, dy, x)
        along = with_bias and self.sums_along(dy, layout.block_size) and layout.nnz
        along = along and x.numel() and dy.numel()
        db = dy.new_empty(n, dtype=sum_dtype(dy)) if along else None
        _wgrad(tiling, dy, x, dw, layout, geometry, into is not None, db)
        return dw, column_sums(dy) if with_bias and db is None else db

    def sums_along(self, dy: Tensor, block: int) -> bool:
        """Whether `wgrad` sums dy on its way, by a product with ones, in blocks of size `block`. As
        tf32 that would round it. In blocks under 64 it is an `mma` beside a `wgmma`, and what
        Triton (3.6 to 3.9) makes of the two overwrites tiles that an sm_90's `wgmma` still reads.
        """
        return launch.kind(dy) != "tf32" and (block >= 64 or not launch.has_wgmma(dy.device))

    def add_blocks(self, dw: Tensor, layout: BlockLayout, into: Tensor) -> Tensor:
        """Adds the active blocks of a dense dL/dW `[N, taps * C]` to contiguous float32 of its
        shape, and returns that. What lies in pruned blocks does not count.
        """
        launch.check("dw", dw, dw, None)
        _check_into(into, tuple(dw.shape), dw.device)
        dw, block = dw.contiguous(), layout.block_size
        if layout.nnz and dw.numel():
            args = (dw, into, layout.row_indices, layout.col_indices, dw.shape[1])
            with launch.on(dw.device):
                launch.kernels().add_blocks[(layout.nnz, block // 16)](*args, B=block, BN=16)
        return into

    def tune(self, which: str, layout: BlockLayout, geometry: Geometry, *args) -> str:
        """Times every tiling of a pass on these tensors; later calls use the fastest.

        Args:
            which: `fwd`, `dgrad` or `wgrad`.
            args: x, weight, bias; dy, weight, length; or dy, x.

        Returns:
            What was chosen, in words.
        """

        return tune(
            which,
            layout,
            geometry,
            args[:2],
            lambda tiling: self.run_with(tiling, which, layout, geometry, *args),
        )

    def run_with(
        self, tiling: Tiling, which: str, layout: BlockLayout, geometry: Geometry, *args
    ) -> Tensor:
        """A pass by its name, launched as `tiling` says; `args` as `tune` takes them."""
        if which == "fwd":
            x, weight, bias = args
            return self.fwd(x, weight, bias, layout, geometry, tiling=tiling)
        if which == "dgrad":
            dy, weight, length = args
            return self.dgrad(dy, weight, layout, geometry, length, tiling=tiling)
        dy, x = args
        return self.wgrad(dy, x, layout, geometry, tiling=tiling)[0]


TRITON = TritonBackend()


def _check_into(into: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if into.dtype != torch.float32 or not into.is_contiguous() or into.device != device:
        raise ValueError(
            f"into: expected contiguous float32 on {device}, "
            f"got {into.dtype} with strides {into.stride()} on {into.device}"
        )
    check_shape("into", into, shape)


def _product(
    tiling: Tiling,
    src: Tensor,
    weight: Tensor,
    out: Tensor,
    layout: BlockLayout,
    geometry: Geometry,
    end: End,
    transposed: bool = False,
) -> Tensor:
    """The forward pass, or `transposed` the input gradient; returns `out`, shape and all."""
    # CUDA refuses a grid without programs.
    if not out.numel():
        return out
    (path, config), block = tiling, layout.block_size
    # The input gradient is the same product over the transposed blocks, with taps that reach to the
    # other side.
    index, sign = (layout.crow_indices, layout.col_indices, layout.row_order), 1
    if transposed:
        index, sign = (layout.crow_indices_t, layout.col_indices_t, layout.row_order_t), -1
    span = geometry.dilation * (geometry.taps - 1)
    src, weight = launch.rows_contiguous(src, span), launch.rows_contiguous(weight, len(weight))
    src, rows_out = launch.flat(geometry, src, out)
    batch, length = rows_out.shape[:2]
    rows, inner = rows_out.shape[2] // block, src.shape[2] // block
    # Counted by sequence, so that no tile reaches from one into the next.
    length_tiles = -(-length // config.tokens)
    tiles = batch * length_tiles
    if path == "tma":
        kernel = launch.kernels().product_tma
        tile = [config.width, block] if transposed else [block, config.width]
        # With a dimension for the sequences: the copy engine gives zeros outside of each, which is
        # the padding.
        tokens, rest = configs.powers_of_two(config.tokens)
        parts = [
            launch.descriptor(src, [1, n, config.width]) if n else None for n in (tokens, rest)
        ]
        operands = (*parts, launch.descriptor(weight, tile))
        sizes, strides = {"BT": tokens, "BT_REST": rest}, ()
    else:
        kernel, operands = launch.kernels().product_pointer, (src, weight)
        sizes = {"BT": config.tokens}
        strides = (src.shape[1], src.stride(0), src.stride(1), weight.stride(0))
    with launch.on(src.device):
        kernel[(rows * tiles,)](
            *operands,
            rows_out,
            *(end.bias, end.seed, end.gate),
            *index,
            *(length, length_tiles, tiles, rows, inner),
            *(-sign * geometry.pad_left, sign * geometry.dilation),
            *(end.threshold, end.scale),
            *strides,
            B=block,
            **sizes,
            BK=config.width,
            GROUP=configs.GROUP,
            TRANSPOSED=transposed,
            RELU=end.relu,
            PRECISION=launch.precision(src),
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def _wgrad(
    tiling: Tiling,
    dy: Tensor,
    x: Tensor,
    dw: Tensor,
    layout: BlockLayout,
    geometry: Geometry,
    add: bool,
    db: Tensor | None,
) -> Tensor:
    """Fills the active blocks of `dw`, which is zero, or adds to them; returns it. Fills `db`."""
    (path, config), block, entries = tiling, layout.block_size, layout.nnz
    if not entries or not dy.numel() or not x.numel():
        return dw
    rows, taps, inner = layout.shape
    span = geometry.dilation * (geometry.taps - 1)
    dy, x = launch.rows_contiguous(dy, span), launch.rows_contiguous(x, span)
    dy, x = launch.flat(geometry, dy, x)
    length_tiles = -(-dy.shape[1] // config.tokens)
    tiles = dy.shape[0] * length_tiles
    # A program for as many blocks as a row may have, or for each that is active; behind those, for
    # each row, since one without blocks has a bias all the same.
    programs = rows * -(-taps * inner // config.width)
    if config.width == 1:
        programs = entries + (0 if db is None else rows)
    tiles_of_split = launch.split_tiles(x.device, -(-entries // config.width), tiles)
    splits = -(-tiles // tiles_of_split)
    # A sum for each split, and no atomic additions, whose order changes the bits from run to run.
    partial = x.new_empty(splits, entries, block, block, dtype=torch.float32)
    sums = None if db is None else x.new_empty(splits, rows * block, dtype=torch.float32)
    strides = ()
    if path == "tma":
        kernel, tile = launch.kernels().wgrad_tma, [1, config.tokens, block]
        operands = (launch.descriptor(dy, tile), launch.descriptor(x, tile))
    else:
        kernel, operands = launch.kernels().wgrad_pointer, (dy, x)
        strides = (dy.shape[1], x.shape[1], dy.stride(0), dy.stride(1), x.stride(0), x.stride(1))
    with launch.on(x.device):
        kernel[(programs * splits,)](
            *operands,
            partial,
            sums,
            *(layout.crow_indices, layout.col_indices, layout.row_indices, layout.row_order),
            *(rows, programs, inner, entries, length_tiles, tiles, tiles_of_split),
            *(-geometry.pad_left, geometry.dilation),
            *strides,
            B=block,
            BT=config.tokens,
            G=config.width,
            PRECISION=launch.precision(x),
            num_warps=config.warps,
            num_stages=config.stages,
        )
        sums_too = entries if db is None else entries + rows
        launch.kernels().wgrad_reduce[(sums_too, block // 16)](
            *(partial, dw, sums, db, layout.row_indices, layout.col_indices),
            *(entries, splits, dw.shape[1], rows),
            B=block,
            BN=16,
            ADD=add,
        )
    return dw
