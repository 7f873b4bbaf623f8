# SPDX-License-Identifier: Apache-2.0
"""The learned aligner: two encoders, a distance, and the sum over all monotonic paths.

Source: Badlani et al., One TTS Alignment To Rule Them All (arXiv 2108.10447).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.0005
BLANK_LOGIT = -1.0
_NEVER = -1e4  # a logit of padding: exp of it is 0, and no infinity reaches a gradient


class AlignerNetwork(nn.Module):
    """Log-probability of every token for every frame.

    Args:
        n_tokens: size of the vocabulary; 0 is padding.
        n_mels: bands of the normalised log-mel.
        channels: of the embedding of tokens.
        attention: of the space in which tokens and frames are compared.
    """

    def __init__(
        self, n_tokens: int, n_mels: int, channels: int = 128, attention: int = 80
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, channels, padding_idx=0)
        # Of one tap, unlike the paper's three: a token that knows its neighbours may stand for
        # their frames as well, and then all borders are late (by 17 ms on the synthetic corpus).
        self.text = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1),
            nn.ReLU(),
            nn.Conv1d(2 * channels, attention, 1),
        )
        self.mel = nn.Sequential(
            nn.Conv1d(n_mels, 2 * n_mels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(2 * n_mels, attention, 1),
            nn.ReLU(),
            nn.Conv1d(attention, attention, 1),
        )

    def forward(self, tokens: Tensor, lengths: Tensor, mel: Tensor) -> Tensor:
        """log softmax over the tokens of −0.0005 ‖q − k‖².

        Args:
            tokens: `[B, K]` int64, padded with 0.
            lengths: `[B]` tokens of each.
            mel: `[B, T, n_mels]`.

        Returns:
            `[B, T, K]`; about −10⁴ at padding of the tokens.
        """
        keys = self.text(self.embedding(tokens).transpose(1, 2))  # [B, A, K]
        queries = self.mel(mel.transpose(1, 2))  # [B, A, T]
        square = queries.square().sum(1)[:, :, None] + keys.square().sum(1)[:, None, :]
        distance = square - 2 * torch.bmm(queries.transpose(1, 2), keys)  # [B, T, K]
        padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
        logits = (-TEMPERATURE * distance).masked_fill(padding[:, None, :], _NEVER)
        return logits.log_softmax(-1)


def beta_binomial_prior(n_frames: int, n_tokens: int) -> Tensor:
    """Log of a prior near the diagonal: `[T, K]` float32.

    Row t (from 1) is the beta-binomial distribution of K − 1 with α = t and β = T − t + 1.
    """
    # lgamma of whole numbers, from a table: the direct formula would cost more than the network.
    table = np.concatenate([[0.0, 0.0], np.cumsum(np.log(np.arange(1, n_frames + n_tokens + 1)))])
    n = n_tokens - 1
    k = np.arange(n_tokens)[None, :]
    alpha = np.arange(1, n_frames + 1)[:, None]
    beta = n_frames - alpha + 1

    def log_beta(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return table[a] + table[b] - table[a + b]

    choose = table[n + 1] - table[k + 1] - table[n - k + 1]
    log_prior = choose + log_beta(k + alpha, n - k + beta) - log_beta(alpha, beta)
    return torch.from_numpy(log_prior.astype(np.float32))


def forward_sum_loss(log_prob: Tensor, lengths: Tensor, frames: Tensor) -> Tensor:
    """−log of the sum over all monotonic paths, per token, averaged over the batch.

    It is the CTC loss of the tokens in their order, with a blank whose logit is −1.

    Args:
        log_prob: `[B, T, K]`, with the prior.
        lengths, frames: `[B]` tokens and frames of each.
    """
    padded = F.pad(log_prob, (1, 0), value=BLANK_LOGIT).log_softmax(-1)
    targets = torch.arange(1, log_prob.shape[2] + 1, device=log_prob.device)
    return F.ctc_loss(
        padded.transpose(0, 1),
        targets.expand(len(lengths), -1),
        frames,
        lengths,
        zero_infinity=True,
    )


def binarization_loss(log_prob: Tensor, hard: Tensor) -> Tensor:
    """−mean log-probability of the best path: pulls the soft alignment towards the hard one.

    Args:
        log_prob: `[B, T, K]`.
        hard: `[B, T, K]` bool.
    """
    return -log_prob[hard].clamp(min=-27.6).mean()


def monotonic_search(log_prob: np.ndarray, lengths: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Durations of the best monotonic path; each token has a frame at least.

    Args:
        log_prob: `[B, T, K]`.
        lengths, frames: `[B]` tokens and frames of each, lengths <= frames.

    Returns:
        `[B, K]` int64 frames, 0 at padding; each row sums to its `frames`.
    """
    batch, n_frames, n_tokens = log_prob.shape
    best = np.full((batch, n_tokens), -np.inf)
    # A path begins with the first token, in the first frame.
    best[:, 0] = log_prob[:, 0, 0]
    moved = np.zeros((n_frames, batch, n_tokens), bool)  # whether the path came from one before
    for t in range(1, n_frames):
        shifted = np.full_like(best, -np.inf)
        shifted[:, 1:] = best[:, :-1]
        moved[t] = shifted > best
        best = np.maximum(best, shifted) + log_prob[:, t]
    durations = np.zeros((batch, n_tokens), np.int64)
    rows = np.arange(batch)
    at = lengths - 1
    # Backwards along what was remembered; utterances that are shorter begin later.
    for t in range(n_frames - 1, -1, -1):
        inside = t < frames
        durations[rows[inside], at[inside]] += 1
        at = at - (inside & moved[t, rows, at])
    return durations


def hard_path(durations: np.ndarray, n_frames: int) -> np.ndarray:
    """The path of durations `[B, K]` as `[B, T, K]` bool."""
    ends = np.cumsum(durations, axis=1)[:, None, :]
    t = np.arange(n_frames)[None, :, None]
    return (t < ends) & (t >= ends - durations[:, None, :])
