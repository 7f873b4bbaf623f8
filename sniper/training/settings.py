# SPDX-License-Identifier: Apache-2.0
"""Settings as text: presets and YAML files, laid over each other, and `key=value` on top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sniper.tts.errors import SpeechError
from sniper.tts.files import refuse_utf16, with_home

PRESETS = Path(__file__).parents[1] / "configs"

# Far beyond any file of settings; without them a small file can fill the memory or the stack.
DEEPEST, LARGEST = 20, 100_000


class ConfigError(ValueError):
    """A setting that cannot be used; the text is the whole message."""


def read(name_or_path: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset or YAML file, laid over those of its `base`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or is based on itself.
    """
    presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    expected = f"config: expected a preset ({presets}) or a file, got {name_or_path!r}"
    # The system's own error for a NUL in a path names neither the setting nor the path.
    if "\0" in name_or_path:
        raise ConfigError(expected)
    name_or_path = with_home(name_or_path)
    path = PRESETS / f"{name_or_path}.yaml"
    try:
        if not path.exists():
            # A base lies beside the file that names it, wherever the command runs.
            path = Path(seen[-1]).parent / name_or_path if seen else Path(name_or_path)
        if not path.is_file():
            raise ConfigError(expected)
        if str(path) in seen:
            raise ConfigError(f"config: {path} is based on itself")
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from None
    data = parse(read_text(path), str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping, got {show(data)}")
    base = data.pop("base", None)
    refuse_both(data, str(path))
    return data if base is None else laid_over(read(str(base), (*seen, str(path))), data)


def read_text(path: Path) -> str:
    """What a file of settings says.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        refuse_utf16(data, path)
        return data.decode("utf-8")
    except SpeechError as error:
        raise ConfigError(f"config: {error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"config: {path} is not UTF-8 (line {line}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from None


def parse(text: str, where: str) -> Any:
    """A YAML value; `where` names its source in the error.

    Raises:
        ConfigError: it is not YAML, a mapping has one key twice, or it is deeper or larger than
            settings are.
    """
    try:
        return _Loader(text).get_single_data()
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None
    # ValueError: a number of more digits than Python converts.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())[:300]}") from None


class _Loader(yaml.SafeLoader):
    """YAML that says one thing once, of a size that settings have.

    `on` and `off` stay text, since a setting may have them as values beside others, and so do dates
    and the octal and sexagesimal numbers of YAML 1.1; `yes` and `no` are true and false, as there.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        line, alias = self.peek_event().start_mark.line + 1, self.check_event(yaml.AliasEvent)
        if self._depth == DEEPEST:
            raise ConfigError(f"line {line}: expected settings at most {DEEPEST} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        assert node is not None  # the event before it said that there is one
        self._depth -= 1
        if not alias:
            # An alias counts as what it stands for: nine lines of aliases of aliases can stand for
            # a billion values.
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        if id(node) not in self._sizes:
            raise ConfigError(f"line {line}: expected settings, got an alias of what it is part of")
        if self._sizes[id(node)] > LARGEST:
            raise ConfigError(f"line {line}: expected at most {LARGEST} values, aliases unfolded")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line, value = key.start_mark.line + 1, self.construct_object(key)
            if value in lines:
                raise ConfigError(
                    f"line {line}: {key.value} is there twice, first in line {lines[value]}; "
                    "write what belongs to it in one place"
                )
            lines[value] = line
        return node


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


# As YAML writes them.
_WORDS = {None: "null", True: "true", False: "false"}


def show(value: Any) -> str:
    """A value in an error's text, however large it is."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


_TAG = "tag:yaml.org,2002:"
# YAML 1.1 has more: 010 is 8, 1:30 is 90, and 2001-01-01 a date. As text they are refused where a
# number belongs, and are what they say where text does.
_NUMBERS = {
    f"{_TAG}int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    f"{_TAG}float": re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, _NUMBERS.get(tag, pattern))
        for tag, pattern in resolvers
        if tag != f"{_TAG}timestamp" and not (tag == f"{_TAG}bool" and first in "oO")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def plain_text(text: str, optional: bool) -> str | None:
    """What `key=TEXT` gives a setting that holds text: TEXT itself, whatever YAML would read.

    Text in quotes is what they hold; `null`, `~` and nothing are None for an `optional` setting.
    """
    text = text.strip()
    if optional and text.lower() in ("", "~", "null"):
        return None
    # Quotes are how a shell user says that a value is text, and not part of it.
    if text[:1] in ("'", '"'):
        try:
            value = _Loader(text).get_single_data()
        except (yaml.YAMLError, ValueError):
            return text
        return value if isinstance(value, str) else text
    return text


def as_override(key: str, value: Any) -> str:
    """`key=value` that gives exactly this value, whatever YAML would read in its text."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).strip()
    return f"{key}={text.removesuffix('...').strip()}"


# Each of these mappings is one value: a new schedule replaces the old one, since merging their
# entries would make a third.
_WHOLE = ("schedule", "schedule_fractions")
# Settings of which one counts in place of the other.
_EITHER = (_WHOLE, ("max_param_sparsity", "spread"), ("max_frames", "max_frames_per_rank"))


def laid_over(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `top` says: section by section, key by key, a schedule whole.

    Where `base` says the same in another way, that is left out: it might count in place of `top`'s.
    """
    merged = dict(base)
    for pair in _EITHER:
        for key, other in (pair, pair[::-1]):
            if top.get(key) is not None and other not in top:
                merged.pop(other, None)
    for key, value in top.items():
        merged[key] = _mixed(merged.get(key), value, key)
    return merged


def _mixed(there: Any, value: Any, key: Any) -> Any:
    mix = isinstance(value, dict) and isinstance(there, dict) and key not in _WHOLE
    return laid_over(there, value) if mix else value


def refuse_both(layer: dict[str, Any], where: str) -> None:
    """Refuses a file or a command line that gives two schedules, of which one would be ignored.

    Raises:
        ConfigError: with `where` that is.
    """
    sparsity = layer.get("sparsity")
    given = [sparsity.get(key) for key in _WHOLE] if isinstance(sparsity, dict) else [None]
    # A run's own config.yaml has all settings: this one is the default beside fractions.
    if None not in given and given[0] != {0: 0}:
        raise ConfigError(
            f"{where}: sparsity: expected schedule or schedule_fractions, got both; remove the one "
            "that is not meant (in a run's config.yaml of an earlier version the fractions counted)"
        )


def put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets `data[keys[0]][keys[1]]...`, a section's settings one by one; raises a ConfigError where
    a value is in the way.
    """
    for key in keys[:-1]:
        below = data.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {'.'.join(keys)}: {key} holds a value, not settings")
        data = below
    data[keys[-1]] = _mixed(data.get(keys[-1]), value, keys[-1])
