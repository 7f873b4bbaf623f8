# SPDX-License-Identifier: Apache-2.0
"""Duration, pitch and energy: predictors, embeddings and the length regulator.

Source: FastSpeech 2 (arXiv 2006.04558) section 2.3, with FastPitch's token-averaged values
(arXiv 2006.06873), as ESPnet has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sniper.layers import Dropout, layer_norm
from sniper.ops.regulator import fuses_repeat, repeat_tokens
from sniper.tts.corpus.batch import length_mask
from sniper.tts.model.transformer import LAYER_NORM_EPS, conv_channels_last, same_conv

# About 12 s at a hop of 256 and 22,050 Hz. No phoneme lasts so long; an untrained predictor may say
# e^20 frames, and the length regulator would try to allocate them.
MAX_TOKEN_FRAMES = 1000


@dataclass(frozen=True)
class PredictorConfig:
    """One variance predictor.

    Args:
        layers, channels, kernel_size: of its convolutions.
        dropout: after each layer's LayerNorm.
        stop_gradient: whether the predictor's loss is kept from the encoder.
    """

    layers: int = 2
    channels: int = 256
    kernel_size: int = 3
    dropout: float = 0.5
    stop_gradient: bool = False


class VariancePredictor(nn.Module):
    """One scalar a token: layers of conv, ReLU, LayerNorm and dropout, then a Linear."""

    def __init__(self, d_model: int, config: PredictorConfig):
        super().__init__()
        self.stop_gradient = config.stop_gradient
        n_in = [d_model] + [config.channels] * (config.layers - 1)
        self.layers = nn.ModuleList(
            _PredictorLayer(n, config.channels, config.kernel_size, config.dropout) for n in n_in
        )
        self.out = nn.Linear(config.channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict one value a token.

        Args:
            x: `[B, L, C]`, the encoder's output.
            mask: bool `[B, L]`, true where there is no padding; None: no padding.

        Returns:
            `[B, L]`, 0 in padding.
        """
        # Pitch is hard to predict; its loss would otherwise bend the encoder away from what speech
        # needs.
        if self.stop_gradient:
            x = x.detach()
        for layer in self.layers:
            x = layer(x)
        y = self.out(x).squeeze(-1)
        return y if mask is None else y.masked_fill(~mask, 0.0)


class _PredictorLayer(nn.Module):
    """Dropout(LayerNorm(ReLU(conv(x))))."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, dropout: float):
        super().__init__()
        self.conv = same_conv(n_in, n_out, kernel_size)
        self.norm = nn.LayerNorm(n_out, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_channels_last(self.conv, x)
        return layer_norm(x, self.norm, for_product=True, relu=True, dropout=self.dropout)


class ScalarEmbed(nn.Module):
    """One scalar a token to `[B, L, C]`: a convolution over the tokens, then dropout."""

    def __init__(self, d_model: int, kernel_size: int, dropout: float):
        super().__init__()
        self.conv = same_conv(1, d_model, kernel_size)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """`values` `[B, L]`."""
        return self.dropout(conv_channels_last(self.conv, values.unsqueeze(-1)))


def regulate_length(x: Tensor, durations: Tensor, length: int) -> Tensor:
    """Repeat token b, i `durations[b, i]` times: `y[b, t] = x[b, token at frame t]`.

    One search and one gather for the whole batch; the length is given, so that a training step
    never waits for the device.

    Args:
        x: `[B, L, C]`.
        durations: int64 `[B, L]`, frames, 0 or more.
        length: frames of the result; longer utterances are cut.

    Returns:
        `[B, length, C]`, 0 past an utterance's last frame.
    """
    if fuses_repeat(x, durations):
        return repeat_tokens(x, durations, length)
    B, L, C = x.shape
    ends = durations.cumsum(1)  # [B, L], first frame past each token
    frames = torch.arange(length, device=x.device).repeat(B, 1)
    # right=True skips tokens without frames: such a token ends where it begins, so no frame is its
    # own.
    token = torch.searchsorted(ends, frames, right=True)  # [B, length], L past the end
    # A row of zeros behind all tokens is what frames past the end take: to zero them afterwards
    # would be another visit each way, and on a CPU a slow one.
    rows = token + torch.arange(0, B * L, L, device=x.device)[:, None]
    rows = rows.masked_fill(token == L, B * L)
    padded = torch.cat([x.reshape(B * L, C), x.new_zeros(1, C)])
    return padded.index_select(0, rows.flatten()).view(B, length, C)


def durations_from_log(
    log_durations: Tensor, token_lengths: Tensor, speed: float | Tensor = 1.0
) -> Tensor:
    """`durations = max(0, round(exp(log_durations) - 1))`, shortened by `speed`.

    With another speed than 1 the tokens' ends are divided and rounded, not their durations:
    rounding each duration would make the sentence drift from its length.

    Args:
        log_durations: `[B, L]`, log(frames + 1).
        token_lengths: int64 `[B]`.
        speed: 2 gives half as many frames; a scalar tensor in an exported graph.

    Returns:
        int64 `[B, L]`, 0 in padding, at most `MAX_TOKEN_FRAMES` before `speed`. An utterance
        without any frame gets one a token, as in ESPnet.
    """
    frames = log_durations.float().clamp(max=math.log1p(MAX_TOKEN_FRAMES)).exp() - 1.0
    durations = frames.round().clamp(min=0).long()
    mask = length_mask(token_lengths, log_durations.shape[1])
    durations = durations.masked_fill(~mask, 0)
    if isinstance(speed, Tensor) or speed != 1.0:
        ends = (durations.cumsum(1).double() / speed).round().long()
        durations = ends.diff(dim=1, prepend=ends.new_zeros(len(ends), 1))
    empty = durations.sum(1, keepdim=True) == 0
    return torch.where(empty, mask.long(), durations)
