# SPDX-License-Identifier: Apache-2.0
"""Feed-forward Transformer blocks and the postnet, channels last (`[B, T, C]`).

Every Linear and Conv1d is called as a module, so that a sparse class may take its place. Padding is
masked in attention only: padded positions carry values, and convolutions read them, as in ESPnet.

Source: FastSpeech (arXiv 1905.09263) section 3.1; dropout and normalisation placed as in ESPnet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper.layers import Dropout, add_norm, batch_norm, layer_norm, relu_dropout
from sniper.layers.dropout import drop_rate, handed_over_rate
from sniper.layers.stacked import Stackable
from sniper.ops import attention, cast_once
from sniper.ops.convolution import as_torch_has_it, convolution, fuses_convolution
from sniper.ops.geometry import as_matrix, as_weight
from sniper.ops.positions import add_positions, fuses_positions

# ESPnet's epsilon; torch's default of 1e-5 would change a loaded model's outputs.
LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class StackConfig:
    """One stack of blocks: the encoder or the decoder of FastSpeech2.

    A kernel size of 1 is an `nn.Linear`, a larger one an `nn.Conv1d`.
    """

    d_model: int
    heads: int
    layers: int
    ffn_dim: int
    ffn_kernel_sizes: tuple[int, int]
    dropout: float
    position_dropout: float
    attention_dropout: float
    pre_norm: bool
    scaled_positions: bool


def conv_channels_last(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a Conv1d to `[B, T, C]` without copying: the transposes are views."""
    return conv(x.transpose(1, 2)).transpose(1, 2)


def same_conv(
    in_channels: int, out_channels: int, kernel_size: int, bias: bool = True
) -> nn.Conv1d:
    """A Conv1d that keeps the number of frames (odd kernels)."""
    conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
    # Of this instance, in place of a subclass: whoever looks for Conv1d, `sparsify` for one, finds
    # exactly that.
    conv._conv_forward = _same_conv  # pyright: ignore[reportAttributeAccessIssue]
    # In memory [N, taps, C], as the products of rows read it. One channel lies so anyway, and keeps
    # the strides that torch's gradients have.
    if in_channels > 1 and kernel_size > 1:
        conv.weight.data = as_weight(as_matrix(conv.weight.data), conv.weight)
    return conv


