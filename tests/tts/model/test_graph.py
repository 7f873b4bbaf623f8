# SPDX-License-Identifier: Apache-2.0
"""The exported graph says what the model says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sniper import sparsify
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.corpus.features import Statistics
from sniper.tts.model.config import FastSpeech2Config, PredictorConfig
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.model.graph import SpeechGraph, export_program
from sniper.tts.text.text import LexiconFrontend, Vocabulary

CONTROLS = [(7, 1.0, 0.0, 1.0), (1, 1.0, 0.0, 1.0), (40, 0.7, 3.0, 1.5), (12, 2.5, -5.0, 0.5)]


def make_model(**changes) -> FastSpeech2:
    small = PredictorConfig(layers=1, channels=32)
    sizes = {
        "vocab_size": 20,
        "n_mels": 16,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ffn_dim": 64,
        "duration_predictor": small,
        "pitch_predictor": small,
        "energy_predictor": small,
        "postnet_layers": 2,
        "postnet_channels": 32,
    }
    model = FastSpeech2(FastSpeech2Config(**{**sizes, **changes})).eval()
    torch.nn.init.constant_(model.duration_predictor.out.bias, 1.5)  # some frames a token
    return model


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=16), rng.uniform(0.5, 1.5, size=16)
    return Statistics(mean.astype(np.float32), std.astype(np.float32), 5.0, 0.3, 2.0, 0.7)


def info(statistics: Statistics) -> CorpusInfo:
    """Of a corpus of one speaker."""
    frontend = LexiconFrontend({}, False, False)
    return CorpusInfo(Vocabulary.from_phones("AB"), FeatureConfig(), statistics, frontend, "noise")


def check(call, model, statistics) -> None:
    """`call(tokens, speed, pitch, energy)` must give the model's mel and durations."""
    for length, speed, pitch, energy in CONTROLS:
        tokens = torch.randint(1, 20, (1, length))
        wanted = model.infer(
            tokens,
            speed=speed,
            pitch_shift=pitch * math.log(2) / 12 / statistics.pitch_std,
            energy_scale=energy,
            energy_shift=(energy - 1) * statistics.energy_mean / statistics.energy_std,
        )
        mel, durations = call(tokens, *map(torch.tensor, (speed, pitch, energy)))
        assert torch.equal(durations, wanted.durations[0])
        torch.testing.assert_close(
            mel, statistics.denormalize_mel(wanted.mel[0]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaled_positions": False, "postnet_layers": 0, "encoder_pre_norm": False},
        {"ffn_kernel_sizes": (9, 1), "pitch_embed_kernel_size": 9, "postnet_batch_norm": False},
    ],
)
def test_the_graph_is_the_inference_path(changes, statistics):
    model = make_model(**changes)
    with torch.no_grad():
        check(SpeechGraph(model, info(statistics)), model, statistics)


def test_a_sentence_without_frames_gets_one_a_token(statistics):
    model = make_model()
    torch.nn.init.constant_(model.duration_predictor.out.bias, -9.0)
    with torch.no_grad():
        _, durations = SpeechGraph(model, info(statistics))(
            torch.ones(1, 5, dtype=torch.int64), 1, 0, 1
        )
    assert durations.tolist() == [1] * 5


def test_a_program_speaks_any_length_and_leaves_the_model_sparse(statistics, tmp_path):
    model = make_model()
    taken = sparsify(model, 16).taken
    for name in taken:
        layer = model.get_submodule(name)
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.6)
    torch.export.save(export_program(model, info(statistics)), tmp_path / "it.pt2")
    program = torch.export.load(tmp_path / "it.pt2")
    operations = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in operations if name.startswith("sniper")]
    check(program.module(), model, statistics)
    assert all(model.get_submodule(name).layout is not None for name in taken)
