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
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.files import atomic_write
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.model.transformer import PositionEmbed, sinusoids
from sniper.tts.model.variance import durations_from_log

INPUTS = ("tokens", "speed", "pitch", "energy")
OUTPUTS = ("mel", "durations")
# Only where there are several speakers, or a vocoder.
SPEAKER, AUDIO = "speaker", "audio"


class SpeechGraph(nn.Module):
    """What `Speaker.speak` does to one sentence, with every control a tensor and no other state.

    Args:
        model: copied, in evaluation mode, with plain dense layers.
        info: of its corpus; the mel leaves as its features have it, not normalised.
        vocoder: from such mels `[T, n_mels]` to samples; None: the mel is all that leaves.
    """

    mel_mean: Tensor
    mel_std: Tensor
    prosody: Tensor

    def __init__(self, model: FastSpeech2, info: CorpusInfo, vocoder: nn.Module | None = None):
        super().__init__()
        self.vocoder = None if vocoder is None else copy.deepcopy(vocoder).float().cpu().eval()
        self.model = densify(copy.deepcopy(model)).float().cpu().eval()
        for module in self.model.modules():
            if type(module) is PositionEmbed:
                module.__class__ = _UnboundedPositionEmbed
        for name in ("mel_mean", "mel_std"):
            value = torch.as_tensor(getattr(info.statistics, name), dtype=torch.float32)
            self.register_buffer(name, value)
        # What a semitone and a loudness are in the units of each speaker. `[speakers, 2]`
        voices = list(info.speakers.values()) or [info.statistics.prosody]
        units = [(math.log(2) / 12 / v.pitch_std, v.energy_mean / v.energy_std) for v in voices]
        self.register_buffer("prosody", torch.tensor(units))

    def forward(
        self,
        tokens: Tensor,
        speed: Tensor,
        pitch: Tensor,
        energy: Tensor,
        speaker: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Speaks one sentence.

        Args:
            tokens: int64 `[1, L]`, the end of sentence included, no padding.
            speed, pitch, energy: float32 scalars, as `Speaker.speak` has them: 1 is as trained,
                semitones, a factor.
            speaker: int64 `[1]`, for a model of several.

        Returns:
            The log-mel `[T, n_mels]`, the frames of each token, int64 `[L]`, and with a vocoder the
            samples `[T * hop_length]`.
        """
        model = self.model
        x = model.with_speaker(model.encoder(model.token_embed(tokens), None), speaker)
        semitone, loudness = (
            self.prosody[0] if speaker is None else self.prosody[speaker[0]]
        ).unbind()
        lengths = torch.full((1,), tokens.shape[1])
        durations = durations_from_log(model.duration_predictor(x, None), lengths, speed)
        pitches = model.pitch_predictor(x, None) + pitch * semitone
        shift = (energy - 1) * loudness
        energies = model.energy_predictor(x, None) * energy + shift
        x = x + model.energy_embed(energies) + model.pitch_embed(pitches)
        before, after = model._decode(_repeat(x[0], durations[0])[None], None)
        mel = (before if after is None else after)[0]
        mel = mel * self.mel_std + self.mel_mean
        if self.vocoder is None:
            return mel, durations[0]
        return mel, durations[0], self.vocoder(mel)


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


def export_program(
    model: FastSpeech2, info: CorpusInfo, vocoder: nn.Module | None = None
) -> torch.export.ExportedProgram:
    """The inference path as a `torch.export` program for sentences of any length.

    Args:
        model: trained, dense or still sparse; it stays as it is.
        info: of the corpus that it was trained on.
        vocoder: see `SpeechGraph`.

    Returns:
        A program of `(tokens, speed, pitch, energy[, speaker]) -> (mel, durations[, audio])`, see
        `SpeechGraph.forward`.
    """
    graph = SpeechGraph(model, info, vocoder)
    # Each number is a tensor object of its own: torch.export takes one object in two places for one
    # input.
    example = [torch.ones(1, 7, dtype=torch.int64), *(torch.ones(()) for _ in INPUTS[1:])]
    shapes: dict[str, object] = {"tokens": {1: torch.export.Dim("length", min=1)}}
    shapes |= dict.fromkeys(INPUTS[1:], None)
    if info.speakers:
        example.append(torch.zeros(1, dtype=torch.int64))
        shapes[SPEAKER] = None
    with torch.no_grad():
        return torch.export.export(graph, tuple(example), dynamic_shapes=shapes)


def export_onnx(
    model: FastSpeech2,
    info: CorpusInfo,
    path: str | Path | BinaryIO,
    vocoder: nn.Module | None = None,
) -> None:
    """Writes the inference path as one ONNX file, to a path (whole or not at all) or an open file;
    other arguments as in `export_program`.

    Inputs `tokens` int64 `[1, L]`, `speed`, `pitch`, `energy` float32 scalars and, for several
    speakers, `speaker` int64 `[1]`; outputs `mel` float32 `[T, n_mels]`, `durations` int64 `[L]`
    and, with a vocoder, `audio` float32 `[T * hop_length]`.
    """
    program = export_program(model, info, vocoder)
    made = torch.onnx.export(
        program,
        (),
        None,
        input_names=(*INPUTS, SPEAKER) if info.speakers else INPUTS,
        output_names=OUTPUTS if vocoder is None else (*OUTPUTS, AUDIO),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert made is not None  # a program is what dynamo gives
    # Serialised here: the exporter writes to a path alone, and leaves half a file where it is
    # stopped.
    content = made.model_proto.SerializeToString()
    if not isinstance(path, str | Path):
        path.write(content)
        return
    with atomic_write(Path(path)) as file:
        file.write(content)
