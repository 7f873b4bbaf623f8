# SPDX-License-Identifier: Apache-2.0
"""Other people's models at a size that trains in a second, and what must hold for each after
`sparsify`: the outputs, gradients and updates of the dense original with its weights masked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sniper import Sniper, densify, sparsify
from sniper.layers import SparsifyReport
from sniper.ops.layout import weight_mask

BLOCK = 16


def fastspeech2_conformer(**changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Hugging Face's FastSpeech2Conformer and a padded batch; dropout as by default."""
    from transformers import FastSpeech2ConformerConfig, FastSpeech2ConformerModel

    stack = {"layers": 1, "num_attention_heads": 2, "linear_units": 64}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "vocab_size": 20,
        "num_mel_bins": 16,
        "speech_decoder_postnet_layers": 2,
        "speech_decoder_postnet_units": 32,
    }
    for name in ("duration", "energy", "pitch"):
        sizes |= {f"{name}_predictor_layers": 2, f"{name}_predictor_channels": 32}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_{name}": value for name, value in stack.items()}
    config = FastSpeech2ConformerConfig(**{**sizes, **changes})
    generator = torch.Generator().manual_seed(0)
    durations = torch.tensor([[2, 1, 3, 2, 4], [3, 2, 0, 0, 0]])
    mel = torch.randn(2, 12, 16, generator=generator)
    mel[1, 5:] = -100.0  # what the model takes for padding
    batch = {
        "input_ids": torch.tensor([[3, 7, 5, 9, 1], [4, 1, 0, 0, 0]]),
        "attention_mask": (durations > 0).long(),
        "spectrogram_labels": mel,
        "duration_labels": durations,
        "pitch_labels": torch.randn(2, 5, 1, generator=generator),
        "energy_labels": torch.randn(2, 5, 1, generator=generator),
    }
    return FastSpeech2ConformerModel(config), batch


