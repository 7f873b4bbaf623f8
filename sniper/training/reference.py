# SPDX-License-Identifier: Apache-2.0
"""The settings reference, from the settings themselves.

python -m sniper.training.reference > docs/settings.md
"""

from __future__ import annotations

import inspect
import json
import typing
from fnmatch import fnmatch
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sniper.training.config import Config
from sniper.training.run import FREE
from sniper.training.settings import PRESETS
from sniper.training.validation import kinds, limits_of, section
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.model.config import FastSpeech2Config
from sniper.tts.model.variance import PredictorConfig

_HEAD = """\
<!-- Written by `python -m sniper.training.reference > docs/settings.md`; edit the code instead. -->

# Settings

A run's settings are a YAML file or a preset ({presets}), with overrides on top:

    python -m sniper.train --config ljspeech-sniper data.root=/data/LJSpeech-1.1 train.epochs=100
    python -m sniper.train --config my.yaml 'sparsity.schedule={{0: 0.8, 5: 0.4, 10: 0}}'

In a file, `base: NAME` starts from a preset or from another file beside it; sections are laid over
each other key by key, a schedule is replaced whole. On the command line keys are dotted and values
are YAML; a setting that holds text takes the value as it is written, and a section such as
`'train={{epochs: 3, lr: 0.5}}'` is laid over as a file's. Where one setting counts in place of
another (`schedule_fractions` of `schedule`, `spread` of `max_param_sparsity`, `max_frames_per_rank`
of `max_frames`), what a file or the command line gives replaces both of its base's: a schedule
given on the command line counts, whatever the preset has. Anything unknown, of another type or out
of range is refused by name, and so are a key that a file says twice and two schedules in one file
or on one command line. The resolved settings of a run lie in its folder as `config.yaml`, which is
a config itself.

A run goes on with the settings that it was begun with. These may change:
{free}.
"""
# The dataclasses behind sections that a file sets in part.
_DATACLASSES = {"features": FeatureConfig, "model": FastSpeech2Config}
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def render() -> str:
    """All settings as Markdown: a table a section, with types, limits, defaults and meaning."""
    presets = ", ".join(f"`{name}`" for name in sorted(p.stem for p in PRESETS.glob("*.yaml")))
    free = ", ".join(f"`{name}`" for name in sorted(FREE))
    parts = [_HEAD.format(presets=presets, free=free)]
    own = {n: f for n, f in Config.model_fields.items() if section(f) is None}
    parts.append("## The run\n\n" + _table(own))
    for name, field in Config.model_fields.items():
        model = section(field)
        if model is None:
            continue
        parts.append(f"## {name}\n\n{_intro(name, model, field)}\n\n{_table_of(name, model)}")
        if name == "model":
            parts.append(
                "Each of the three predictors is a mapping of what differs from its defaults, and "
                "from these:\n\n" + _dataclass_table(PredictorConfig)
            )
    return "\n".join(parts)


def _intro(name: str, model: type[BaseModel], field: FieldInfo) -> str:
    text = inspect.getdoc(model) or ""
    if name in _DATACLASSES:
        return f"{text.splitlines()[0]} {field.description}"
    return " ".join(text.split())


def _table_of(name: str, model: type[BaseModel]) -> str:
    if name not in _DATACLASSES:
        return _table(model.model_fields)
    return _dataclass_table(_DATACLASSES[name], model)


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = []
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append((name, _type(field), default, field.description or ""))
    return _rows(rows)


def _dataclass_table(cls: type, model: type[BaseModel] | None = None) -> str:
    rows, hints, meaning = [], typing.get_type_hints(cls), _args(inspect.getdoc(cls) or "")
    for name, field in cls.__dataclass_fields__.items():
        if model is not None and name not in model.model_fields:
            continue
        default = field.default
        if isinstance(default, PredictorConfig):
            # The three predictors differ from PredictorConfig in a few values each; all values
            # three times would hide these.
            differ = {
                key: value
                for key, value in vars(default).items()
                if value != getattr(PredictorConfig(), key)
            }
            rows.append((name, "mapping", differ, meaning.get(name, "")))
        else:
            # The longest pattern says most about it.
            keys = sorted((key for key in meaning if fnmatch(name, key)), key=len)
            rows.append((name, _kind(hints[name]), default, meaning[keys[-1]] if keys else ""))
    return _rows(rows)


def _rows(rows: list[tuple[str, str, Any, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        text = " ".join(meaning.split()).replace("|", "\\|")
        text = text[:1].upper() + text[1:]
        lines.append(f"| `{name}` | {kind} | `{_yaml(default)}` | {text} |")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """A default as a file would say it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _type(field: FieldInfo) -> str:
    """Type and limits in words."""
    limits, words = limits_of(field), []
    for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        # A limit that is there for the machine's sake tells a reader nothing.
        if key in limits and abs(limits[key]) < 1_000_000_000:
            words.append(f"{sign} {limits[key]}")
    return _kind(field.annotation, " " + ", ".join(words) if words else "")


def _kind(annotation: Any, limits: str = "") -> str:
    kind, optional = kinds(annotation)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        text = ", ".join(f"`{word}`" for word in args)
    elif origin is dict:
        text = f"mapping of {_kind(args[0])} to {_kind(args[1])}"
    elif origin in (list, tuple):
        text = f"list of {_kind(args[0])}"
    else:
        text = _WORDS.get(kind, "mapping") + limits
    return f"{text}, or null" if optional else text


def _args(docstring: str) -> dict[str, str]:
    """What the `Args` of a docstring say, by name; names may be patterns."""
    meaning: dict[str, str] = {}
    names: list[str] = []
    _, _, rest = docstring.partition("Args:\n")
    for line in rest.splitlines():
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            before, _, text = line.strip().partition(": ")
            names = [name.strip() for name in before.split(",")]
            meaning.update(dict.fromkeys(names, text))
        else:
            meaning.update({name: f"{meaning[name]} {line.strip()}" for name in names})
    return meaning


if __name__ == "__main__":
    print(render(), end="")
