# SPDX-License-Identifier: Apache-2.0
r"""Record what ESPnet's own FastSpeech2 computes, for tests/tts/test_espnet.py.

    pip install torch==2.13.0 "typeguard<3" packaging humanfriendly librosa soundfile scipy six \
        configargparse pyyaml safetensors
    pip install --no-deps espnet==202511
    python tests/tts/golden/make_espnet_golden.py

Writes one `espnet_NAME.safetensors` a configuration beside this file, with the keyword arguments
in its metadata (`tts_conf`, JSON):

    state.*   weights
    in.*      a padded batch
    eval.*    outputs in evaluation mode
    infer.*   one sentence spoken
    scaled.*  outputs in training mode with every dropout replaced by a factor of 1 - p
    train.*   loss terms and gradient norms in training mode with every dropout at 0
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from espnet2.tts.fastspeech2 import FastSpeech2
from safetensors.torch import save_file
from torch import nn

SMALL = {
    "idim": 12,
    "odim": 8,
    "adim": 16,
    "aheads": 2,
    "elayers": 2,
    "eunits": 32,
    "dlayers": 2,
    "dunits": 32,
    "postnet_layers": 3,
    "postnet_chans": 12,
    "positionwise_conv_kernel_size": 3,
    "duration_predictor_chans": 12,
    "pitch_predictor_chans": 12,
    "energy_predictor_chans": 12,
    # All different, so that a rate in another's place shows.
    "transformer_enc_dropout_rate": 0.05,
    "transformer_enc_positional_dropout_rate": 0.1,
    "transformer_enc_attn_dropout_rate": 0.15,
    "transformer_dec_dropout_rate": 0.2,
    "transformer_dec_positional_dropout_rate": 0.25,
    "transformer_dec_attn_dropout_rate": 0.3,
    "duration_predictor_dropout_rate": 0.35,
    "pitch_predictor_dropout": 0.4,
    "pitch_embed_dropout": 0.45,
    "energy_predictor_dropout": 0.5,
    "energy_embed_dropout": 0.55,
    "postnet_dropout_rate": 0.6,
    "use_masking": True,
}
CONFIGS = {
    # The SNIPER paper's kinds of layers.
    "paper": {
        **SMALL,
        "postnet_layers": 5,
        "pitch_predictor_layers": 5,
        "pitch_predictor_kernel_size": 5,
        "pitch_embed_kernel_size": 1,
        "energy_embed_kernel_size": 1,
        "stop_gradient_from_pitch_predictor": True,
    },
    "post_norm": {
        **SMALL,
        "dunits": 24,
        "encoder_normalize_before": False,
        "decoder_normalize_before": False,
        "positionwise_layer_type": "conv1d-linear",
        "positionwise_conv_kernel_size": 5,
        "use_scaled_pos_enc": False,
        "use_batch_norm": False,
        "stop_gradient_from_energy_predictor": True,
        "use_masking": False,
        "use_weighted_masking": True,
    },
    "linear": {
        **SMALL,
        "positionwise_layer_type": "linear",
        "decoder_normalize_before": False,
        "postnet_layers": 0,
        "use_masking": False,
    },
}


def randomise(model: FastSpeech2) -> None:
    """Leave no weight or statistic at a value that hides a mistake (0 or 1)."""
    for p in model.parameters():
        if p.dim() < 2:
            p.data += 0.2 * torch.randn_like(p)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            m.num_batches_tracked.fill_(7)
    # Around e^1.5 - 1 = 3.5 frames a token, not e^5.
    model.duration_predictor.linear.weight.data *= 0.3
    model.duration_predictor.linear.bias.data.fill_(1.5)


class MeanDropout(nn.Dropout):
    """`(1 - p) x`: shows where a dropout stands and how high it is, without randomness."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 - self.p)


def make_batch(conf: dict) -> dict[str, torch.Tensor]:
    """Three padded utterances, each with a token of zero duration; ESPnet appends the last."""
    lengths = torch.tensor([9, 4, 7])
    B, L = 3, int(lengths.max())
    real = torch.arange(L) < lengths[:, None]
    durations = torch.randint(1, 6, (B, L)) * real
    durations[:, 2] = 0
    frames = durations.sum(1)
    T = int(frames.max())
    # The end of sentence has a value too: ESPnet counts it in the pitch and energy losses.
    with_eos = torch.arange(L + 1) <= lengths[:, None]
    return {
        "text": torch.randint(1, conf["idim"] - 1, (B, L)) * real,
        "text_lengths": lengths,
        "feats": torch.randn(B, T, conf["odim"]) * (torch.arange(T) < frames[:, None])[..., None],
        "feats_lengths": frames,
        "durations": F.pad(durations, (0, 1)),
        "durations_lengths": lengths + 1,
        "pitch": (torch.randn(B, L + 1) * with_eos)[..., None],
        "pitch_lengths": lengths + 1,
        "energy": (torch.randn(B, L + 1) * with_eos)[..., None],
        "energy_lengths": lengths + 1,
    }


def record(conf: dict) -> dict[str, torch.Tensor]:
    """All tensors of one golden file."""
    model = FastSpeech2(**conf)
    randomise(model)
    batch = make_batch(conf)
    out = {f"state.{k}": v.clone() for k, v in model.state_dict().items()}
    out |= {f"in.{k}": v for k, v in batch.items()}

    trained = copy.deepcopy(model).train()
    for m in _dropouts(trained):
        m.p = 0.0
    loss, stats, _ = trained(**batch)
    loss.backward()
    out["train.loss"] = loss.detach().squeeze()
    for name in ("l1_loss", "duration_loss", "pitch_loss", "energy_loss"):
        out[f"train.{name}"] = stats[name].squeeze()
    for name, p in trained.named_parameters():
        out[f"train.grad_norm.{name}"] = p.grad.norm()

    scaled = copy.deepcopy(model).train()
    for m in _dropouts(scaled):
        m.__class__ = MeanDropout
    out |= {f"scaled.{k}": v for k, v in outputs(scaled, batch).items()}

    model.eval()
    out |= {f"eval.{k}": v for k, v in outputs(model, batch).items()}
    with torch.no_grad():
        out |= {f"infer.{k}": v for k, v in model.inference(batch["text"][0]).items()}
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


def outputs(model: FastSpeech2, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Teacher-forced outputs; the end of sentence appended as in ESPnet's `forward`."""
    xs = F.pad(batch["text"], (0, 1))
    xs[torch.arange(len(xs)), batch["text_lengths"]] = model.eos
    names = ("before", "after", "log_durations", "pitch", "energy")
    keys = ("feats", "feats_lengths", "durations", "pitch", "energy")
    with torch.no_grad():
        values = model._forward(xs, batch["text_lengths"] + 1, *(batch[k] for k in keys))
    return dict(zip(names, values, strict=True))


def _dropouts(model: nn.Module) -> list[nn.Dropout]:
    return [m for m in model.modules() if isinstance(m, nn.Dropout)]


def main() -> None:
    here = Path(__file__).parent
    for seed, (name, conf) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        path = here / f"espnet_{name}.safetensors"
        save_file(record(conf), path, metadata={"tts_conf": json.dumps(conf)})
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
