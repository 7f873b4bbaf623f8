# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions against torch's own."""

import copy

import pytest
import torch
from torch import nn

from sniper.layers import densify, sparsify
from sniper.layers.depthwise import DepthwiseConv1d

CASES = [
    # channels, taps, padding, frames, bias
    (5, 31, 15, 90, True),
    (3, 7, 3, 129, False),
    (4, 4, "same", 33, True),
    (2, 3, 0, 3, True),  # one frame of output
    (3, 2, 5, 1, True),  # more padding than filter
    (6, 9, "valid", 64, True),
]


def pair(channels, taps, padding, bias):
    torch.manual_seed(0)
    plain = nn.Conv1d(channels, channels, taps, padding=padding, groups=channels, bias=bias)
    ours = copy.deepcopy(plain)
    ours.__class__ = DepthwiseConv1d
    return plain, ours


def results(layer, x, dy):
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(dy.transpose(1, 2).contiguous().transpose(1, 2))  # memory in another order
    found = [y, x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
def test_equals_torchs(case, contiguous, monkeypatch, isa):
    channels, taps, padding, frames, bias = case
    plain, ours = pair(channels, taps, padding, bias)
    x = torch.randn(3, channels, frames)
    x = x if contiguous else x.transpose(1, 2).contiguous().transpose(1, 2)
    dy = torch.randn_like(plain(x))
    wanted = results(plain, x, dy)
    monkeypatch.setattr(nn.Conv1d, "forward", lambda *a: pytest.fail("torch's was called"))
    for a, b in zip(results(ours, x, dy), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_same_bits_for_any_number_of_threads():
    _, ours = pair(6, 31, 15, True)
    x, dy = torch.randn(2, 4, 6, 100)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(results(ours, x, dy))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_what_is_wanted_is_computed():
    _, ours = pair(2, 3, 1, True)
    ours.weight.requires_grad_(False)
    x = torch.randn(2, 2, 6, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None and x.grad is not None and ours.bias.grad is not None


@pytest.mark.parametrize("way", ["double", "two dimensions", "compiled", "autocast", "empty"])
def test_torchs_own_for_the_rest(way):
    plain, ours = pair(3, 3, 1, True)
    x, context = torch.randn(2, 3, 20), torch.autocast("cpu", enabled=way == "autocast")
    if way == "double":
        plain, ours, x = plain.double(), ours.double(), x.double()
    if way == "two dimensions":
        x = x[0]
    if way == "empty":
        x = x[:0]
    run = torch.compile(ours, backend="eager", fullgraph=True) if way == "compiled" else ours
    with context:
        assert torch.equal(run(x), plain(x))


def test_a_sequence_shorter_than_the_filter_is_torchs_error():
    plain, ours = pair(3, 5, 0, True)
    with pytest.raises(RuntimeError) as wanted:
        plain(torch.randn(2, 3, 4))
    with pytest.raises(RuntimeError) as got:
        ours(torch.randn(2, 3, 4))
    assert str(got.value) == str(wanted.value)


def test_sparsify_swaps_what_is_one_and_densify_swaps_back():
    model = nn.Sequential(
        nn.Conv1d(16, 16, 3, padding=1, groups=16),
        nn.Conv1d(16, 16, 3, padding=1, groups=8),
        nn.Conv1d(16, 16, 3, padding=1, groups=16, dilation=2),
        nn.Conv1d(16, 16, 3, stride=2, groups=16),
        nn.Conv1d(16, 16, 3, padding=1, groups=16, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3, groups=16)),
        nn.Conv1d(16, 16, 1),
    )
    assert sparsify(model, 16).depthwise == 0
    report = sparsify(model, 16, fast_depthwise=True)
    assert report.depthwise == 1 and type(model[0]) is DepthwiseConv1d
    assert str(report).endswith("1 depthwise convolutions by a kernel of their own")
    again = sparsify(model, 16, fast_depthwise=True)
    assert again.depthwise == 0 and again.modules[0].reason == "groups 16"
    densify(model)
    assert type(model[0]) is nn.Conv1d and set(vars(model[0])) == set(vars(nn.Conv1d(2, 2, 1)))
