# SPDX-License-Identifier: Apache-2.0
"""Settings from files: YAML over YAML, and plain dictionaries into typed dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import yaml

PRESETS = Path(__file__).parents[1] / "configs"


class ConfigError(ValueError):
    """A setting that cannot be used; the text is the whole message."""


def read(name_or_path: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset or YAML file, laid over those of its `base`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or is based on itself.
    """
    path = PRESETS / f"{name_or_path}.yaml"
    if not path.exists():
        # A base lies beside the file that names it, wherever the command runs.
        path = Path(seen[-1]).parent / name_or_path if seen else Path(name_or_path)
    if not path.is_file():
        presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise ConfigError(f"config: expected a preset ({presets}) or a file, got {name_or_path!r}")
    if str(path) in seen:
        raise ConfigError(f"config: {path} is based on itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from None
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(data).__name__}")
    base = data.pop("base", None)
    return data if base is None else _merge(read(str(base), (*seen, str(path))), data)


def parse(text: str, where: str) -> Any:
    """A YAML value; `where` names its source in the error."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


# Mappings that are one value: a new schedule replaces the old one, entry by entry it would mix.
_WHOLE = ("schedule", "schedule_fractions")


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        mix = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in _WHOLE
        merged[key] = _merge(merged[key], value) if mix else value
    return merged


def put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets `data[keys[0]][keys[1]]...`; raises a ConfigError where a value is in the way."""
    for key in keys[:-1]:
        below = data.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {'.'.join(keys)}: {key} holds a value, not settings")
        data = below
    data[keys[-1]] = value


def build(cls: type, data: Any, where: str = "") -> Any:
    """A dataclass from plain dictionaries.

    Raises:
        ConfigError: an unknown key (with the nearest known one), or a value of another type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected a mapping, got {data!r}")
    types = typing.get_type_hints(cls)
    check_keys(data, types, where)
    prefix = f"{where}." if where else ""
    return cls(**{k: _convert(types[k], v, f"{prefix}{k}") for k, v in data.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError that names expected and got."""
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        if value is None and type(None) in args:
            return None
        *others, last = (a for a in args if a is not type(None))
        for other in others:
            with contextlib.suppress(ConfigError):
                return _convert(other, value, where)
        return _convert(last, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}: expected one of {', '.join(map(str, args))}, got {value!r}")
    if origin is list and isinstance(value, list):
        return [_convert(args[0], v, where) for v in value]
    if origin is dict and isinstance(value, dict):
        key, item = args
        if item is Any:
            return value
        return {_key(key, k, where): _convert(item, v, where) for k, v in value.items()}
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    # Python's True is an int too.
    if origin is None and isinstance(value, kind) and (kind is bool or value is not bool(value)):
        return value
    expected = getattr(origin or kind, "__name__", str(kind))
    raise ConfigError(f"{where}: expected {expected}, got {value!r}")


def _key(kind: type, key: Any, where: str) -> Any:
    """A mapping's key; JSON has turned numbers into text."""
    if isinstance(key, str) and kind in (int, float):
        try:
            return kind(key)
        except ValueError:
            pass
    return _convert(kind, key, where)


def check_keys(data: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Refuses keys that are not known, with the nearest one that is."""
    prefix = f"{where}." if where else ""
    for key in data:
        if key in known:
            continue
        names = sorted(f"{prefix}{name}" for name in known)
        near = difflib.get_close_matches(f"{prefix}{key}", names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
        raise ConfigError(f"config: unknown setting {prefix}{key}: {hint}")
