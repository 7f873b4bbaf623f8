# SPDX-License-Identifier: Apache-2.0
"""Import ESPnet's FastSpeech2: its settings become a `FastSpeech2Config`, its weights are renamed.

Source: `espnet2.tts.fastspeech2.FastSpeech2` of ESPnet 202511 (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config
from sniper.tts.model.variance import PredictorConfig

# Keyword arguments of ESPnet's FastSpeech2 that shape the model, with ESPnet's own defaults.
_DEFAULTS: dict[str, Any] = {
    "adim": 384,
    "aheads": 4,
    "elayers": 6,
    "eunits": 1536,
    "dlayers": 6,
    "dunits": 1536,
    "postnet_layers": 5,
    "postnet_chans": 512,
    "postnet_filts": 5,
    "postnet_dropout_rate": 0.5,
    "positionwise_layer_type": "conv1d",
    "positionwise_conv_kernel_size": 1,
    "use_scaled_pos_enc": True,
    "use_batch_norm": True,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "transformer_enc_dropout_rate": 0.1,
    "transformer_enc_positional_dropout_rate": 0.1,
    "transformer_enc_attn_dropout_rate": 0.1,
    "transformer_dec_dropout_rate": 0.1,
    "transformer_dec_positional_dropout_rate": 0.1,
    "transformer_dec_attn_dropout_rate": 0.1,
    "duration_predictor_layers": 2,
    "duration_predictor_chans": 384,
    "duration_predictor_kernel_size": 3,
    "duration_predictor_dropout_rate": 0.1,
    "pitch_predictor_layers": 2,
    "pitch_predictor_chans": 384,
    "pitch_predictor_kernel_size": 3,
    "pitch_predictor_dropout": 0.5,
    "pitch_embed_kernel_size": 9,
    "pitch_embed_dropout": 0.5,
    "stop_gradient_from_pitch_predictor": False,
    "energy_predictor_layers": 2,
    "energy_predictor_chans": 384,
    "energy_predictor_kernel_size": 3,
    "energy_predictor_dropout": 0.5,
    "energy_embed_kernel_size": 9,
    "energy_embed_dropout": 0.5,
    "stop_gradient_from_energy_predictor": False,
    "use_masking": False,
    "use_weighted_masking": False,
    "spks": None,
}
# Settings with one supported value; None also stands for "off" in the numeric ones.
_REQUIRED: dict[str, Any] = {
    "encoder_type": "transformer",
    "decoder_type": "transformer",
    "encoder_concat_after": False,
    "decoder_concat_after": False,
    "reduction_factor": 1,
    "use_gst": False,
}
# Off at or below this value, as ESPnet reads them.
_OFF_AT: dict[str, int] = {"langs": 1, "spk_embed_dim": 0}
# Details of what is off, or of the initialisation that the loaded weights replace.
_IGNORED = re.compile(
    r"(conformer_|gst_|init_).*|use_macaron_style_in_conformer|use_cnn_in_conformer|zero_triu"
    r"|spk_embed_integration_type"
)
# What an ESPnet checkpoint holds beside its model.
_NOT_MODEL = re.compile(r"((pitch_|energy_)?(normalize|extract)|feats_extract)\.")

# Our names to ESPnet's, applied in this order.
_RENAMES = [
    (r"^token_embed\.", "encoder.embed.0."),
    (r"^speaker_embed\.", "sid_emb."),
    (r"^encoder\.position_embed\.", "encoder.embed.1."),
    (r"^decoder\.position_embed\.", "decoder.embed.0."),
    (r"^(encoder|decoder)\.layers\.", r"\1.encoders."),
    (r"\.attention\.(query|key|value|out)\.", r".self_attn.linear_\1."),
    (r"\.linear_(q|k|v)(uery|ey|alue)\.", r".linear_\1."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.ffn_norm\.", ".norm2."),
    (r"\.ffn\.conv([12])\.", r".feed_forward.w_\1."),
    (r"\.final_norm\.", ".after_norm."),
    (r"_predictor\.layers\.(\d+)\.conv\.", r"_predictor.conv.\1.0."),
    (r"_predictor\.layers\.(\d+)\.norm\.", r"_predictor.conv.\1.2."),
    (r"_predictor\.out\.", "_predictor.linear."),
    (r"^(pitch|energy)_embed\.conv\.", r"\1_embed.0."),
    (r"^mel_out\.", "feat_out."),
    (r"^postnet\.layers\.(\d+)\.conv\.", r"postnet.postnet.\1.0."),
    (r"^postnet\.layers\.(\d+)\.norm\.", r"postnet.postnet.\1.1."),
]


def load_espnet(state_dict: Mapping[str, Tensor], **tts_conf: Any) -> FastSpeech2:
    """Build the FastSpeech2 that computes what ESPnet's does with these weights.

    Args:
        state_dict: of `espnet2.tts.fastspeech2.FastSpeech2`, or of an ESPnet checkpoint, where its
            names start with `tts.` beside normalisers, which are left out.
        **tts_conf: the keyword arguments that ESPnet's class was made with (`tts_conf` in the
            checkpoint's `config.yaml`); those not given take ESPnet's defaults. `idim` and `odim`
            follow from the weights and may be left out.

    Returns:
        A model in training mode with copies of the weights. Tokens of zero duration count in its
        loss, as in ESPnet. The end of sentence is ESPnet's last token, `vocab_size - 1`.

    Raises:
        ValueError: a setting that is not supported, or weights that are missing, left over or of
            another shape than the settings say.
    """
    weights = _model_weights(state_dict)
    config = espnet_config(_conf_with_sizes(weights, tts_conf))
    model = FastSpeech2(config)
    target = model.state_dict()
    names = {name: espnet_name(name) for name in target}
    _refuse("missing weights", set(names.values()) - set(weights))
    _refuse("weights without a place in this model", set(weights) - set(names.values()))
    for name, tensor in target.items():
        weight = weights[names[name]]
        if weight.ndim == tensor.ndim + 1 and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)  # a convolution of kernel size 1 is a Linear here
        if weight.shape != tensor.shape:
            raise ValueError(
                f"{names[name]}: expected shape {list(tensor.shape)} from the settings, "
                f"got {list(weights[names[name]].shape)}"
            )
        target[name] = weight
    model.load_state_dict(target)
    return model


def espnet_config(tts_conf: Mapping[str, Any]) -> FastSpeech2Config:
    """The config for ESPnet's keyword arguments, `idim` and `odim` included.

    Raises:
        ValueError: a setting that is unknown or not supported, with what was expected and got.
    """
    _check_supported(tts_conf)
    # A checkpoint's config.yaml names only what its author set.
    c = {**_DEFAULTS, **tts_conf}
    size = c["positionwise_conv_kernel_size"]
    kernels = {"linear": (1, 1), "conv1d": (size, size), "conv1d-linear": (size, 1)}
    kind = c["positionwise_layer_type"]
    if kind not in kernels:
        raise ValueError(f"positionwise_layer_type: expected one of {list(kernels)}, got {kind!r}")
    if c["use_masking"] and c["use_weighted_masking"]:
        raise ValueError("use_weighted_masking: expected False beside use_masking, got True")
    masking = "entries" if c["use_masking"] else "none"
    stacks = {}
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        stacks[f"{ours}_pre_norm"] = c[f"{ours}_normalize_before"]
        stacks[f"{ours}_dropout"] = c[f"transformer_{theirs}_dropout_rate"]
        stacks[f"{ours}_position_dropout"] = c[f"transformer_{theirs}_positional_dropout_rate"]
        stacks[f"{ours}_attention_dropout"] = c[f"transformer_{theirs}_attn_dropout_rate"]
    return FastSpeech2Config(
        vocab_size=c["idim"],
        n_mels=c["odim"],
        # One speaker has no embedding there either.
        speakers=c["spks"] if (c["spks"] or 0) > 1 else 0,
        d_model=c["adim"],
        heads=c["aheads"],
        encoder_layers=c["elayers"],
        decoder_layers=c["dlayers"],
        ffn_dim=c["eunits"],
        decoder_ffn_dim=None if c["dunits"] == c["eunits"] else c["dunits"],
        ffn_kernel_sizes=kernels[kind],
        scaled_positions=c["use_scaled_pos_enc"],
        **stacks,
        duration_predictor=_predictor(c, "duration"),
        pitch_predictor=_predictor(c, "pitch"),
        energy_predictor=_predictor(c, "energy"),
        pitch_embed_kernel_size=c["pitch_embed_kernel_size"],
        pitch_embed_dropout=c["pitch_embed_dropout"],
        energy_embed_kernel_size=c["energy_embed_kernel_size"],
        energy_embed_dropout=c["energy_embed_dropout"],
        postnet_layers=c["postnet_layers"],
        postnet_channels=c["postnet_chans"],
        postnet_kernel_size=c["postnet_filts"],
        postnet_dropout=c["postnet_dropout_rate"],
        postnet_batch_norm=c["use_batch_norm"],
        empty_token_loss=True,
        loss_masking="utterances" if c["use_weighted_masking"] else masking,
    )


def espnet_name(name: str) -> str:
    """ESPnet's name of one of our parameters or buffers."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _predictor(conf: Mapping[str, Any], name: str) -> PredictorConfig:
    rate = "duration_predictor_dropout_rate" if name == "duration" else f"{name}_predictor_dropout"
    return PredictorConfig(
        layers=conf[f"{name}_predictor_layers"],
        channels=conf[f"{name}_predictor_chans"],
        kernel_size=conf[f"{name}_predictor_kernel_size"],
        dropout=conf[rate],
        stop_gradient=conf.get(f"stop_gradient_from_{name}_predictor", False),
    )


