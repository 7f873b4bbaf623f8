# SPDX-License-Identifier: Apache-2.0
"""Dense convolutions by our product of all blocks, against torch's in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sniper.ops import use_backend
from sniper.ops.convolution import convolution, fuses_convolution, torchs_convolutions
from sniper.tts.model.transformer import same_conv


def tensors(n, c, taps, length=70, batch=4):
    torch.manual_seed(0)
    x = torch.randn(batch, length, c, requires_grad=True)
    weight = nn.Parameter(torch.randn(n, taps, c).mul_(0.1).permute(0, 2, 1))
    return x, weight, nn.Parameter(torch.randn(n))


def close(got, wanted):
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("backend", ["cpu", "dense"])
@pytest.mark.parametrize("n, c, taps", [(64, 128, 3), (80, 64, 5), (32, 96, 9)])
@pytest.mark.parametrize("biased", [False, True])
def test_is_torchs(backend, n, c, taps, biased):
    x, weight, bias = tensors(n, c, taps)
    assert fuses_convolution(x, weight)
    leaves = [x, weight, *[bias] * biased]
    with use_backend(backend):
        y = convolution(x, weight, bias if biased else None, taps // 2)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, leaves, dy)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wanted = F.conv1d(exact[0].mT, *exact[1:], padding=taps // 2).mT
    close(y, wanted)
    for got, one in zip(grads, torch.autograd.grad(wanted, exact, dy.double()), strict=True):
        close(got, one)


def test_gradients_of_gradients():
    x, weight, bias = tensors(16, 16, 3, 9, 1)
    double = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(lambda *t: convolution(*t, 1), double)


def test_what_stays_torchs():
    x, weight, _ = tensors(64, 64, 3)
    assert not fuses_convolution(x.double(), weight)
    assert not fuses_convolution(x, weight.double())
    assert not fuses_convolution(x, weight[:, :, :1])
    assert not fuses_convolution(x[:, :, :40], weight[:, :40])
    assert not fuses_convolution(x[0], weight)
    assert not fuses_convolution(x, weight.detach())
    with torch.no_grad():
        assert not fuses_convolution(x, weight)
    with torchs_convolutions():
        assert not fuses_convolution(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fuses_convolution(x, weight)
    with pytest.raises(ValueError, match="expected channels in sixteens, got"):
        convolution(x[:, :, :40], weight[:, :40], None, 1)


def test_a_models_convolution():
    """Its weight lies as rows are read, and stays so in copies, checkpoints and other dtypes."""
    torch.manual_seed(0)
    conv = same_conv(64, 48, 3)
    torch.manual_seed(0)
    plain = nn.Conv1d(64, 48, 3, padding=1)
    assert torch.equal(conv.weight, plain.weight) and torch.equal(conv.bias, plain.bias)
    other = same_conv(64, 48, 3)
    other.load_state_dict(plain.state_dict())
    for each in (conv, copy.deepcopy(conv), other, same_conv(64, 48, 3).double()):
        assert each.weight.permute(0, 2, 1).is_contiguous()
    x = torch.randn(4, 64, 70)
    with use_backend("cpu"):
        y = conv(x)
    y.sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
    assert not torch.equal(y, plain(x))  # it was ours
    close(y, plain.double()(x.double()))
    with torch.no_grad():
        assert torch.equal(conv(x), F.conv1d(x, conv.weight, conv.bias, padding=1))
