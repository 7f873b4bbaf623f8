# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from sniper.tts.corpus.batch import Batch, length_mask
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config
from sniper.tts.model.transformer import _PostnetLayer
from sniper.tts.model.variance import PredictorConfig

PREDICTOR = PredictorConfig(layers=2, channels=8, kernel_size=3, dropout=0.0)
TINY = FastSpeech2Config(
    vocab_size=10,
    n_mels=6,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    ffn_dim=16,
    duration_predictor=PREDICTOR,
    pitch_predictor=replace(PREDICTOR, stop_gradient=True),
    energy_predictor=PREDICTOR,
    postnet_layers=2,
    postnet_channels=8,
)


def without_dropout(config: FastSpeech2Config) -> FastSpeech2Config:
    return replace(config, **{n: 0.0 for n in vars(config) if n.endswith("_dropout")})


def make_batch(lengths=(5, 3), extra=0) -> Batch:
    """Random utterances of `lengths` tokens, the last without frames; `extra` more of padding."""
    g = torch.Generator().manual_seed(1)
    B, L = len(lengths), max(lengths)
    token_lengths = torch.tensor(lengths)
    real = length_mask(token_lengths, L)
    spoken = length_mask(token_lengths - 1, L)
    durations = torch.randint(1, 4, (B, L), generator=g) * spoken
    mel_lengths = durations.sum(1)
    T = int(mel_lengths.max())
    mel = torch.randn(B, T, TINY.n_mels, generator=g) * length_mask(mel_lengths, T)[..., None]

    def pad(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, extra))

    return Batch(
        ids=[f"utt{b}" for b in range(B)],
        tokens=pad(torch.randint(1, 10, (B, L), generator=g) * real),
        token_lengths=token_lengths,
        mel=nn.functional.pad(mel, (0, 0, 0, extra)),
        mel_lengths=mel_lengths,
        durations=pad(durations),
        pitch=pad(torch.randn(B, L, generator=g) * spoken),
        energy=pad(torch.randn(B, L, generator=g) * spoken),
    )


@pytest.fixture
def model() -> FastSpeech2:
    torch.manual_seed(0)
    return FastSpeech2(TINY).eval()


def test_concatenated_speakers():
    """The direction of the embedding beside what the encoder gives, then a projection."""
    sizes = {"d_model": 16, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = FastSpeech2Config(9, 8, speakers=3, speaker_integration="concat", **sizes)
    model = FastSpeech2(config).eval()
    x, speakers = torch.randn(2, 5, 16), torch.tensor([2, 0])
    voice = model.speaker_embed.weight[speakers]
    voice = voice / voice.norm(dim=1, keepdim=True)
    weight, bias = model.speaker_projection.weight, model.speaker_projection.bias
    expected = x @ weight[:, :16].T + (voice @ weight[:, 16:].T)[:, None] + bias
    torch.testing.assert_close(model.with_speaker(x, speakers), expected)
    with pytest.raises(ValueError, match="speaker_integration: expected one of add, concat"):
        FastSpeech2Config(9, speakers=3, speaker_integration="sum")
    with pytest.raises(ValueError, match="speakers: expected no speakers, got them"):
        FastSpeech2(FastSpeech2Config(9, 8, **sizes)).with_speaker(x, speakers)


def test_default_is_the_paper_model():
    with torch.device("meta"):
        model = FastSpeech2(FastSpeech2Config(vocab_size=78))
    assert sum(p.numel() for p in model.parameters()) == 37_116_917
    assert model.config.duration_predictor.dropout == 0.1
    assert model.config.pitch_predictor.stop_gradient
    assert not model.config.energy_predictor.stop_gradient


def test_names_tell_norms_and_embeddings():
    """SNIPER leaves alone what is called norm or embed; nothing else may be called so."""
    for name, module in FastSpeech2(TINY).named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        norm = isinstance(module, (nn.LayerNorm, nn.BatchNorm1d))
        scalar = name in ("pitch_embed.conv", "energy_embed.conv") or "position" in name
        assert ("norm" in name) == norm, name
        assert ("embed" in name) == (isinstance(module, nn.Embedding) or scalar), name


def test_initial_weights():
    model = FastSpeech2(FastSpeech2Config(vocab_size=78, encoder_layers=1, decoder_layers=1))
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith(".bias"))
    assert not model.token_embed.weight[0].any()
    assert model.postnet.layers[0].norm.weight.eq(1).all()
    assert model.decoder.position_embed.alpha == 1
    weight = model.decoder.layers[0].ffn.conv1.weight  # fans are channels x taps
    bound = (6 / (3 * (384 + 1536))) ** 0.5
    assert bound * 0.99 < weight.abs().max() <= bound


def test_forward_shapes(model):
    batch = make_batch()
    out = model(batch)
    assert out.mel_before.shape == out.mel_after.shape == out.mel.shape == batch.mel.shape
    for values in (out.log_durations, out.pitch, out.energy):
        assert values.shape == batch.tokens.shape
        assert not values[1, 3:].any()


