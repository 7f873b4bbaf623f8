# SPDX-License-Identifier: Apache-2.0
"""A run's settings: one YAML file or preset, then overrides such as `train.epochs=3`.

sniper/configs/*.yaml are the presets; a file's `base: NAME` starts from another one.
`python -m sniper.training.reference` prints all settings with their types and limits.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from pydantic import Field, model_validator

from sniper.sparsity import SparsitySchedule
from sniper.training.sections import (
    DataConfig,
    FeatureSection,
    ModelSection,
    SparsityConfig,
    TrainConfig,
)
from sniper.training.settings import (
    ConfigError,
    laid_over,
    parse,
    plain_text,
    put,
    read,
    refuse_both,
    show,
)
from sniper.training.validation import (
    PathText,
    Settings,
    Text,
    field_at,
    is_text,
    kinds,
    validate,
)
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.model.config import FastSpeech2Config


class Config(Settings):
    """Everything that `python -m sniper.train` needs to know."""

    name: Text = Field("run", description="Of the run.")
    output: PathText = Field("runs/run", description="Folder of the run.")
    sample_text: Text | None = Field(None, description="Spoken at the end of training.")
    init: PathText | None = Field(
        None,
        description="A run whose weights the first epoch starts from (`--init` of the command): "
        "tokens and speakers are found by name, what is new starts fresh.",
    )
    vocoder: PathText | None = Field(
        None,
        description="A HiFi-GAN, file or folder, that speaks the samples; null: Griffin-Lim.",
    )
    # Type checkers do not see the defaults that `Field` takes by position.
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    features: FeatureSection = Field(
        default_factory=dict,
        description="Settings of `FeatureConfig` that differ from its defaults.",
    )
    model: ModelSection = Field(
        default_factory=dict,
        description="Settings of `FastSpeech2Config` that differ from its defaults.",
    )
    sparsity: SparsityConfig = Field(
        default_factory=SparsityConfig  # pyright: ignore[reportArgumentType]
    )
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        self.sparsity_schedule()
        self.feature_config()
        self.fastspeech2_config(vocab_size=2, n_mels=80)
        return self

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
        try:
            return FeatureConfig(**self.features)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"features: {error}") from None

    def fastspeech2_config(
        self, vocab_size: int, n_mels: int, speakers: int = 0
    ) -> FastSpeech2Config:
        """The model's settings for a corpus of so many tokens, mel bins and named speakers."""
        sizes = {"vocab_size": vocab_size, "n_mels": n_mels, "speakers": speakers}
        try:
            return FastSpeech2Config(**sizes, **self.model)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, as a YAML file has them."""
        return copy.deepcopy({n: dict(v) if isinstance(v, Settings) else v for n, v in self})


def load(name_or_path: str, *overrides: Sequence[str]) -> Config:
    """Reads a preset or a YAML file and lays `key=value` overrides over it.

    Args:
        name_or_path: a preset's name, or the path of a YAML file.
        overrides: `settings_of` each is laid over the ones before, as a file over its base.

    Raises:
        ConfigError: a file that is not there, an unknown key (with the nearest known one), a value
            of the wrong type or out of range.
    """
    data = functools.reduce(laid_over, map(settings_of, overrides), read(name_or_path))
    data, renamed = _with_new_names(data)
    for line in renamed:
        _note(line)
    return validate(Config, data)


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """What the `key=value` of a command line say, as a file would.

    Args:
        overrides: dotted keys; values are YAML, so `train.workers=null` and
            `'sparsity.schedule={0: 0.8, 5: 0}'` work. A setting that holds text takes the value as
            it is written.

    Raises:
        ConfigError: one that is none, or two schedules.
    """
    data: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override: expected key=value, got {show(override)}")
        keys = key.split(".")
        way, field = field_at(Config, keys)
        # Text stays as it is written: YAML would turn a voice named no into False, and 1e3 into a
        # number.
        if field is not None and way == keys and is_text(field.annotation):
            put(data, keys, plain_text(text, optional=kinds(field.annotation)[1]))
        else:
            put(data, keys, parse(text, f"override {key}"))
    refuse_both(data, "overrides")
    return data


def from_dict(data: dict[str, Any]) -> Config:
    """Builds a `Config` from plain dictionaries, those of older runs too; raises as `load` does."""
    return validate(Config, _with_new_names(data)[0])


@functools.cache
def _note(line: str) -> None:
    """Says something once, however many configs are loaded."""
    print(f"note: {line}", file=sys.stderr)


def _with_new_names(data: Any) -> tuple[Any, list[str]]:
    """Settings under the names of today, and a line for each that had another."""
    sparsity = data.get("sparsity") if isinstance(data, dict) else None
    if not isinstance(sparsity, dict) or not isinstance(sparsity.get("scale_lr"), bool):
        return data, []
    # The caller's dictionary is not ours to change.
    sparsity = dict(sparsity)
    if not sparsity.pop("scale_lr"):
        sparsity["max_lr_scale"] = None
    line = "sparsity.scale_lr is now sparsity.max_lr_scale, where null is not to scale"
    return {**data, "sparsity": sparsity}, [line]


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


# Settings whose defaults have changed: a run that was begun with the old ones goes on with them.
_CHANGED_DEFAULTS = ("spread", "restore_init", "prime_moments", "max_lr_scale")


def with_defaults_of(config: Config, saved: Config) -> Config:
    """`config` as it was meant when `saved` was begun: what nobody set is as it is there.

    Only settings whose defaults have changed since; all others differ because somebody wanted it.
    """
    own = config.sparsity
    there = {
        name: getattr(saved.sparsity, name)
        for name in _CHANGED_DEFAULTS
        if name not in own.model_fields_set
    }
    return config.model_copy(update={"sparsity": own.model_copy(update=there)})


def differences(before: Config, now: Config, ignore: Iterable[str] = ()) -> list[str]:
    """One line for each setting that differs: `key: there, now`."""
    there, here = flat(before.to_dict()), flat(now.to_dict())
    # Models are given by what differs from the defaults, which may be given, too.
    one, other = (each.fastspeech2_config(vocab_size=2, n_mels=80) for each in (before, now))
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} now"
        for key in sorted({*there, *here} - set(ignore))
        if there.get(key) != here.get(key) and not (one == other and key.startswith("model."))
    ]


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; a schedule is one value.

    Args:
        data: as `Config.to_dict` gives them.
        prefix: of all keys.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        whole = not isinstance(value, dict) or name.startswith("sparsity.schedule")
        found.update({name: value} if whole else flat(value, f"{name}."))
    return found
