# SPDX-License-Identifier: Apache-2.0
"""Shapes of a pass, handles, and weights seen as matrices."""

from __future__ import annotations

import pytest
import torch

from sniper.ops.geometry import Geometry, as_matrix, as_weight, columns_of


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("pad", [0, 2])
def test_out_length_is_torchs(k, dilation, pad):
    y = torch.nn.functional.conv1d(
        torch.ones(1, 1, 15), torch.ones(1, 1, k), padding=pad, dilation=dilation
    )
    assert Geometry(k, dilation, pad, pad).out_length(15) == y.shape[2]


def test_uneven_padding():
    assert Geometry(4, 1, 1, 2).out_length(10) == 10
    assert Geometry() == (1, 1, 0, 0)


def test_a_linear_weight_is_its_matrix():
    w = torch.randn(4, 6)
    assert as_matrix(w) is w
    assert as_weight(w, w) is w


def test_a_conv_weight_as_a_matrix():
    w = torch.arange(12.0).reshape(2, 2, 3)  # [N, C, taps]
    assert as_matrix(w).tolist() == [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]
    assert torch.equal(as_weight(as_matrix(w), w), w)
    laid_out = w.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert as_matrix(laid_out).data_ptr() == laid_out.data_ptr()
    assert torch.equal(as_matrix(laid_out), as_matrix(w))


def test_columns_of_one_tensor_are_known():
    whole = torch.randn(2, 3, 12)
    parts = whole.split((4, 2, 6), -1)
    found = columns_of(parts)
    assert found is not None and found.data_ptr() == whole.data_ptr()
    assert torch.equal(found, whole)
    assert columns_of([parts[1], parts[0], parts[2]]) is None
    assert columns_of([t.clone() for t in parts]) is None
    assert columns_of([parts[0], parts[1]]) is None  # of a wider one
    assert columns_of([parts[0][:, :2], *parts[1:]]) is None
    assert columns_of([whole[:, :, :6], torch.randn(2, 3, 6)]) is None