def test_no_postnet():
    model = FastSpeech2(replace(TINY, postnet_layers=0))
    out = model(make_batch())
    assert out.mel_after is None and out.mel is out.mel_before
    assert "mel_after" not in model.loss(make_batch())[1]


def test_attention_does_not_see_padding():
    """Without convolutions nothing reads padding; with them it carries values, as in ESPnet."""
    torch.manual_seed(0)
    predictor = replace(PREDICTOR, kernel_size=1)
    predictors = {f"{n}_predictor": predictor for n in ("duration", "pitch", "energy")}
    pointwise = replace(TINY, ffn_kernel_sizes=(1, 1), postnet_layers=0, **predictors)
    for config, same in ((pointwise, True), (TINY, False)):
        model = FastSpeech2(config).eval()
        a, b = model(make_batch()), model(make_batch(extra=4))
        T = a.mel.shape[1]
        assert torch.allclose(a.mel, b.mel[:, :T], atol=1e-6) == same
        # The longest utterance's tokens are next to padding only in the second batch.
        assert torch.allclose(a.pitch, b.pitch[:, :5], atol=1e-6) == same


def test_trim_undoes_extra_padding():
    trimmed, plain = make_batch(extra=4).trim(), make_batch()
    for name in ("tokens", "mel", "durations", "pitch", "energy"):
        assert torch.equal(getattr(trimmed, name), getattr(plain, name))


def test_positions_grow_with_the_input(model):
    encoding = model.encoder.position_embed.encoding
    model.encoder.position_embed.encoding = encoding[:3]
    expected = model(make_batch()).pitch
    assert model.encoder.position_embed.encoding.shape[0] >= 5
    assert torch.equal(model.encoder.position_embed.encoding, encoding[:10])
    assert torch.equal(model(make_batch()).pitch, expected)


def test_gradient_reaches_all_that_trains():
    torch.manual_seed(0)
    model = FastSpeech2(without_dropout(TINY)).train()
    total, _ = model.loss(make_batch((7, 6, 5)))
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        # Softmax does not see a bias on the keys.
        assert p.grad.abs().sum() > 0 or name.endswith("attention.key.bias"), name
    assert not model.token_embed.weight.grad[0].any()


@pytest.mark.parametrize(("term", "reaches"), [("pitch", False), ("energy", True)])
def test_which_predictor_trains_the_encoder(term, reaches):
    model = FastSpeech2(TINY)
    getattr(model(make_batch()), term).sum().backward()
    assert (model.token_embed.weight.grad is not None) == reaches


