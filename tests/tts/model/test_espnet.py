# SPDX-License-Identifier: Apache-2.0
"""Parity with ESPnet's own FastSpeech2, against tensors that it produced (golden/)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sniper.layers import Dropout
from sniper.ops import attention
from sniper.tts.corpus.batch import Batch
from sniper.tts.model import transformer
from sniper.tts.model.espnet import espnet_config, espnet_name, load_espnet
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Output

NAMES = ("paper", "post_norm", "linear")
TOLERANCE = 1e-5


class Golden:
    """One recorded configuration."""

    def __init__(self, name: str):
        path = Path(__file__).parent / "golden" / f"espnet_{name}.safetensors"
        with safe_open(path, "pt") as f:
            self.conf = json.loads(f.metadata()["tts_conf"])
            self.tensors = {key: f.get_tensor(key) for key in f.keys()}
        self.state = self.group("state.")

    def group(self, prefix: str) -> dict[str, Tensor]:
        tensors = self.tensors.items()
        return {k.removeprefix(prefix): v for k, v in tensors if k.startswith(prefix)}

    def batch(self) -> Batch:
        """The recorded input with the end of sentence appended, as our datasets do it."""
        x = self.group("in.")
        tokens = torch.nn.functional.pad(x["text"], (0, 1))
        tokens[torch.arange(len(tokens)), x["text_lengths"]] = self.conf["idim"] - 1
        return Batch(
            ids=[str(i) for i in range(len(tokens))],
            tokens=tokens,
            token_lengths=x["text_lengths"] + 1,
            mel=x["feats"],
            mel_lengths=x["feats_lengths"],
            durations=x["durations"],
            pitch=x["pitch"].squeeze(-1),
            energy=x["energy"].squeeze(-1),
        )

    def model(self) -> FastSpeech2:
        return load_espnet(self.state, **self.conf)

    def model_without_dropout(self) -> FastSpeech2:
        rates = {k: 0.0 for k in vars(espnet_config(self.conf)) if k.endswith("_dropout")}
        model = FastSpeech2(_no_predictor_dropout(replace(espnet_config(self.conf), **rates)))
        model.load_state_dict(self.model().state_dict())
        return model


def _no_predictor_dropout(config):
    names = ("duration_predictor", "pitch_predictor", "energy_predictor")
    return replace(config, **{n: replace(getattr(config, n), dropout=0.0) for n in names})


@pytest.fixture(params=NAMES)
def golden(request) -> Golden:
    return Golden(request.param)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


def test_outputs_in_evaluation_mode(golden):
    with torch.no_grad():
        got = golden.model().eval()(golden.batch())
    assert_outputs(got, golden.group("eval."))


def test_dropout_stands_where_espnet_has_it(golden, monkeypatch):
    """Every dropout multiplies by 1 - p here, as it did when the outputs were recorded."""

    def scaled_attention(q, k, v, heads, key_mask, dropout_p):
        return attention(q, k, v, heads, key_mask) * (1 - dropout_p)

    monkeypatch.setattr(transformer, "attention", scaled_attention)
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x * (1 - self.p))
    with torch.no_grad():
        got = golden.model().train()(golden.batch())
    assert_outputs(got, golden.group("scaled."))


def assert_outputs(got: FastSpeech2Output, expected: dict[str, Tensor]) -> None:
    assert relative_error(got.mel_before, expected["before"]) < TOLERANCE
    assert relative_error(got.mel, expected["after"]) < TOLERANCE
    assert relative_error(got.log_durations, expected["log_durations"]) < TOLERANCE
    assert relative_error(got.pitch, expected["pitch"].squeeze(-1)) < TOLERANCE
    assert relative_error(got.energy, expected["energy"].squeeze(-1)) < TOLERANCE


def test_loss_terms_in_training_mode_without_dropout(golden):
    total, terms = golden.model_without_dropout().train().loss(golden.batch())
    expected = golden.group("train.")
    l1 = terms["mel_before"] + terms.get("mel_after", 0.0)
    assert relative_error(total.detach(), expected["loss"]) < TOLERANCE
    assert relative_error(l1, expected["l1_loss"]) < TOLERANCE
    for name in ("duration", "pitch", "energy"):
        assert relative_error(terms[name], expected[f"{name}_loss"]) < TOLERANCE


def test_gradients_in_training_mode_without_dropout(golden):
    model = golden.model_without_dropout().train()
    model.loss(golden.batch())[0].backward()
    expected = golden.group("train.grad_norm.")
    largest = max(expected.values())
    for name, parameter in model.named_parameters():
        # Keys' biases have no gradient but rounding (softmax does not see them): hence the scale.
        difference = (parameter.grad.norm() - expected.pop(espnet_name(name))).abs()
        assert difference < 1e-4 * largest, name
    assert not expected


def test_inference(golden):
    x = golden.batch()
    speech = golden.model().eval().infer(x.tokens[:1, : x.token_lengths[0]])
    expected = golden.group("infer.")
    assert speech.durations[0].tolist() == expected["duration"].tolist()
    assert speech.mel_lengths.tolist() == [len(expected["feat_gen"])]
    assert relative_error(speech.mel[0], expected["feat_gen"]) < TOLERANCE
    assert relative_error(speech.pitch[0], expected["pitch"].squeeze(-1)) < TOLERANCE
    assert relative_error(speech.energy[0], expected["energy"].squeeze(-1)) < TOLERANCE


def test_checkpoint_prefix_and_sizes_from_the_weights():
    golden = Golden("paper")
    checkpoint = {f"tts.{k}": v for k, v in golden.state.items()}
    for name in ("normalize", "pitch_normalize", "energy_normalize"):
        checkpoint[f"{name}.mean"] = torch.zeros(8)
    conf = {k: v for k, v in golden.conf.items() if k not in ("idim", "odim")}
    model = load_espnet(checkpoint, **conf)
    for name, tensor in golden.model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_weights_are_copies():
    golden = Golden("linear")
    model = golden.model()
    with torch.no_grad():
        model.mel_out.weight.zero_()
    assert golden.state["feat_out.weight"].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_type", "conformer"),
        ("decoder_type", "conformer"),
        ("reduction_factor", 2),
        ("langs", 2),
        ("spk_embed_dim", 192),
        ("use_gst", True),
        ("encoder_concat_after", True),
        ("decoder_concat_after", True),
        ("positionwise_layer_type", "gated"),
        ("not_a_setting", 1),
    ],
)
def test_unsupported_settings_are_named(name, value):
    golden = Golden("paper")
    with pytest.raises(ValueError, match=f"{name}: expected .*, got "):
        load_espnet(golden.state, **{**golden.conf, name: value})


def test_speakers_are_added_to_what_the_encoder_gives():
    """A speaker whose embedding is c speaks as one in whose encoder the last norm's bias has c."""
    golden = Golden("paper")
    voices = torch.randn(3, golden.conf["adim"])
    model = load_espnet({**golden.state, "sid_emb.weight": voices}, spks=3, **golden.conf).eval()
    assert model.speaker_embed.weight.equal(voices)
    batch, number = golden.batch(), torch.tensor([2, 2, 2])
    shifted = dict(golden.state)
    shifted["encoder.after_norm.bias"] = shifted["encoder.after_norm.bias"] + voices[2]
    with torch.no_grad():
        got = model(replace(batch, speakers=number))
        expected = load_espnet(shifted, **golden.conf).eval()(batch)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(got, name), value, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="missing weights: expected none, got sid_emb.weight"):
        load_espnet(golden.state, spks=3, **golden.conf)


