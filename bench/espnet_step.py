# SPDX-License-Identifier: Apache-2.0
"""A training step of ESPnet's own FastSpeech2 class, as its LJSpeech recipe makes it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

from sniper.tts.corpus.batch import Batch

# egs2/ljspeech/tts1/conf/tuning/train_fastspeech2.yaml of ESPnet.
RECIPE: dict[str, Any] = {
    "adim": 384,
    "aheads": 2,
    "elayers": 4,
    "eunits": 1536,
    "dlayers": 4,
    "dunits": 1536,
    "positionwise_layer_type": "conv1d",
    "positionwise_conv_kernel_size": 3,
    "duration_predictor_layers": 2,
    "duration_predictor_chans": 256,
    "duration_predictor_kernel_size": 3,
    "postnet_layers": 5,
    "postnet_filts": 5,
    "postnet_chans": 256,
    "use_masking": True,
    "use_scaled_pos_enc": True,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "reduction_factor": 1,
    "init_type": "xavier_uniform",
    "init_enc_alpha": 1.0,
    "init_dec_alpha": 1.0,
    **{
        f"transformer_{side}_{kind}dropout_rate": 0.2
        for side in ("enc", "dec")
        for kind in ("", "positional_", "attn_")
    },
    "pitch_predictor_layers": 5,
    "pitch_predictor_chans": 256,
    "pitch_predictor_kernel_size": 5,
    "pitch_predictor_dropout": 0.5,
    "pitch_embed_kernel_size": 1,
    "pitch_embed_dropout": 0.0,
    "stop_gradient_from_pitch_predictor": True,
    "energy_predictor_layers": 2,
    "energy_predictor_chans": 256,
    "energy_predictor_kernel_size": 3,
    "energy_predictor_dropout": 0.5,
    "energy_embed_kernel_size": 1,
    "energy_embed_dropout": 0.0,
    "stop_gradient_from_energy_predictor": False,
}


class EspnetStep:
    """ESPnet's model with torch's fused Adam; calling it trains one step.

    Args:
        batch: in the host's memory; the end of each sentence is its last token.
        vocabulary: number of tokens.
        parameters: how many the model must have, as ours.
        device: where it trains.

    Raises:
        SystemExit: ESPnet is not installed, or makes a model of another size.
    """

    def __init__(self, batch: Batch, vocabulary: int, parameters: int, device: str):
        try:
            # It says on stdout what it does without, where steps are asked for and answered.
            with contextlib.redirect_stdout(sys.stderr):
                from espnet2.tts.fastspeech2 import FastSpeech2
        except ImportError as error:
            raise SystemExit(
                f"--espnet: expected ESPnet, got {error}; pip install --no-deps espnet typeguard"
            ) from None
        model: nn.Module = FastSpeech2(idim=vocabulary, odim=batch.mel.shape[2], **RECIPE)
        found = sum(p.numel() for p in model.parameters())
        if found != parameters:
            raise SystemExit(f"--espnet: expected {parameters:,} parameters, got {found:,}")
        self.model = model.to(device).train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        self.batch, self.device = batch, device

    def __call__(self) -> Tensor:
        b = self.batch.to(torch.device(self.device))
        lengths = b.token_lengths
        loss = self.model(
            text=b.tokens[:, :-1],  # ESPnet adds the end of the sentence itself
            text_lengths=lengths - 1,
            feats=b.mel,
            feats_lengths=b.mel_lengths,
            durations=b.durations,
            durations_lengths=lengths,
            pitch=b.pitch[..., None],
            pitch_lengths=lengths,
            energy=b.energy[..., None],
            energy_lengths=lengths,
        )[0]
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
