# SPDX-License-Identifier: Apache-2.0
"""The operation of a depthwise convolution; `tests/layers/test_depthwise.py` has its values."""

import pytest
import torch
import torch.nn.functional as F

from sniper.ops import depthwise as ops


def test_gradients_of_gradients():
    x, weight, bias = torch.randn(2, 2, 6), torch.randn(2, 1, 3), torch.randn(2)

    def twice(function):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = function(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    got = twice(lambda x, w, b: ops.depthwise(x, w, b, 1, 1))
    wanted = twice(lambda x, w, b: F.conv1d(x, w, b, padding=1, groups=2))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_operator_is_registered_as_torch_wants_it():
    x, weight = torch.randn(2, 3, 9, requires_grad=True), torch.randn(3, 1, 3, requires_grad=True)
    torch.library.opcheck(ops.depthwise.op, (x, weight, None, 1, 1))


@pytest.mark.parametrize(
    ("x", "weight", "words"),
    [
        (torch.zeros(1, 2, 5).double(), torch.zeros(2, 1, 3), "x: expected"),
        (torch.zeros(1, 2, 5), torch.zeros(3, 1, 3), "weight: expected"),
        (torch.zeros(1, 2, 1), torch.zeros(2, 1, 3), "x: expected at least 3 frames"),
    ],
)
def test_refused(x, weight, words):
    with pytest.raises(ValueError, match=words):
        ops.depthwise(x, weight, None, 0, 0)
