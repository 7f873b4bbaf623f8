# SPDX-License-Identifier: Apache-2.0
"""The learned aligner's parts against direct formulas and all paths, counted one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sniper.tts.aligners.network import (
    BLANK_LOGIT,
    TEMPERATURE,
    AlignerNetwork,
    beta_binomial_prior,
    binarization_loss,
    forward_sum_loss,
    hard_path,
    monotonic_search,
)


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (9, 4), (40, 7)])
def test_prior(frames, tokens):
    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    n = tokens - 1
    wanted = [
        [
            math.comb(n, k) * math.exp(log_beta(k + t, n - k + frames - t + 1))
            / math.exp(log_beta(t, frames - t + 1))
            for k in range(tokens)
        ]
        for t in range(1, frames + 1)
    ]  # fmt: skip
    found = beta_binomial_prior(frames, tokens).exp()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_distances_and_padding():
    torch.manual_seed(0)
    network = AlignerNetwork(6, 8)
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    mel = torch.randn(2, 5, 8)
    found = network(tokens, lengths, mel)
    assert found.shape == (2, 5, 3)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 5))
    assert found[1, :, 2].max() < -1000
    keys = network.text(network.embedding(tokens[:1]).transpose(1, 2))[0].T  # [K, A]
    queries = network.mel(mel[:1].transpose(1, 2))[0].T  # [T, A]
    square = (queries[:, None] - keys[None]).square().sum(-1)
    torch.testing.assert_close(found[0], (-TEMPERATURE * square).log_softmax(-1))


def paths(frames: int, tokens: int):
    """All monotonic durations with a frame at least for each token."""
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        yield np.diff([0, *cuts, frames])


def test_search_finds_the_best_of_all_paths():
    rng = np.random.default_rng(0)
    log_prob = rng.normal(size=(3, 7, 4))
    lengths, frames = np.array([4, 2, 1]), np.array([7, 5, 6])
    found = monotonic_search(log_prob, lengths, frames)
    for row, (k, t) in enumerate(zip(lengths, frames, strict=True)):

        def score(durations, row=row, t=t):
            return log_prob[
                row, np.arange(t), np.repeat(np.arange(len(durations)), durations)
            ].sum()

        best = max(paths(t, k), key=score)
        np.testing.assert_array_equal(found[row, :k], best)
        assert not found[row, k:].any() and found[row].sum() == t
    path = hard_path(found, 7)
    np.testing.assert_array_equal(path.sum(1), found)
    assert path[1, 5:].sum() == 0, "no frame of padding"


def test_forward_sum_is_the_sum_over_paths_with_blanks():
    torch.manual_seed(1)
    log_prob = torch.randn(1, 4, 2).log_softmax(-1)
    padded = torch.cat([torch.full((1, 4, 1), BLANK_LOGIT), log_prob], -1).log_softmax(-1)[0].exp()
    total = 0.0
    for labels in itertools.product(range(3), repeat=4):
        if [k for k, _ in itertools.groupby(labels) if k] == [1, 2]:
            total += math.prod(padded[t, k].item() for t, k in enumerate(labels))
    found = forward_sum_loss(log_prob, torch.tensor([2]), torch.tensor([4]))
    assert found.item() == pytest.approx(-math.log(total) / 2, rel=1e-5)


def test_binarization_is_the_mean_over_the_path():
    log_prob = torch.tensor([[[-1.0, -2.0], [-4.0, -0.5]]])
    hard = torch.tensor([[[True, False], [False, True]]])
    assert binarization_loss(log_prob, hard).item() == 0.75