def _same_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, C, T]` -> `[B, N, T]`. Rows of channels, which is how they lie between our layers, are
    an image one line high: cuDNN, and oneDNN with AVX-512, take it as it is, where `F.conv1d` has
    it copied to and fro, and leave such rows to the layer behind.
    """
    padding = weight.shape[2] // 2
    if fuses_convolution(x, weight):
        return convolution(x.mT, weight, bias, padding).mT
    weight = as_torch_has_it(weight)
    # An exported program has no strides that one could ask for; it runs on CPUs.
    known = x.is_cuda or (_cpu_takes_images() and not torch.compiler.is_compiling())
    if known and x.dim() == 3 and x.stride(1) == 1:
        return F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, padding)).squeeze(2)
    return F.conv1d(x, weight, bias, padding=padding)


@cache
def _cpu_takes_images() -> bool:
    """Whether oneDNN's gradients of an image are as fast as those of a line: with AVX2 alone those
    of 384 to 1536 channels take half as long again, those of 1536 to 384 twice as long.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def sinusoids(length: int, d_model: int) -> Tensor:
    """`PE[t, 2i] = sin(t / 10000^(2i/C))`, `PE[t, 2i+1] = cos(…)`: float32 `[length, d_model]`."""
    positions = torch.arange(length, dtype=torch.float32)[:, None]
    # By exponentials of logarithms, as ESPnet does, so that tables agree to the last bit.
    rates = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model)
    )
    encoding = torch.empty(length, d_model)
    encoding[:, 0::2] = torch.sin(positions * rates)
    encoding[:, 1::2] = torch.cos(positions * rates)
    return encoding


class PositionEmbed(nn.Module):
    """`x + alpha PE` with a learned scalar alpha, or `sqrt(C) x + PE` when not scaled.

    Source: arXiv 1809.08895 section 3.2 (scaled); arXiv 1706.03762 section 3.5.
    """

    def __init__(self, d_model: int, dropout: float, scaled: bool = True, max_length: int = 2048):
        super().__init__()
        self.d_model = d_model
        self.scaled = scaled
        self.dropout = Dropout(dropout)
        if scaled:
            self.alpha = nn.Parameter(torch.tensor(1.0))
        # Not in the state dict: it follows from the shape, and grows with the longest input seen.
        self.register_buffer("encoding", sinusoids(max_length, d_model), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.encoding.shape[0]:
            # Twice what is needed, so that a batch that is a little longer than the last does not
            # grow it again.
            longer = sinusoids(2 * x.shape[1], self.d_model)
            self.encoding = longer.to(self.encoding)
        encoding = self.encoding[: x.shape[1]]
        alpha, factor = (self.alpha, 1.0) if self.scaled else (None, math.sqrt(self.d_model))
        p = drop_rate(self.dropout)
        if p is not None and fuses_positions(x, encoding, alpha):
            return add_positions(x, encoding, alpha, factor, p)
        if self.scaled:
            return self.dropout(x + self.alpha * encoding)
        return self.dropout(x * math.sqrt(self.d_model) + encoding)


class SelfAttention(Stackable):
    """Multi-head self-attention; `key_mask` hides padded keys from every query."""

    stacked = ("query", "key", "value")

    def __init__(self, d_model: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """`x` `[B, T, C]`, `key_mask` bool `[B, T]`, true where a key counts."""
        # A rate and no module: attention draws its mask inside its own kernel.
        dropout = self.dropout if self.training else 0.0
        x = cast_once(x)
        stack = self.stack_for(x)
        if stack is not None:
            q, k, v = stack(x)
        else:
            q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(attention(q, k, v, self.heads, key_mask, dropout))


class FeedForward(nn.Module):
    """`conv2(dropout(relu(conv1(x))))`; a convolution of kernel size 1 is a Linear."""

    def __init__(self, d_model: int, ffn_dim: int, kernel_sizes: tuple[int, int], dropout: float):
        super().__init__()
        self.kernel_sizes = kernel_sizes
        self.conv1 = self._layer(d_model, ffn_dim, kernel_sizes[0])
        self.dropout = Dropout(dropout)
        self.conv2 = self._layer(ffn_dim, d_model, kernel_sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        # A Linear takes [B, T, C] as it is, a convolution wants channels before time; the
        # transposes are views.
        p = handed_over_rate(self.conv1, self.conv2, x, self.dropout)
        over = p is not None
        if self.kernel_sizes[0] == 1:
            hidden = relu_dropout(self.conv1, x, self.dropout, over)
        else:
            hidden = relu_dropout(self.conv1, x.transpose(1, 2), self.dropout, over).transpose(1, 2)
        rate = {"after_relu": p} if over else {}  # only a layer of ours takes the word
        if self.kernel_sizes[1] == 1:
            return self.conv2(hidden, **rate)
        return self.conv2(hidden.transpose(1, 2), **rate).transpose(1, 2)

    @staticmethod
    def _layer(n_in: int, n_out: int, kernel_size: int) -> nn.Module:
        return nn.Linear(n_in, n_out) if kernel_size == 1 else same_conv(n_in, n_out, kernel_size)


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual, LayerNorm before (or after) each."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(config.d_model, config.heads, config.attention_dropout)
        self.ffn_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(
            config.d_model, config.ffn_dim, config.ffn_kernel_sizes, config.dropout
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, normed: Tensor, key_mask: Tensor | None, next_norm: nn.Module, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The residual after this layer and, pre-norm, what `next_norm` makes of it.

        A sum and the norm behind it are one operation, and the last sum's norm is not this layer's.

        Args:
            x: `[B, T, C]`.
            normed: pre-norm: `attention_norm(x)`, which the layer before has computed; else x.
            next_norm: the following layer's `attention_norm`, or the stack's `final_norm`.
            last: whether the stack ends here, so that no product alone reads the result.
        """
        if self.pre_norm:
            h = self.attention(normed, key_mask)
            x, normed = add_norm(x, h, self.dropout, self.ffn_norm, for_product=True)
            return add_norm(x, self.ffn(normed), self.dropout, next_norm, for_product=not last)
        h = self.attention(x, key_mask)
        _, x = add_norm(x, h, self.dropout, self.attention_norm)
        _, x = add_norm(x, self.ffn(x), self.dropout, self.ffn_norm)
        return x, x


class TransformerStack(nn.Module):
    """Positions, then the layers, then (pre-norm only) a last LayerNorm."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.position_embed = PositionEmbed(
            config.d_model, config.position_dropout, config.scaled_positions
        )
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        # Post-norm layers end normalised.
        self.final_norm = (
            nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS) if config.pre_norm else nn.Identity()
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` `[B, T, C]`, `mask` bool `[B, T]`, true where not padding; None: no padding."""
        x = normed = self.position_embed(x)
        norms = [*(layer.attention_norm for layer in self.layers), self.final_norm]
        if self.pre_norm:
            normed = layer_norm(x, norms[0], for_product=len(norms) > 1)
        for i, layer in enumerate(self.layers, 1):
            x, normed = layer(x, normed, mask, norms[i], last=i == len(self.layers))
        return normed


class Postnet(nn.Module):
    """Convolutions that correct the mel: conv, BatchNorm, tanh, dropout; no tanh in the last.

    Source: Tacotron 2 (arXiv 1712.05884) section 2.2.
    """

    def __init__(
        self,
        n_mels: int,
        layers: int,
        channels: int,
        kernel_size: int,
        dropout: float,
        batch_norm: bool = True,
    ):
        super().__init__()
        # From mel to mel, since the result is added to what went in.
        widths = [n_mels, *[channels] * (layers - 1), n_mels]
        self.layers = nn.ModuleList(
            _PostnetLayer(n_in, n_out, kernel_size, batch_norm)
            for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.dropout = Dropout(dropout)

    def forward(self, mel: Tensor) -> Tensor:
        """`mel` `[B, T, n_mels]` to what is added to it, same shape."""
        x = mel.transpose(1, 2)  # BatchNorm1d and Conv1d both want [B, C, T]
        for i, layer in enumerate(self.layers, 1):
            x = layer(x, self.dropout, tanh=i < len(self.layers))
        return x.transpose(1, 2)


class _PostnetLayer(nn.Module):
    """Dropout(tanh(BatchNorm(conv(x)))) on `[B, C, T]`, the tanh if asked."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, batch_norm: bool):
        super().__init__()
        self.conv = same_conv(n_in, n_out, kernel_size, bias=False)
        self.norm = nn.BatchNorm1d(n_out) if batch_norm else nn.Identity()

    def forward(self, x: Tensor, dropout: nn.Module, tanh: bool) -> Tensor:
        return batch_norm(self.conv(x), self.norm, dropout, tanh)
