# SPDX-License-Identifier: Apache-2.0
"""Files over files, overrides on top, and YAML that says one thing once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sniper.training.config import settings_of
from sniper.training.settings import ConfigError, as_override, parse, plain_text, put, read


def test_put_makes_the_way_but_replaces_no_value():
    data: dict = {"a": {"b": 1}}
    put(data, ["a", "c"], 2)
    put(data, ["d", "e", "f"], 3)
    assert data == {"a": {"b": 1, "c": 2}, "d": {"e": {"f": 3}}}
    with pytest.raises(ConfigError, match="override a.b.x: b holds a value, not settings"):
        put(data, ["a", "b", "x"], 4)


def test_what_yaml_says():
    assert parse("{0: 0.5, a: [yes, on, Off, 'no']}", "here") == {
        0: 0.5,
        "a": [True, "on", "Off", "no"],
    }
    assert parse("", "here") is None
    merged = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, x: 4}\n"
    assert parse(merged, "here")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),
        ("-0123", "-0123"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2001-01-01", "2001-01-01"),
        ("2001-13-45", "2001-13-45"),
        ("2001-01-01 10:00:00", "2001-01-01 10:00:00"),
        ("{010: 1:30}", {"010": "1:30"}),
        ("0", 0),
        ("-10", -10),
        ("1_000", 1000),
        ("0x10", 16),
        ("0b11", 3),
        ("01.5", 1.5),
        ("-1.5e-3", -0.0015),
        (".5", 0.5),
        ("-.inf", float("-inf")),
    ],
)
def test_a_number_is_what_it_looks_like(text: str, value: object):
    """YAML 1.1 has 8 for 010, 90 for 1:30, and dates."""
    found = parse(text, "here")
    assert found == value and type(found) is type(value)


_WIDE = "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 30)}]\n" for m, n in ("ab", "bc", "cd", "de"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "f.yaml: not YAML"),
        ("train: {}\nmodel: {}\ntrain:\n  lr: 3", "f.yaml, line 3: train is there twice"),
        ("{0: 0.5, 0.0: 0.2}", "f.yaml, line 1: 0.0 is there twice, first in line 1"),
        ("a:\n  b: {x: 1,\n    x: 2}", "f.yaml, line 3: x is there twice, first in line 2"),
        ("[" * 100_000, "f.yaml, line 1: expected settings at most 20 levels deep"),
        ("a: &a [1, *a]", "f.yaml, line 1: expected settings, got an alias of what it is part of"),
        (f"a: &a [1]\n{_WIDE}", "f.yaml, line 5: expected at most 100000 values"),
        ("9" * 5000, "f.yaml: not YAML: Exceeds the limit"),
        ("a: \0", "f.yaml: not YAML: unacceptable character"),
        ("!!python/object:os.system x", "f.yaml: not YAML: could not determine a constructor"),
        ("{[1]: 2}", "f.yaml: not YAML: while constructing a mapping"),
        ("--- 1\n--- 2", "f.yaml: not YAML: expected a single document"),
    ],
)
def test_yaml_that_is_none_or_too_much(text: str, said: str):
    with pytest.raises(ConfigError) as error:
        parse(text, "f.yaml")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{HH AH0}", "{HH AH0}"),
        ("123", "123"),
        (" on ", "on"),
        ("[1", "[1"),
        ("a #b: c", "a #b: c"),
        ("'{0: 1}'", "{0: 1}"),
        ('"a\\tb"', "a\tb"),
        ("'tis", "'tis"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'null'", "null"),
    ],
)
def test_text_is_taken_as_it_is_written(text: str, value: str | None):
    assert plain_text(text, optional=True) == value
    if value is None:
        assert plain_text(text, optional=False) == text


@pytest.mark.parametrize("value", ["", " ", "~", "null", " a ", "'a'", '"b"', "a: b #c", "a\nb"])
def test_an_override_gives_the_very_value(value: str):
    assert settings_of([as_override("init", value)]) == {"init": value}


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No shell has read `--config=~/a.yaml`, nor a base."""
    (tmp_path / "a.yaml").write_text("base: ~/b.yaml\n")
    (tmp_path / "b.yaml").write_text("name: there\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/a.yaml") == {"name": "there"}


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
        (b"", "expected a mapping, got null"),
        (b"- a\n- b\n", "expected a mapping, got ['a', 'b']"),
        (b"name: [\n", "not YAML"),
        (b"name: a\nname: \xff\xfe\n", "circle.yaml is not UTF-8 (line 2): save it as UTF-8"),
        ("name: a\n".encode("utf-16"), "circle.yaml is UTF-16, "),
        (b"base: demo\nbase: demo\n", "circle.yaml, line 2: base is there twice"),
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
    for name in ("nowhere", str(tmp_path), "", "a\0b"):
        with pytest.raises(ConfigError, match="expected a preset .*or a file, got"):
            read(name)
