# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2, equal to ESPnet's (`espnet` loads its checkpoints), channels last inside.

Source: FastSpeech 2 (arXiv 2006.04558); the defaults are the LJSpeech model of the SNIPER paper
(arXiv 2211.07283): 37,116,917 parameters with 78 tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper.tts.corpus.batch import Batch, length_mask
from sniper.tts.model.config import FastSpeech2Config
from sniper.tts.model.loss import fastspeech2_loss
from sniper.tts.model.transformer import Postnet, TransformerStack
from sniper.tts.model.variance import (
    ScalarEmbed,
    VariancePredictor,
    durations_from_log,
    regulate_length,
)


@dataclass(frozen=True)
class FastSpeech2Output:
    """Teacher-forced predictions, in normalised units.

    Args:
        mel_before: `[B, T, n_mels]`, before the postnet.
        mel_after: the same after it; None without a postnet.
        log_durations: `[B, L]`, log(frames + 1), 0 in padding.
        pitch, energy: `[B, L]`, 0 in padding.
    """

    mel_before: Tensor
    mel_after: Tensor | None
    log_durations: Tensor
    pitch: Tensor
    energy: Tensor

    @property
    def mel(self) -> Tensor:
        """The final mel `[B, T, n_mels]`."""
        return self.mel_before if self.mel_after is None else self.mel_after


@dataclass(frozen=True)
class FastSpeech2Speech:
    """Synthesised speech, in normalised units.

    Args:
        mel: `[B, T, n_mels]`, 0 past an utterance's end.
        mel_lengths: int64 `[B]`, frames.
        durations: int64 `[B, L]`, frames, `speed` applied.
        pitch, energy: `[B, L]`, controls applied, 0 in padding.
    """

    mel: Tensor
    mel_lengths: Tensor
    durations: Tensor
    pitch: Tensor
    energy: Tensor


