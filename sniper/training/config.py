# SPDX-License-Identifier: Apache-2.0
"""A run's settings: one YAML file or preset, then overrides such as `train.epochs=3`.

sniper/configs/*.yaml are the presets; a file's `base: NAME` starts from another one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from sniper.sparsity import SparsitySchedule
from sniper.training.settings import ConfigError, build, check_keys, parse, put, read
from sniper.tts.audio.spectrogram import FeatureConfig
from sniper.tts.model.config import FastSpeech2Config


@dataclass(frozen=True)
class DataConfig:
    """Where speech comes from.

    Args:
        kind: `demo` (synthesised by espeak-ng on the spot) or `ljspeech` (a folder in its layout).
        root: the corpus folder; for `demo` where it is made.
        prepared: folder of the prepared features; None: beside the corpus.
        textgrids: folder of the TextGrids; None: found under `root`.
        lexicon: pronunciation dictionary for synthesis, beside what the TextGrids give.
        utterances: sentences of the demo corpus.
        valid: held-out utterances; None: 5 % of the corpus, at most 250.
        seed: of the demo sentences and of the split.
        workers: processes that prepare; None: one a core.
    """

    kind: Literal["demo", "ljspeech"] = "demo"
    root: str = "data/demo"
    prepared: str | None = None
    textgrids: str | None = None
    lexicon: str | None = None
    utterances: int = 400
    valid: int | None = None
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True)
class SparsityConfig:
    """SNIPER's settings; see `sniper.Sniper`.

    Args:
        schedule: `{epoch: sparsity}`.
        schedule_fractions: the same by fraction of training; replaces `schedule`.
        prime_moments: true is 1; saved runs may have it so.
        score_batches: training batches that weights are scored on.
    """

    schedule: dict[int, float] = field(default_factory=lambda: {0: 0.0})
    schedule_fractions: dict[float, float] | None = None
    block_size: int | None = 64
    max_param_sparsity: float = 0.75
    spread: float | None = None
    restore_init: bool = True
    prime_moments: bool | float = 0.0
    scale_lr: bool = True
    max_lr_scale: float = 10.0
    paper_exact: bool = False
    exclude: list[str] = field(default_factory=lambda: ["norm", "embed"])
    score_batches: int = 20


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation and the loop.

    Args:
        epochs: length of the run.
        batches_per_epoch: micro-batches of an epoch; None: one pass over the data.
        max_frames: padded mel frames of a micro-batch, at most.
        accumulation: micro-batches of an update.
        lr, warmup: Noam: `lr * d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)` at update s.
        grad_clip: largest gradient norm; 0: no clipping.
        precision: `fp32`, `tf32` (matmuls on a GPU) or `bf16` (autocast).
        device: `auto` takes a GPU if there is one.
        autotune: on a GPU, time all tile sizes of our kernels for each layer once; takes minutes.
        cuda_graphs: on a GPU, record each batch shape's forward and backward once and replay it.
        workers: data processes; None: 4 for a GPU, 1 for a CPU.
        threads: CPU threads of torch; None: torch's own choice.
        seed: of weights, order and dropout.
        log_every: updates between two TensorBoard points.
        sample_every: epochs between two mel plots and audio samples in TensorBoard.
        checkpoint_minutes: a checkpoint at least this often, beside the one after each epoch.
    """

    epochs: int = 10
    batches_per_epoch: int | None = None
    max_frames: int = 11000
    accumulation: int = 1
    lr: float = 1.0
    warmup: int = 4000
    grad_clip: float = 1.0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    autotune: bool = False
    cuda_graphs: bool = True
    workers: int | None = None
    threads: int | None = None
    seed: int = 0
    log_every: int = 10
    sample_every: int = 5
    checkpoint_minutes: float = 10.0


