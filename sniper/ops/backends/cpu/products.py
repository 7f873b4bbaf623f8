# SPDX-License-Identifier: Apache-2.0
"""Block-sparse products in C++ on torch's threads; SNIPER_CPU=avx512|avx2|portable forces a set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sniper.ops.backend import check_shape, out_length
from sniper.ops.backends.cpu.launch import (
    BLOCK_SIZES,
    DTYPES,
    check_layout,
    check_tensor,
    dropout_arguments,
    empty,
    index_of,
    kernel_shape,
    kernels,
    operand,
    rows_of,
    transposed_index_of,
)
from sniper.ops.geometry import NO_EPILOGUE, Epilogue, Geometry, dropout_words
from sniper.ops.layout import BlockLayout


@dataclass(frozen=True)
class CpuBackend:
    """Our CPU kernels: float32, and bfloat16 (through float32 where the CPU has no AVX512_BF16).

    Passes are as in `sniper.ops.backend.Backend`. Dropout zeroes what `elementwise.dropout` with
    the same seed zeroes in a tensor of y's shape.
    """

    name: str = "cpu"
    fuses_epilogue: bool = True
    fuses_bias_grad: bool = True

    def takes(self, which: str, x: Tensor, layout: BlockLayout) -> bool:
        on_cpu = x.device.type == "cpu" and x.dtype in DTYPES
        return on_cpu and layout.block_size in BLOCK_SIZES

    def fwd(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layout: BlockLayout,
        geometry: Geometry,
        epilogue: Epilogue = NO_EPILOGUE,
    ) -> Tensor:
        check_tensor("x", x, 3)
        check_tensor("weight", weight, 2, x.dtype)
        n, c = check_layout(layout, geometry)
        check_shape("x", x, (None, None, c))
        check_shape("weight", weight, (n, geometry.taps * c))
        if bias is not None:
            check_tensor("bias", bias, 1, x.dtype)
            check_shape("bias", bias, (n,))
            # Sums are in float32 and begin with the bias, also where operands are bfloat16.
            bias = bias.float().contiguous()
        dtype, x, weight = x.dtype, operand(x), operand(weight)
        y = empty(x.dtype, x.shape[0], out_length(geometry, x.shape[1]), n)
        kernels(x).forward(
            kernel_shape(layout, geometry, x, y),
            index_of(layout),
            rows_of(x),
            (weight.data_ptr(), weight.stride(0)),
            0 if bias is None else bias.data_ptr(),
            epilogue.relu,
            dropout_arguments(epilogue.p, int(epilogue.seed)),
            rows_of(y),
            torch.get_num_threads(),
        )
        return y.to(dtype)

    def dgrad(
        self,
        dy: Tensor,
        weight: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        length: int,
        gate: Tensor | None = None,
        p: float = 0.0,
    ) -> Tensor:
        """As the protocol has it. With `gate = dropout(relu(z), p)` of dx's shape and dy's dtype,
        dL/dz in place of the gradient of `gate` itself.
        """
        check_tensor("dy", dy, 3)
        check_tensor("weight", weight, 2, dy.dtype)
        n, c = check_layout(layout, geometry)
        check_shape("dy", dy, (None, out_length(geometry, length), n))
        check_shape("weight", weight, (n, geometry.taps * c))
        if gate is not None:
            check_tensor("gate", gate, 3, dy.dtype)
            check_shape("gate", gate, (dy.shape[0], length, c))
            # The kernel may take all sequences for one, which then lie end to end in dx.
            gate = operand(gate.contiguous())
        dtype, dy, weight = dy.dtype, operand(dy), operand(weight)
        dx = empty(dy.dtype, dy.shape[0], length, c)
        kernels(dy).input_grad(
            # In the forward pass's terms: dx lies where x lay, and dy where y did.
            kernel_shape(layout, geometry, dx, dy),
            transposed_index_of(layout),
            rows_of(dy),
            (weight.data_ptr(), weight.stride(0)),
            (0, 0, 0) if gate is None else rows_of(gate),
            dropout_words(p)[1],
            rows_of(dx),
            torch.get_num_threads(),
        )
        return dx.to(dtype)

    def wgrad(
        self,
        dy: Tensor,
        x: Tensor,
        layout: BlockLayout,
        geometry: Geometry,
        with_bias: bool = False,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As the protocol has it. With `into`, contiguous float32 of dL/dW's shape, the active
        blocks are added to it, its pruned ones are neither read nor written, and it is returned.
        """
        check_tensor("dy", dy, 3)
        check_tensor("x", x, 3, dy.dtype)
        n, c = check_layout(layout, geometry)
        check_shape("x", x, (None, None, c))
        check_shape("dy", dy, (x.shape[0], out_length(geometry, x.shape[1]), n))
        dtype, dy, x = dy.dtype, operand(dy), operand(x)
        # In float32 for bfloat16 operands too, whose eight bits cannot add up thousands of rows.
        dw = empty(torch.float32, n, geometry.taps * c) if into is None else into
        if into is not None:
            check_tensor("into", into, 2, torch.float32)
            check_shape("into", into, (n, geometry.taps * c))
            # The kernel is told an address and no strides.
            if not into.is_contiguous():
                raise ValueError(f"into: expected contiguous rows, got strides {into.stride()}")
        db = empty(torch.float32, n) if with_bias else None
        kernels(x).weight_grad(
            kernel_shape(layout, geometry, x, dy),
            index_of(layout),
            transposed_index_of(layout),
            rows_of(dy),
            rows_of(x),
            dw.data_ptr(),
            0 if db is None else db.data_ptr(),
            into is not None,
            torch.get_num_threads(),
        )
        return dw.to(dtype) if into is None else dw, None if db is None else db.to(dtype)


CPU = CpuBackend()