def speecht5(**changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Hugging Face's SpeechT5 for text to speech and a batch."""
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech

    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_layerdrop": 0.0,  # it would drop the only layer
        "decoder_layerdrop": 0.0,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 16,
        "speaker_embedding_dim": 8,
        "speech_decoder_prenet_units": 32,
        "speech_decoder_postnet_layers": 2,
        "speech_decoder_postnet_units": 32,
    }
    model = SpeechT5ForTextToSpeech(SpeechT5Config(**{**sizes, **changes}))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.tensor([[3, 7, 5, 9, 2], [4, 2, 1, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "labels": torch.randn(2, 12, 16, generator=generator),
        "speaker_embeddings": torch.randn(2, 8, generator=generator),
    }
    return model, batch


def vits(**changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Hugging Face's VITS and a batch."""
    from transformers import VitsConfig, VitsModel

    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "flow_size": 32,
        "spectrogram_bins": 17,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 1,
        "posterior_encoder_num_wavenet_layers": 1,
        "upsample_initial_channel": 32,
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "duration_predictor_num_flows": 1,
        "duration_predictor_filter_channels": 32,
        "depth_separable_num_layers": 1,
        "use_stochastic_duration_prediction": False,
    }
    model = VitsModel(VitsConfig(**{**sizes, **changes}))
    return model, {"input_ids": torch.tensor([[3, 7, 5, 9, 2, 8, 4]])}


def espnet_fastspeech2(stack: str = "transformer") -> tuple[nn.Module, dict[str, Tensor]]:
    """ESPnet's FastSpeech2 of transformers or Conformers and a padded batch; needs the `espnet`
    package.
    """
    from espnet2.tts.fastspeech2 import FastSpeech2

    stacks = {"adim": 32, "aheads": 2, "elayers": 1, "eunits": 64, "dlayers": 1, "dunits": 64}
    convolutions = {"positionwise_layer_type": "conv1d", "positionwise_conv_kernel_size": 3}
    predictors = {f"{name}_predictor_chans": 32 for name in ("duration", "pitch", "energy")}
    model = FastSpeech2(
        idim=20,
        odim=16,
        postnet_layers=2,
        postnet_chans=32,
        init_type="xavier_uniform",
        encoder_type=stack,
        decoder_type=stack,
        conformer_rel_pos_type="latest",
        conformer_pos_enc_layer_type="rel_pos",
        conformer_self_attn_layer_type="rel_selfattn",
        conformer_activation_type="swish",
        **stacks,
        **convolutions,
        **predictors,
    )
    generator = torch.Generator().manual_seed(0)
    # ESPnet adds an end of sentence to the text; its values are those of tokens and that end.
    durations = torch.tensor([[2, 1, 3, 2, 4, 0], [3, 2, 0, 0, 0, 0]])
    lengths = torch.tensor([6, 3])
    batch = {
        "text": torch.tensor([[3, 7, 5, 9, 4], [4, 6, 0, 0, 0]]),
        "text_lengths": torch.tensor([5, 2]),
        "feats": torch.randn(2, 12, 16, generator=generator),
        "feats_lengths": torch.tensor([12, 5]),
        "durations": durations,
        "durations_lengths": lengths,
        "pitch": torch.randn(2, 6, 1, generator=generator),
        "pitch_lengths": lengths,
        "energy": torch.randn(2, 6, 1, generator=generator),
        "energy_lengths": lengths,
    }
    return model, batch


def espnet_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """ESPnet returns loss, statistics and weight."""
    return model(**batch)[0]


def models_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """As the model computes it from its labels."""
    return model(**batch).loss


def vits_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Hugging Face has no training loss for VITS: quiet sound and a latent of ones."""
    out = model(**batch)
    return out.waveform.square().mean() + (out.spectrogram - 1).square().mean()


def check_against_masked_dense(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    steps: int = 3,
    tolerance: float = 1e-3,
) -> SparsifyReport:
    """Trains `model` block-sparse and a copy of it dense with masks on weights and gradients, from
    the same seeds: losses, gradients and the weights after `steps` updates must be equal, each
    tensor within `tolerance` of its norm.

    Without dropout: torch draws it in memory order, and a block-sparse convolution's output lies
    channels-last.

    Returns:
        What `sparsify` reported.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    dense = copy.deepcopy(model).train()
    report = sparsify(
        model.train(), BLOCK, fast_dropout=True, fast_depthwise=True, fast_attention=True
    )
    for name in report.taken:
        layer, plain = model.get_submodule(name), dense.get_submodule(name)
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.4)
        mask = weight_mask(layer.layout, layer.weight.dim())
        plain.weight.data *= mask
        plain.weight.register_hook(lambda grad, mask=mask: grad * mask)
    sides = [(m, torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9)) for m in (model, dense)]
    for step in range(steps):
        losses = []
        for side, optimizer in sides:
            torch.manual_seed(step)  # what is still random, as layer drop
            optimizer.zero_grad()
            losses.append(loss_fn(side, batch))
            losses[-1].backward()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        _compare(model, dense, lambda p: p.grad, tolerance)
        for _, optimizer in sides:
            optimizer.step()
    _compare(model, dense, lambda p: p.detach(), tolerance)
    return report


def _compare(
    model: nn.Module,
    dense: nn.Module,
    of: Callable[[nn.Parameter], Tensor | None],
    tolerance: float,
):
    expected = dict(dense.named_parameters())
    for name, p in model.named_parameters():
        got, wanted = of(p), of(expected[name])
        assert (got is None) == (wanted is None), name
        if got is not None:
            # Sums in another order. As a whole, not entry by entry: a value that lands on the other
            # side of a spline's knot or of ReLU's edge changes a few entries by percents.
            off, size = float((got - wanted).norm()), float(wanted.norm())
            assert off <= tolerance * max(1.0, size), f"{name}: off by {off}, of {size}"


def check_sniper_trains(
    model: nn.Module, batch: Any, loss_fn: Callable[[nn.Module, Any], Tensor]
) -> None:
    """Sparse first and dense at the end, with an optimizer that was there before; the loss falls,
    and what is left is the plain model.
    """
    keys = list(model.state_dict())
    classes = [type(m) for m in model.modules()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    snip = Sniper(model.train(), {0: 0.7, 1: 0.4, 2: 0.0}, block_size=BLOCK)
    snip.score([batch], loss_fn)
    losses, densities = [], []
    for epoch in range(3):
        snip.step(epoch, optimizer)
        densities.append(sum(snip.densities().values()) / len(snip.densities()))
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert densities[0] < densities[1] < densities[2] == 1.0
    assert losses[-1] < losses[0]
    densify(model)
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == classes