def test_training_step_is_repeatable_and_uses_dropout():
    model = FastSpeech2(TINY).train()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(model.loss(make_batch())[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_training_step_reads_nothing_back():
    """Meta tensors have no values: whatever would wait for a GPU (`.item()`, masks) raises."""
    with torch.device("meta"):
        model = FastSpeech2(TINY).train()
    total, terms = model.loss(make_batch().to("meta"))
    total.backward()
    assert all(p.grad.is_meta for p in model.parameters())
    assert all(term.is_meta for term in terms.values())


def test_bfloat16_autocast():
    model = FastSpeech2(TINY).train()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model.loss(make_batch())
    total.backward()
    assert total.dtype == torch.float32 and total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_infer_shapes_and_single_sentence(model):
    batch = make_batch()
    speech = model.infer(batch.tokens, batch.token_lengths)
    assert speech.mel.shape == (2, int(speech.mel_lengths.max()), TINY.n_mels)
    assert torch.equal(speech.durations.sum(1), speech.mel_lengths)
    for values in (speech.durations, speech.pitch, speech.energy):
        assert not values[1, 3:].any()
    shorter = int(speech.mel_lengths.argmin())
    assert not speech.mel[shorter, speech.mel_lengths[shorter] :].any()
    alone = model.infer(batch.tokens[:1])
    assert torch.allclose(alone.pitch, speech.pitch[:1], atol=1e-6)


def test_infer_speed(model):
    nn.init.constant_(model.duration_predictor.out.bias, 3.0)
    tokens = make_batch().tokens[:1]
    normal, fast, slow = (int(model.infer(tokens, speed=s).mel_lengths) for s in (1, 2, 0.5))
    assert abs(fast - normal / 2) <= 0.5
    assert slow == 2 * normal


def test_infer_pitch_and_energy_are_separate_controls(model):
    tokens = make_batch().tokens[:1]
    plain = model.infer(tokens)
    high = model.infer(tokens, pitch_shift=1.5, pitch_scale=2.0)
    loud = model.infer(tokens, energy_shift=-0.5, energy_scale=3.0)
    torch.testing.assert_close(high.pitch, 2 * plain.pitch + 1.5)
    torch.testing.assert_close(loud.energy, 3 * plain.energy - 0.5)
    assert torch.equal(high.energy, plain.energy) and torch.equal(loud.pitch, plain.pitch)
    assert torch.equal(high.durations, plain.durations)
    assert not torch.allclose(high.mel, plain.mel) and not torch.allclose(loud.mel, plain.mel)


def test_infer_without_any_predicted_frame(model):
    nn.init.constant_(model.duration_predictor.out.bias, -20.0)
    batch = make_batch()
    speech = model.infer(batch.tokens, batch.token_lengths)
    assert speech.durations.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert speech.mel.isfinite().all()


def test_infer_refuses(model):
    tokens = make_batch().tokens
    for bad, message in [
        (tokens[0], r"expected int64 \[B, L\]"),
        (tokens.int(), "int64"),
        (tokens[:, :0], "not empty"),
        (tokens + 10, r"expected ids in \[0, 10\), got 10 to"),
        (tokens - 1, "got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.infer(bad)
    for lengths in ([5], [0, 3], [6, 3]):
        with pytest.raises(ValueError, match="token_lengths: expected 2 lengths from 1 to 5"):
            model.infer(tokens, torch.tensor(lengths))
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="speed"):
            model.infer(tokens, speed=speed)
    with pytest.raises(ValueError, match="eval"):
        model.train().infer(tokens)
    nn.init.constant_(model.eval().duration_predictor.out.bias, float("nan"))
    with pytest.raises(ValueError, match="weights are broken"):
        model.infer(tokens)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vocab_size", 1),
        ("d_model", 0),
        ("d_model", 7),
        ("heads", 3),
        ("encoder_layers", 0),
        ("ffn_dim", 1.5),
        ("decoder_ffn_dim", 0),
        ("ffn_kernel_sizes", (3, 2)),
        ("ffn_kernel_sizes", (3,)),
        ("encoder_dropout", 1.0),
        ("postnet_dropout", -0.1),
        ("postnet_layers", -1),
        ("postnet_kernel_size", 4),
        ("pitch_embed_kernel_size", 2),
        ("pitch_predictor", replace(PREDICTOR, layers=0)),
        ("energy_predictor", replace(PREDICTOR, kernel_size=2)),
        ("duration_predictor", {"dropout": 2.0}),
        ("loss_masking", "padding"),
    ],
)
def test_config_names_what_is_wrong(setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*expected .*, got "):
        replace(TINY, **{setting: value})


def test_config_survives_json():
    config = replace(TINY, decoder_ffn_dim=24)
    assert FastSpeech2Config(**json.loads(json.dumps(asdict(config)))) == config


def test_predictor_from_a_dict_keeps_the_other_defaults():
    config = FastSpeech2Config(vocab_size=9, pitch_predictor={"dropout": 0.3})
    assert config.pitch_predictor == PredictorConfig(5, 256, 5, 0.3, stop_gradient=True)


def test_batch_checks_shapes_and_counts_frames():
    batch = make_batch()
    assert batch.n_frames == int(batch.mel_lengths.sum())
    assert len(batch) == 2 and batch.to("cpu").n_frames == batch.n_frames
    for name in ("durations", "pitch", "mel_lengths", "mel"):
        with pytest.raises(ValueError, match=name):
            replace(batch, **{name: getattr(batch, name)[..., :1][:1]})
    with pytest.raises(ValueError, match="ids"):
        replace(batch, ids=["one"])
    wrong = replace(batch, mel=batch.mel[..., :4])
    with pytest.raises(ValueError, match="expected 6 bins, got 4"):
        FastSpeech2(TINY)(wrong)


def test_batch_validate_names_the_utterance():
    batch = make_batch()
    batch.validate(vocab_size=10)
    longer = batch.durations.clone()
    longer[1, 0] += 1
    padded = batch.durations.clone()
    padded[1, 0], padded[1, 4] = padded[1, 0] - 1, 1
    for wrong, message in [
        (replace(batch, durations=longer), "add up"),
        (replace(batch, durations=padded), "0 in padding"),
        (replace(batch, tokens=batch.tokens + torch.tensor([[0], [9]])), r"\[0, 10\)"),
        (replace(batch, token_lengths=torch.tensor([5, 6])), "1 to 5 tokens, got 6"),
        (replace(batch, mel_lengths=torch.tensor([int(batch.mel_lengths[0]), 0])), "frames"),
    ]:
        with pytest.raises(ValueError, match=f"utterance utt1: .*{message}"):
            wrong.validate(vocab_size=10)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_rows_is_that_of_channels(training):
    """`[B, C, T]` over memory `[B, T, C]`, as a sparse convolution gives it, and as a dense one."""
    layer = _PostnetLayer(16, 16, 5, batch_norm=True).train(training)
    layer.conv, layer.norm = nn.Identity(), nn.BatchNorm1d(16).train(training)  # pyright: ignore
    nn.init.normal_(layer.norm.weight)
    x, dy = torch.randn(3, 7, 16), torch.randn(3, 16, 7)
    results = []
    for given in (x.transpose(1, 2), x.transpose(1, 2).contiguous()):
        each, leaf = copy.deepcopy(layer), given.detach().requires_grad_()
        y = each(leaf, nn.Identity(), tanh=False)
        y.backward(dy)
        gradients = [leaf.grad, *(p.grad for p in each.norm.parameters())]
        results.append([y, *gradients, *each.norm.buffers()])
        assert each.norm.get_buffer("num_batches_tracked") == int(training)
    for rows, channels in zip(*results, strict=True):
        torch.testing.assert_close(rows, channels)
