# SPDX-License-Identifier: Apache-2.0
"""Files over files, and values of the annotated types or one clear error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from sniper.training.settings import ConfigError, build, check_keys, parse, put, read


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float | None = None
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)
    at: dict[int, float] = field(default_factory=dict)


def test_plain_values_become_the_annotated_types():
    data = {
        "inner": {"size": 3, "rate": "1e-3", "mode": "slow"},
        "names": ["a", "b"],
        "at": {"5": 1, 7: 0.5},  # JSON has turned a number into text
    }
    built = build(Outer, data)
    assert built == Outer(Inner(3, 0.001, "slow"), ["a", "b"], {5: 1.0, 7: 0.5})
    assert type(built.at[5]) is float
    assert build(Outer, {"inner": {"rate": None}}) == build(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "config: expected a mapping, got []"),
        ({"inner": 3}, "inner: expected a mapping, got 3"),
        ({"inner": {"size": 1.5}}, "inner.size: expected int, got 1.5"),
        ({"inner": {"size": True}}, "inner.size: expected int, got True"),
        ({"inner": {"mode": "idle"}}, "inner.mode: expected one of fast, slow, got 'idle'"),
        ({"inner": {"sise": 1}}, "unknown setting inner.sise: did you mean inner.size?"),
        ({"names": "a"}, "names: expected list, got 'a'"),
        ({"names": [1]}, "names: expected str, got 1"),
        ({"at": {"x": 1}}, "at: expected int, got 'x'"),
    ],
)
def test_other_values_are_named(data: object, said: str):
    with pytest.raises(ConfigError) as error:
        build(Outer, data)
    assert said in str(error.value)


def test_put_makes_the_way_but_replaces_no_value():
    data: dict = {"a": {"b": 1}}
    put(data, ["a", "c"], 2)
    put(data, ["d", "e", "f"], 3)
    assert data == {"a": {"b": 1, "c": 2}, "d": {"e": {"f": 3}}}
    with pytest.raises(ConfigError, match="override a.b.x: b holds a value, not settings"):
        put(data, ["a", "b", "x"], 4)


def test_keys_and_text_that_are_wrong():
    check_keys({"one": 1}, ["one", "two"], "")
    with pytest.raises(
        ConfigError, match=r"unknown setting part\.12345: known are part\.one, part\.two"
    ):
        check_keys({"12345": 1}, ["one", "two"], "part")
    assert parse("{0: 0.5}", "here") == {0: 0.5}
    with pytest.raises(ConfigError, match="^here: not YAML"):
        parse("[", "here")


def test_a_file_lies_over_its_base_and_a_schedule_is_replaced_whole(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: 2}\nschedule: {0: 0.5, 3: 0}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\na: {y: 3}\nschedule: {0: 0.2}\n")
    assert read(str(tmp_path / "top.yaml")) == {"a": {"x": 1, "y": 3}, "schedule": {0: 0.2}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"base: circle.yaml\n", "is based on itself"),
        (b"base: nowhere\n", "expected a preset (demo, ljspeech-dense,"),
        (b"base: 3\n", "expected a preset"),
        (b"", "expected a mapping, got NoneType"),
        (b"- a\n- b\n", "expected a mapping, got list"),
        (b"name: [\n", "not YAML"),
        (b"name: \xff\xfe\n", "cannot be read"),
    ],
)
def test_bad_files(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "circle.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_that_is_not_there(tmp_path: Path):
    for name in ("nowhere", str(tmp_path), ""):
        with pytest.raises(ConfigError, match="expected a preset .*or a file, got"):
            read(name)
