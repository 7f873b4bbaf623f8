# SPDX-License-Identifier: Apache-2.0
"""FastSpeech2's settings, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sniper.tts.model.transformer import StackConfig
from sniper.tts.model.variance import PredictorConfig

# What the mean of a loss term is over: see fastspeech2_loss.
MASKINGS = ("entries", "utterances", "none")
# How a speaker's embedding joins what the encoder gives: see FastSpeech2Config.
INTEGRATIONS = ("add", "concat")
_PREDICTORS = ("duration_predictor", "pitch_predictor", "energy_predictor")


@dataclass(frozen=True)
class FastSpeech2Config:
    """Sizes and rates of a FastSpeech2.

    From YAML, tuples may come as lists, and a predictor as a dict of what differs from its default.

    Args:
        vocab_size: tokens, padding (id 0) and the end of sentence included.
        n_mels: mel bins.
        speakers: of the corpus; 0: one, who has no embedding.
        speaker_integration: "add" adds a speaker's embedding to the encoder's output, as ESPnet's
            `spks`; "concat" puts its direction beside it and projects both, as ESPnet does with
            embeddings from outside.
        d_model, heads: of both stacks.
        encoder_layers, decoder_layers: blocks; at least 1.
        ffn_dim: hidden channels of the feed-forward layers.
        decoder_ffn_dim: the decoder's, when it differs.
        ffn_kernel_sizes: of the two feed-forward convolutions, odd; 1 is a Linear.
        encoder_pre_norm, decoder_pre_norm: LayerNorm before each sublayer, or after it.
        scaled_positions: `x + alpha PE` with alpha learned, or `sqrt(C) x + PE`.
        *_dropout: `encoder_dropout` on residuals and inside the feed-forward,
            `encoder_position_dropout` after the positions, `encoder_attention_dropout` on attention
            weights; the same for the decoder.
        duration_predictor, pitch_predictor, energy_predictor: `PredictorConfig` each.
        pitch_embed_*, energy_embed_*: kernel size (odd) and dropout of the embedding convolutions.
        postnet_*: convolutions after the mel projection; `postnet_layers=0` is no postnet.
        empty_token_loss, loss_masking: see `fastspeech2_loss`.

    Raises:
        ValueError: a setting out of range, by name.
    """

    vocab_size: int
    n_mels: int = 80
    speakers: int = 0
    speaker_integration: str = "add"
    d_model: int = 384
    heads: int = 2
    encoder_layers: int = 4
    decoder_layers: int = 4
    ffn_dim: int = 1536
    decoder_ffn_dim: int | None = None
    ffn_kernel_sizes: tuple[int, int] = (3, 3)
    encoder_pre_norm: bool = True
    decoder_pre_norm: bool = True
    scaled_positions: bool = True
    encoder_dropout: float = 0.2
    encoder_position_dropout: float = 0.2
    encoder_attention_dropout: float = 0.2
    decoder_dropout: float = 0.2
    decoder_position_dropout: float = 0.2
    decoder_attention_dropout: float = 0.2
    duration_predictor: PredictorConfig = PredictorConfig(dropout=0.1)
    pitch_predictor: PredictorConfig = PredictorConfig(layers=5, kernel_size=5, stop_gradient=True)
    energy_predictor: PredictorConfig = PredictorConfig()
    pitch_embed_kernel_size: int = 1
    pitch_embed_dropout: float = 0.0
    energy_embed_kernel_size: int = 1
    energy_embed_dropout: float = 0.0
    postnet_layers: int = 5
    postnet_channels: int = 256
    postnet_kernel_size: int = 5
    postnet_dropout: float = 0.5
    postnet_batch_norm: bool = True
    empty_token_loss: bool = False
    loss_masking: str = "entries"

    def __post_init__(self):
        def assign(name: str, value) -> None:
            object.__setattr__(self, name, value)

        assign("ffn_kernel_sizes", tuple(self.ffn_kernel_sizes))
        for name in _PREDICTORS:
            # A file says what differs from that predictor's own defaults, which are not the same
            # for all three.
            if isinstance(getattr(self, name), dict):
                default = self.__dataclass_fields__[name].default
                assign(name, replace(default, **getattr(self, name)))
        _validate(self)

    def stack(self, name: str) -> StackConfig:
        """The settings of the "encoder" or the "decoder"."""
        # One number serves both stacks unless somebody gives the decoder its own.
        own_ffn = self.decoder_ffn_dim if name == "decoder" else None
        return StackConfig(
            d_model=self.d_model,
            heads=self.heads,
            layers=getattr(self, f"{name}_layers"),
            ffn_dim=own_ffn or self.ffn_dim,
            ffn_kernel_sizes=self.ffn_kernel_sizes,
            dropout=getattr(self, f"{name}_dropout"),
            position_dropout=getattr(self, f"{name}_position_dropout"),
            attention_dropout=getattr(self, f"{name}_attention_dropout"),
            pre_norm=getattr(self, f"{name}_pre_norm"),
            scaled_positions=self.scaled_positions,
        )


def _validate(config: FastSpeech2Config) -> None:
    """Raise ValueError for the first setting out of range."""

    def check(name: str, value, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")

    def count(name: str, value, low: int = 1) -> None:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        check(name, value, good, f"an integer of at least {low}")

    def odd(name: str, value) -> None:
        # An even kernel cannot keep the number of frames with equal padding on both sides.
        check(
            name, value, isinstance(value, int) and value > 0 and value % 2 == 1, "an odd integer"
        )

    def rate(name: str, value) -> None:
        good = isinstance(value, (int, float)) and 0 <= value < 1
        check(name, value, good, "a rate in [0, 1)")

    for name in ("vocab_size", "n_mels", "d_model", "heads", "encoder_layers", "decoder_layers"):
        count(name, getattr(config, name), 2 if name == "vocab_size" else 1)
    # Positions are pairs of a sine and a cosine.
    check("d_model", config.d_model, config.d_model % 2 == 0, "an even number")
    fits = config.d_model % config.heads == 0
    check("heads", config.heads, fits, f"a divisor of d_model ({config.d_model})")
    count("ffn_dim", config.ffn_dim)
    if config.decoder_ffn_dim is not None:
        count("decoder_ffn_dim", config.decoder_ffn_dim)
    sizes = config.ffn_kernel_sizes
    check("ffn_kernel_sizes", sizes, len(sizes) == 2, "two odd integers")
    for size in sizes:
        odd("ffn_kernel_sizes", size)
    count("postnet_layers", config.postnet_layers, 0)
    count("postnet_channels", config.postnet_channels)
    for name in ("pitch_embed_kernel_size", "energy_embed_kernel_size", "postnet_kernel_size"):
        odd(name, getattr(config, name))
    for name in vars(config):
        if name.endswith("_dropout"):
            rate(name, getattr(config, name))
    for name in _PREDICTORS:
        predictor = getattr(config, name)
        count(f"{name}.layers", predictor.layers)
        count(f"{name}.channels", predictor.channels)
        odd(f"{name}.kernel_size", predictor.kernel_size)
        rate(f"{name}.dropout", predictor.dropout)
    count("speakers", config.speakers, 0)
    known = config.speaker_integration in INTEGRATIONS
    what = f"one of {', '.join(INTEGRATIONS)}"
    check("speaker_integration", config.speaker_integration, known, what)
    known = config.loss_masking in MASKINGS
    check("loss_masking", config.loss_masking, known, f"one of {', '.join(MASKINGS)}")
