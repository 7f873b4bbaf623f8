# SPDX-License-Identifier: Apache-2.0
"""What autocast makes of operands, and that an input of several products is cast once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sniper import sparsify
from sniper.ops import cast_once
from sniper.ops.autocast import autocast_dtype
from sniper.tts.model.transformer import SelfAttention


def test_only_where_autocast_is_on():
    x = torch.randn(3)
    assert autocast_dtype(x) is None and cast_once(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(x) == torch.bfloat16 and cast_once(x).dtype == torch.bfloat16
        half = x.bfloat16()
        assert cast_once(half) is half
        assert autocast_dtype(x.double()) is None and autocast_dtype(x.to("meta")) is None


class Casts(TorchDispatchMode):
    """Counts casts of activations, which have three dimensions."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].dim() == 3:
            self.count += out.dtype != args[0].dtype
        return out


@pytest.mark.parametrize("sparse", [False, True])
def test_attention_casts_its_input_once(sparse):
    attention = SelfAttention(32, 2, 0.0)
    if sparse:
        sparsify(attention, block_size=16)
        for layer in (attention.query, attention.key, attention.value):
            layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    x = torch.randn(2, 5, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), Casts() as forward:
        y = attention(x, None)
    with Casts() as backward:
        y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None
    assert forward.count == 1 and backward.count == 1