class FastSpeech2(nn.Module):
    """Tokens to mel: encoder, variance predictors, length regulator, decoder, postnet.

    Modules whose names contain "norm" or "embed" are those that SNIPER leaves alone by default.
    """

    def __init__(self, config: FastSpeech2Config):
        super().__init__()
        self.config = config
        C = config.d_model
        # The row of padding stays zero and gets no gradient.
        self.token_embed = nn.Embedding(config.vocab_size, C, padding_idx=0)
        self.encoder = TransformerStack(config.stack("encoder"))
        self.speaker_embed = nn.Embedding(config.speakers, C) if config.speakers else None
        self.speaker_projection = None
        if config.speakers and config.speaker_integration == "concat":
            self.speaker_projection = nn.Linear(2 * C, C)
        self.duration_predictor = VariancePredictor(C, config.duration_predictor)
        self.pitch_predictor = VariancePredictor(C, config.pitch_predictor)
        self.energy_predictor = VariancePredictor(C, config.energy_predictor)
        self.pitch_embed = ScalarEmbed(
            C, config.pitch_embed_kernel_size, config.pitch_embed_dropout
        )
        self.energy_embed = ScalarEmbed(
            C, config.energy_embed_kernel_size, config.energy_embed_dropout
        )
        self.decoder = TransformerStack(config.stack("decoder"))
        self.mel_out = nn.Linear(C, config.n_mels)
        self.postnet = None
        if config.postnet_layers:
            self.postnet = Postnet(
                config.n_mels,
                config.postnet_layers,
                config.postnet_channels,
                config.postnet_kernel_size,
                config.postnet_dropout,
                config.postnet_batch_norm,
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: xavier_uniform, biases 0, token embedding and norms as torch has them.

        Older ESPnet also set BatchNorm's scale to 0, which lets no gradient into the postnet, so
        that SNIP would prune all of it; its scale stays 1 here.
        """
        for name, parameter in self.named_parameters():
            # Vectors are biases and the scales of norms, for which xavier has no meaning.
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        self.token_embed.reset_parameters()  # normal, and zero for padding
        if self.speaker_embed is not None:
            self.speaker_embed.reset_parameters()

    def forward(self, batch: Batch) -> FastSpeech2Output:
        """Predict with the batch's own durations, pitch and energy (teacher forcing).

        Args:
            batch: tokens `[B, L]`, mel `[B, T, n_mels]`; only the mel's shape is read, for T.

        Returns:
            Predictions for all T frames, those in padding too. Nothing is read back to the host.

        Raises:
            ValueError: mels of another size than the model's, or speakers where it has none or the
                other way round.
        """
        if batch.mel.shape[2] != self.config.n_mels:
            raise ValueError(f"mel: expected {self.config.n_mels} bins, got {batch.mel.shape[2]}")
        token_mask = length_mask(batch.token_lengths, batch.tokens.shape[1])
        frame_mask = length_mask(batch.mel_lengths, batch.mel.shape[1])
        x = self.encoder(self.token_embed(batch.tokens), token_mask)
        x = self.with_speaker(x, batch.speakers)
        log_durations = self.duration_predictor(x, token_mask)
        pitch = self.pitch_predictor(x, token_mask)
        energy = self.energy_predictor(x, token_mask)
        # After the predictors, which must not see what they are to predict.
        x = x + self.energy_embed(batch.energy) + self.pitch_embed(batch.pitch)
        x = regulate_length(x, batch.durations, batch.mel.shape[1])
        mel_before, mel_after = self._decode(x, frame_mask)
        return FastSpeech2Output(mel_before, mel_after, log_durations, pitch, energy)

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The names of the loss's terms, in their order."""
        after = () if self.postnet is None else ("mel_after",)
        return ("mel_before", *after, "duration", "pitch", "energy")

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms: `fastspeech2_loss` of `forward(batch)`, as the config sets it."""
        config = self.config
        return fastspeech2_loss(
            batch,
            **vars(self(batch)),
            empty_token_loss=config.empty_token_loss,
            masking=config.loss_masking,
        )

    @torch.no_grad()
    def infer(
        self,
        tokens: Tensor,
        token_lengths: Tensor | None = None,
        speakers: Tensor | None = None,
        *,
        speed: float = 1.0,
        pitch_scale: float = 1.0,
        pitch_shift: float = 0.0,
        energy_scale: float = 1.0,
        energy_shift: float = 0.0,
    ) -> FastSpeech2Speech:
        """Speak tokens, with predicted durations, pitch and energy.

        Pitch and energy are predicted in normalised units and become `scale * value + shift`.
        With `mean` and `std` of the corpus, `s` semitones up is `pitch_shift = s ln(2) / (12 std)`
        (pitch is log-F0), and energy times `k` is `energy_scale = k` with
        `energy_shift = (k - 1) mean / std`. `pitch_scale` widens the melody around its mean.

        Padding is masked in attention only, so a sentence in a padded batch may differ slightly
        near its end from the same sentence alone.

        Args:
            tokens: int64 `[B, L]`, the end of sentence included, padded with 0.
            token_lengths: int64 `[B]`; None: no padding.
            speakers: int64 `[B]`, for a model of several.
            speed: of speech; 2 gives half as many frames.

        Raises:
            ValueError: a model in training mode, a speed not above 0, tokens of the wrong shape,
                type or range, or weights so broken that a predicted duration is not finite.
        """
        if self.training:
            raise ValueError("expected a model in evaluation mode: call eval() before infer()")
        if not (speed > 0 and math.isfinite(speed)):
            raise ValueError(f"speed: expected a number above 0, got {speed}")
        token_lengths, padded = self._check_tokens(tokens, token_lengths)
        # Without padding attention needs no mask, and then takes a faster path.
        mask = length_mask(token_lengths, tokens.shape[1]) if padded else None
        x = self.with_speaker(self.encoder(self.token_embed(tokens), mask), speakers)
        log_durations = self.duration_predictor(x, mask)
        # NaN as a number of frames would be an enormous integer, and the length regulator would try
        # to allocate it.
        if not log_durations.isfinite().all():
            raise ValueError(
                "expected finite durations, got NaN or infinity: the weights are broken"
            )
        durations = durations_from_log(log_durations, token_lengths, speed)
        pitch = self.pitch_predictor(x, mask) * pitch_scale + pitch_shift
        energy = self.energy_predictor(x, mask) * energy_scale + energy_shift
        if mask is not None:
            pitch, energy = pitch.masked_fill(~mask, 0.0), energy.masked_fill(~mask, 0.0)
        x = x + self.energy_embed(energy) + self.pitch_embed(pitch)
        mel_lengths = durations.sum(1)
        # The one value that is read from the device: the size of what follows.
        T = int(mel_lengths.max())
        frame_mask = length_mask(mel_lengths, T)
        before, after = self._decode(
            regulate_length(x, durations, T), frame_mask if len(tokens) > 1 else None
        )
        mel = (before if after is None else after).masked_fill(~frame_mask[..., None], 0.0)
        return FastSpeech2Speech(mel, mel_lengths, durations, pitch, energy)

    def with_speaker(self, x: Tensor, speakers: Tensor | None) -> Tensor:
        """The encoder's output `[B, L, C]` in the voice of each utterance's speaker `[B]`.

        Raises:
            ValueError: no speakers for a model that has some, or the other way round.
        """
        if (self.speaker_embed is None) != (speakers is None):
            expected = "no speakers" if self.speaker_embed is None else "the speakers' numbers [B]"
            got = "none" if speakers is None else f"them {list(speakers.shape)}"
            raise ValueError(f"speakers: expected {expected}, got {got}")
        if self.speaker_embed is None or speakers is None:
            return x
        voice = self.speaker_embed(speakers)[:, None]
        if self.speaker_projection is None:
            return x + voice
        # ESPnet normalises an embedding that it concatenates, and none that it adds; loaded weights
        # expect the same.
        voice = F.normalize(voice, dim=-1).expand_as(x)
        return self.speaker_projection(torch.cat([x, voice], dim=-1))

    def _decode(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mel = self.mel_out(self.decoder(x, mask))
        return mel, None if self.postnet is None else mel + self.postnet(mel)

    def _check_tokens(self, tokens: Tensor, token_lengths: Tensor | None) -> tuple[Tensor, bool]:
        """The lengths, and whether there is padding."""
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens: expected int64 [B, L], not empty, got {tokens.dtype} {list(tokens.shape)}"
            )
        B, L = tokens.shape
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"tokens: expected ids in [0, {self.config.vocab_size}), got {low} to {high}"
            )
        if token_lengths is None:
            return torch.full((B,), L, device=tokens.device), False
        lengths = token_lengths.tolist()
        if len(lengths) != B or min(lengths) < 1 or max(lengths) > L:
            raise ValueError(f"token_lengths: expected {B} lengths from 1 to {L}, got {lengths}")
        return token_lengths, min(lengths) < L