def test_settings_that_change_nothing_are_accepted():
    golden = Golden("linear")
    off = {"spks": None, "langs": 1, "spk_embed_dim": -1, "use_gst": False, "gst_heads": 4}
    load_espnet(golden.state, **golden.conf, **off, init_type="xavier_uniform", zero_triu=False)


def test_missing_weight_is_named():
    golden = Golden("paper")
    del golden.state["feat_out.bias"]
    with pytest.raises(ValueError, match="missing weights.*feat_out.bias"):
        golden.model()


def test_unexpected_weight_is_named():
    golden = Golden("paper")
    golden.state["gst.ref_enc.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="gst.ref_enc.weight"):
        golden.model()


def test_settings_that_do_not_fit_the_weights():
    golden = Golden("paper")
    golden.conf["duration_predictor_kernel_size"] = 5
    with pytest.raises(ValueError, match=r"duration_predictor.*\[12, 16, 5\].*\[12, 16, 3\]"):
        golden.model()


def test_empty_state_dict():
    with pytest.raises(ValueError, match="missing weights"):
        load_espnet({})


def test_defaults_are_espnet_defaults():
    config = espnet_config({"idim": 10, "odim": 80})
    assert (config.heads, config.encoder_layers, config.postnet_channels) == (4, 6, 512)
    assert config.ffn_kernel_sizes == (1, 1)
    assert config.pitch_embed_kernel_size == 9
    assert config.loss_masking == "none"
    assert config.empty_token_loss
