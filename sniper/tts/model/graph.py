# SPDX-License-Identifier: Apache-2.0
"""A trained FastSpeech2 as one graph from token ids to the mel, for `torch.export` and ONNX."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from sniper.layers import densify
from sniper.tts.corpus.features import Statistics
from sniper.tts.files import atomic_write
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.model.transformer import PositionEmbed, sinusoids
from sniper.tts.model.variance import durations_from_log

INPUTS = ("tokens", "speed", "pitch", "energy")
OUTPUTS = ("mel", "durations")


class SpeechGraph(nn.Module):
    """What `Speaker.speak` does to one sentence, with every control a tensor and no other state.

    Args:
        model: copied, in evaluation mode, with plain dense layers.
        statistics: of the corpus; the mel leaves as its features have it, not normalised.
    """

    mel_mean: Tensor
    mel_std: Tensor

    def __init__(self, model: FastSpeech2, statistics: Statistics):
        super().__init__()
        self.model = densify(copy.deepcopy(model)).float().cpu().eval()
        for module in self.model.modules():
            if type(module) is PositionEmbed:
                module.__class__ = _UnboundedPositionEmbed
        self.pitch_std, self.energy_mean = statistics.pitch_std, statistics.energy_mean
        self.energy_std = statistics.energy_std
        for name in ("mel_mean", "mel_std"):
            value = torch.as_tensor(getattr(statistics, name), dtype=torch.float32)
            self.register_buffer(name, value)

    def forward(
        self, tokens: Tensor, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Speaks one sentence.

        Args:
            tokens: int64 `[1, L]`, the end of sentence included, no padding.
            speed, pitch, energy: float32 scalars, as `Speaker.speak` has them: 1 is as trained,
                semitones, a factor.

        Returns:
            The log-mel `[T, n_mels]` and the frames of each token, int64 `[L]`.
        """
        model = self.model
        x = model.encoder(model.token_embed(tokens), None)
        lengths = torch.full((1,), tokens.shape[1])
        durations = durations_from_log(model.duration_predictor(x, None), lengths, speed)
        pitches = model.pitch_predictor(x, None) + pitch * (math.log(2) / 12 / self.pitch_std)
        shift = (energy - 1) * (self.energy_mean / self.energy_std)
        energies = model.energy_predictor(x, None) * energy + shift
        x = x + model.energy_embed(energies) + model.pitch_embed(pitches)
        before, after = model._decode(_repeat(x[0], durations[0])[None], None)
        mel = (before if after is None else after)[0]
        return mel * self.mel_std + self.mel_mean, durations[0]


class _UnboundedPositionEmbed(PositionEmbed):
    """Computes its sinusoids, so that the graph has no longest sentence."""

    def forward(self, x: Tensor) -> Tensor:
        encoding = sinusoids(x.shape[1], self.d_model)
        if self.scaled:
            return x + self.alpha * encoding
        return x * math.sqrt(self.d_model) + encoding


def _repeat(x: Tensor, durations: Tensor) -> Tensor:
    """`regulate_length` of one sentence, `[L, C]` to `[T, C]`, in operations that ONNX has."""
    ends = durations.cumsum(0)
    length = ends[-1].item()
    torch._check(length >= 1)
    frames = torch.arange(length)
    return x[(frames[:, None] >= ends).sum(1)]  # tokens that have ended


def export_program(model: FastSpeech2, statistics: Statistics) -> torch.export.ExportedProgram:
    """The inference path as a `torch.export` program for sentences of any length.

    Args:
        model: trained, dense or still sparse; it stays as it is.
        statistics: of the corpus that it was trained on.

    Returns:
        A program of `(tokens, speed, pitch, energy) -> (mel, durations)`, see
        `SpeechGraph.forward`.
    """
    graph = SpeechGraph(model, statistics)
    # Each a tensor of its own: export takes one object for one input.
    example = (torch.ones(1, 7, dtype=torch.int64), *(torch.ones(()) for _ in INPUTS[1:]))
    shapes = {"tokens": {1: torch.export.Dim("length", min=1)}}
    shapes |= dict.fromkeys(INPUTS[1:], None)
    with torch.no_grad():
        return torch.export.export(graph, example, dynamic_shapes=shapes)


def export_onnx(model: FastSpeech2, statistics: Statistics, path: str | Path | BinaryIO) -> None:
    """Writes the inference path as one ONNX file, to a path (whole or not at all) or an open file;
    other arguments as in `export_program`.

    Inputs `tokens` int64 `[1, L]`, `speed`, `pitch`, `energy` float32 scalars; outputs `mel`
    float32 `[T, n_mels]`, `durations` int64 `[L]`.
    """
    program = export_program(model, statistics)
    made = torch.onnx.export(
        program,
        (),
        None,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert made is not None  # a program is what dynamo gives
    content = made.model_proto.SerializeToString()
    if not isinstance(path, str | Path):
        path.write(content)
        return
    with atomic_write(Path(path)) as file:
        file.write(content)