@dataclass(frozen=True)
class Config:
    """Everything that `python -m sniper.train` needs to know.

    Args:
        name: of the run.
        output: folder of the run.
        sample_text: spoken at the end of training.
        features: settings of `FeatureConfig` that differ from its defaults.
        model: settings of `FastSpeech2Config` that differ from its defaults.
    """

    name: str = "run"
    output: str = "runs/run"
    sample_text: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    features: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _check_numbers(self)
        self.sparsity_schedule()
        self.feature_config()
        self.model_config(vocab_size=2, n_mels=80)

    def sparsity_schedule(self) -> SparsitySchedule:
        """The schedule in epochs."""
        try:
            if self.sparsity.schedule_fractions is not None:
                fractions = self.sparsity.schedule_fractions
                return SparsitySchedule.from_fractions(fractions, self.train.epochs)
            return SparsitySchedule(self.sparsity.schedule)
        except ValueError as error:
            raise ConfigError(f"sparsity: {error}") from None

    def feature_config(self) -> FeatureConfig:
        """The settings of the analysis."""
        check_keys(self.features, {f.name for f in dataclasses.fields(FeatureConfig)}, "features")
        try:
            return FeatureConfig(**self.features)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"features: {error}") from None

    def model_config(self, vocab_size: int, n_mels: int) -> FastSpeech2Config:
        """The model's settings for a vocabulary."""
        known = {f.name for f in dataclasses.fields(FastSpeech2Config)} - {"vocab_size", "n_mels"}
        check_keys(self.model, known, "model")
        for key, value in self.model.items():
            if key.endswith("_predictor") and not isinstance(value, dict):
                raise ConfigError(f"model.{key}: expected a mapping, got {value!r}")
        try:
            return FastSpeech2Config(vocab_size=vocab_size, n_mels=n_mels, **self.model)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, as a YAML file has them."""
        return dataclasses.asdict(self)


def load(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a preset or a YAML file and applies `key=value` overrides.

    Args:
        name_or_path: a preset's name, or the path of a YAML file.
        overrides: dotted keys; values are YAML, so `train.workers=null` and
            `'sparsity.schedule={0: 0.8, 5: 0}'` work.

    Raises:
        ConfigError: a file that is not there, an unknown key (with the nearest known one), a value
            of the wrong type or out of range.
    """
    data = read(name_or_path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override: expected key=value, got {override!r}")
        put(data, key.split("."), parse(text, f"override {key}"))
    return from_dict(data)


def from_dict(data: dict[str, Any]) -> Config:
    """Builds a `Config` from plain dictionaries; raises as `load` does."""
    return build(Config, data)


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def differences(before: Config, now: Config, ignore: Iterable[str] = ()) -> list[str]:
    """One line for each setting that differs: `key: there, now`."""
    there, here = _flat(before.to_dict()), _flat(now.to_dict())
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} now"
        for key in sorted({*there, *here} - set(ignore))
        if there.get(key) != here.get(key)
    ]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; a schedule is one value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        whole = not isinstance(value, dict) or name.startswith("sparsity.schedule")
        flat.update({name: value} if whole else _flat(value, f"{name}."))
    return flat


_LOWEST = {
    "data.utterances": 1,
    "data.valid": 1,  # the best checkpoint is the best on held-out speech
    "data.workers": 1,
    "sparsity.score_batches": 1,
    "train.epochs": 1,
    "train.batches_per_epoch": 1,
    "train.max_frames": 1,
    "train.accumulation": 1,
    "train.warmup": 1,
    "train.grad_clip": 0,
    "train.workers": 0,
    "train.threads": 1,
    "train.seed": 0,
    "train.log_every": 1,
    "train.sample_every": 1,
    "train.checkpoint_minutes": 0,
}


def _check_numbers(config: Config) -> None:
    for name, low in _LOWEST.items():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        if value is not None and not value >= low:
            raise ConfigError(f"{name}: expected at least {low}, got {value}")
    if not 0 < config.train.lr < math.inf:
        raise ConfigError(f"train.lr: expected a number above 0, got {config.train.lr}")
    if config.data.utterances > 100_000:
        raise ConfigError(f"data.utterances: expected at most 100000, got {config.data.utterances}")
