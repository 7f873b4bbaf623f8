# SPDX-License-Identifier: Apache-2.0
"""LBFGS over block-sparse convolutions computes what it computes over plain ones."""

import pytest
import torch
from torch import nn

from sniper import BlockSparseConv1d, ops


class Masked(nn.Conv1d):
    """torch's convolution of a weight whose pruned entries are zeroed at each call."""

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_lbfgs_steps_as_over_a_plain_convolution(line_search_fn, set_to_none):
    ours = BlockSparseConv1d(32, 32, 3, padding=1, block_size=16)
    plain = Masked(32, 32, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    x, wanted = torch.randn(4, 32, 9), torch.randn(4, 32, 9)
    mask = torch.tensor([[[True, False], [False, True], [True, True]]] * 2)
    losses = {}
    for layer in (ours, plain):
        # Made before the mask: the optimizer needs no word of it.
        optimizer = torch.optim.LBFGS(
            layer.parameters(), lr=0.5, max_iter=4, line_search_fn=line_search_fn
        )
        if layer is ours:
            layer(x).square().sum().backward()  # a gradient from before
            layer.set_block_mask(mask)
            plain.mask = layer.layout.element_mask().permute(0, 2, 1)
            with torch.no_grad():
                plain.weight *= plain.mask

        def closure(layer=layer, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = (layer(x) - wanted).square().mean()
            loss.backward()
            return loss

        with ops.use_backend("cpu"):
            losses[layer] = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[ours][-1] < 0.9 * losses[ours][0]
    assert losses[ours] == pytest.approx(losses[plain], rel=1e-3)
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-2, atol=1e-3)
    assert not ours.weight.is_contiguous() and not ours.weight[~plain.mask].any()


def test_other_optimizers_get_gradients_as_kernels_walk_them():
    layer = BlockSparseConv1d(32, 32, 3, block_size=16)
    layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        layer(torch.randn(2, 32, 9)).square().sum().backward()
        optimizer.step()
    assert layer.weight.grad.stride() == layer.weight.stride()