def _check_supported(tts_conf: Mapping[str, Any]) -> None:
    for name, value in tts_conf.items():
        if name in _REQUIRED:
            if value != _REQUIRED[name]:
                raise ValueError(f"{name}: expected {_REQUIRED[name]!r}, got {value!r}")
        elif name in _OFF_AT:
            if value is not None and value > _OFF_AT[name]:
                raise ValueError(f"{name}: expected None, got {value!r}")
        elif name not in _DEFAULTS and name not in ("idim", "odim"):
            if not _IGNORED.fullmatch(name):
                raise ValueError(
                    f"{name}: expected a setting of ESPnet's FastSpeech2, got this name"
                )


def _model_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own weights, without the prefix of a checkpoint."""
    own = {k: v for k, v in state_dict.items() if not _NOT_MODEL.match(k)}
    if any(k.startswith("tts.") for k in own):
        _refuse("weights outside tts.", {k for k in own if not k.startswith("tts.")})
    return {k.removeprefix("tts."): v for k, v in own.items()}


def _conf_with_sizes(weights: Mapping[str, Tensor], tts_conf: dict[str, Any]) -> dict[str, Any]:
    """`tts_conf` with `idim` and `odim` read off the weights where they are not given."""
    sizes = {"idim": "encoder.embed.0.weight", "odim": "feat_out.weight"}
    _refuse("missing weights", set(sizes.values()) - set(weights))
    return {**{name: len(weights[key]) for name, key in sizes.items()}, **tts_conf}


def _refuse(what: str, names: set[str]) -> None:
    """Raise ValueError naming the first few of `names`, if there are any."""
    if names:
        shown = ", ".join(sorted(names)[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ValueError(f"{what}: expected none, got {shown}{more}; check state_dict and tts_conf")
