# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from sniper.tts.model.variance import (
    MAX_TOKEN_FRAMES,
    PredictorConfig,
    ScalarEmbed,
    VariancePredictor,
    durations_from_log,
    regulate_length,
)


def repeat_in_a_loop(x, durations, length):
    """The length regulator as one would write it down."""
    y = x.new_zeros(x.shape[0], length, x.shape[2])
    for b in range(len(x)):
        t = 0
        for i, d in enumerate(durations[b].tolist()):
            y[b, t : t + d] = x[b, i]
            t += d
    return y


def test_regulate_length_by_hand():
    x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    durations = torch.tensor([[2, 0, 1], [0, 3, 1]])
    y = regulate_length(x, durations, 5)
    assert y.squeeze(-1).tolist() == [[1, 1, 3, 0, 0], [5, 5, 5, 6, 0]]


@pytest.mark.parametrize("length", [1, 11, 23])  # cut, in between, padded
def test_regulate_length_against_the_loop(length):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, requires_grad=True)
    durations = torch.randint(0, 5, (4, 6))
    durations[3] = 0
    y, expected = (f(x, durations, length) for f in (regulate_length, repeat_in_a_loop_or_cut))
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    (dx_expected,) = torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close(dx, dx_expected)


def repeat_in_a_loop_or_cut(x, durations, length):
    longest = max(length, int(durations.sum(1).max()))
    return repeat_in_a_loop(x, durations, longest)[:, :length]


def test_regulate_length_of_a_strided_input():
    x = torch.randn(2, 3, 4).transpose(1, 2)
    durations = torch.tensor([[1, 2, 0, 1], [0, 0, 4, 0]])
    assert torch.equal(regulate_length(x, durations, 4), repeat_in_a_loop(x, durations, 4))


def logs(*rows):
    return torch.log1p(torch.tensor(rows, dtype=torch.float32))


def test_durations_round_and_mask():
    log_durations = logs([2.4, 2.6, 0.4], [1.0, 7.0, 7.0])
    log_durations[0, 2] = -3.0  # fewer than no frames
    got = durations_from_log(log_durations, torch.tensor([3, 1]))
    assert got.tolist() == [[2, 3, 0], [1, 0, 0]]


def test_speed_divides_the_total():
    log_durations = logs([3.0] * 7, [1.0] * 7)
    lengths = torch.tensor([7, 6])
    assert durations_from_log(log_durations, lengths, 2.0).sum(1).tolist() == [10, 3]
    assert durations_from_log(log_durations, lengths, 0.5).sum(1).tolist() == [42, 12]
    assert durations_from_log(log_durations, lengths, 0.5)[1].tolist() == [2] * 6 + [0]


def test_no_frames_at_all_becomes_one_a_token():
    got = durations_from_log(torch.zeros(2, 3), torch.tensor([3, 2]))
    assert got.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert durations_from_log(logs([1.0, 0.0]), torch.tensor([2]), speed=9.0).tolist() == [[1, 1]]


def test_absurd_durations_are_capped():
    got = durations_from_log(torch.tensor([[80.0]]), torch.tensor([1]))
    assert got.tolist() == [[MAX_TOKEN_FRAMES]]


def test_predictor_shape_padding_and_gradient():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    for stop_gradient in (False, True):
        config = PredictorConfig(2, 6, 3, 0.0, stop_gradient)
        predictor = VariancePredictor(4, config)
        x = torch.randn(2, 3, 4, requires_grad=True)
        y = predictor(x, mask)
        assert y.shape == (2, 3)
        assert y[1, 1:].tolist() == [0, 0]
        y.square().sum().backward()
        assert (x.grad is None) == stop_gradient
        assert all(p.grad.abs().sum() > 0 for p in predictor.parameters())


def test_scalar_embed_reads_its_kernel():
    embed = ScalarEmbed(4, 3, 0.0)
    values = torch.zeros(1, 5)
    values[0, 2] = 1.0
    with torch.no_grad():
        change = (embed(values) - embed(torch.zeros(1, 5))).abs().sum(-1)[0]
    assert [bool(c > 0) for c in change] == [False, True, True, True, False]


def test_log_durations_are_of_frames_plus_one():
    assert durations_from_log(torch.tensor([[math.log(6.0)]]), torch.tensor([1])).tolist() == [[5]]
