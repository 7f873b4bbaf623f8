# SPDX-License-Identifier: Apache-2.0
"""Values of the annotated types, or one line a fault that says expected and got."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field

from sniper.training.settings import ConfigError
from sniper.training.validation import (
    Number,
    PathText,
    Settings,
    Switch,
    Text,
    field_at,
    is_text,
    show,
    sizes_of,
    validate,
)


class Inner(Settings):
    size: int = Field(1, ge=0, le=100)
    rate: Number | None = Field(None, gt=0)
    mode: Literal["fast", "slow"] = "fast"
    loud: Switch = False


class Outer(Settings):
    inner: Inner = Inner()
    names: list[Text] = Field(default_factory=list)
    at: dict[int, Number] = Field(default_factory=dict)
    folder: PathText | None = None


def test_plain_values_become_the_annotated_types():
    data = {
        "inner": {"size": 3, "rate": "1e-3", "mode": "slow", "loud": "on"},
        "names": ["a", "b"],
        "at": {5: 1, 7: 0.5},
    }
    built = validate(Outer, data)
    inner = Inner(size=3, rate=0.001, mode="slow", loud=True)
    assert built == Outer(inner=inner, names=["a", "b"], at={5: 1.0, 7: 0.5})
    assert type(built.at[5]) is float
    assert validate(Outer, {"inner": {"rate": None}}) == validate(Outer, {}) == Outer()
    with pytest.raises(ValueError, match="frozen"):
        built.names = []


_HUGE = int("0x" + "f" * 10_000, 16)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "config: expected a mapping, got []"),
        ({"inner": 3}, "inner: expected a mapping, got 3"),
        ({"inner": None}, "inner: expected a mapping, got null"),
        ({"inner": {"size": 1.5}}, "inner.size: expected a whole number, got 1.5"),
        ({"inner": {"size": 3.0}}, "inner.size: expected a whole number, got 3.0"),
        ({"inner": {"size": "3"}}, "inner.size: expected a whole number, got '3'"),
        ({"inner": {"size": True}}, "inner.size: expected a whole number, got true"),
        ({"inner": {"size": 101}}, "inner.size: expected at most 100, got 101"),
        ({"inner": {"size": -1}}, "inner.size: expected at least 0, got -1"),
        (
            {"inner": {"size": _HUGE}},
            "inner.size: expected at most 100, got a number of thousands of digits",
        ),
        ({"inner": {"rate": 0}}, "inner.rate: expected a number above 0, got 0"),
        ({"inner": {"rate": float("nan")}}, "inner.rate: expected a number above 0, got nan"),
        ({"inner": {"rate": 10**400}}, "inner.rate: expected a number, got 1000000000"),
        ({"inner": {"rate": True}}, "inner.rate: expected a number, got true"),
        ({"inner": {"mode": "idle"}}, "inner.mode: expected one of fast, slow, got 'idle'"),
        ({"inner": {"loud": "no"}}, "inner.loud: expected true or false, got 'no'"),
        ({"inner": {"loud": 0}}, "inner.loud: expected true or false, got 0"),
        (
            {"inner": {"sise": 1}},
            "config: unknown setting inner.sise: did you mean inner.size?",
        ),
        (
            {"inner": {7: 1}},
            "config: unknown setting inner.7: did you mean inner.size?",
        ),
        ({"names": "a"}, "names: expected a list, got 'a'"),
        ({"names": [1]}, "names: expected text, got 1"),
        ({"at": {"x": 1}}, "at: expected a whole number, got 'x'"),
        ({"at": {1: "x"}}, "at: expected a number, got 'x'"),
        ({"at": {1: float("inf")}}, "at: expected a finite number, got inf"),
        ({"folder": "a\0b"}, "folder: expected a path, got 'a\\x00b'"),
        ({"folder": ""}, "folder: expected a path, got ''"),
        ({"folder": "a\udce4"}, "folder: expected text that UTF-8 can hold, got 'a\\udce4'"),
    ],
)
def test_other_values_are_named(data: object, said: str):
    with pytest.raises(ConfigError) as error:
        validate(Outer, data)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_each_fault_has_its_line():
    with pytest.raises(ConfigError) as error:
        validate(Outer, {"inner": {"size": 1.5, "mode": "idle"}, "name": []})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "inner.size",
        "inner.mode",
        "config",
    ]


def test_long_values_are_shortened():
    assert show("x" * 50) == repr("x" * 50)
    assert show("x" * 1000).endswith("... (1002 characters)") and len(show("x" * 1000)) < 150


@dataclass(frozen=True)
class Part:
    channels: int = 8
    rate: float = 0.5


@dataclass(frozen=True)
class Whole:
    total: int
    part: Part = dataclasses.field(default_factory=Part)
    sizes: tuple[int, int] = (3, 3)
    deep: bool = True
    width: int | None = None
    word: Literal["10", "e"] = "10"


def test_what_a_file_may_say_about_a_dataclass():
    given = sizes_of(Whole, 100, leave_out=("total",))

    def dumped(data: dict) -> dict:
        return validate(given, data, "whole").model_dump(mode="json", exclude_unset=True)

    assert dumped({}) == {}
    said = {"part": {"rate": 1}, "sizes": [1, 5], "deep": "off", "width": None, "word": "e"}
    assert dumped(said) == {**said, "part": {"rate": 1.0}, "deep": False}
    for data, line in (
        ({"total": 3}, "unknown setting whole.total"),
        ({"part": 3}, "whole.part: expected a mapping, got 3"),
        ({"part": {"channels": "8"}}, "whole.part.channels: expected a whole number, got '8'"),
        ({"part": {"channels": 101}}, "whole.part.channels: expected at most 100, got 101"),
        ({"sizes": [1]}, "whole.sizes: expected a list of 2, got [1]"),
        ({"sizes": [1, 2, 3]}, "whole.sizes: expected a list of 2, got [1, 2, 3]"),
        ({"sizes": 3}, "whole.sizes: expected a list, got 3"),
        ({"deep": "no"}, "whole.deep: expected true or false, got 'no'"),
        ({"deep": None}, "whole.deep: expected true or false, got null"),
        ({"word": 10}, "whole.word: expected one of 10, e, got 10"),
    ):
        with pytest.raises(ConfigError) as error:
            dumped(data)
        assert line in str(error.value) and "\n" not in str(error.value)


def test_fields_are_found_by_their_keys():
    assert field_at(Outer, ["inner", "mode"])[0] == ["inner", "mode"]
    assert field_at(Outer, ["inner", "none"])[0] == ["inner"]
    assert field_at(Outer, ["names", "x"])[0] == ["names"]
    texts = {
        (first, *rest)
        for first, model in (("", Outer), ("inner", Inner))
        for rest in ((name,) for name in model.model_fields)
        if is_text(field_at(model, rest)[1].annotation)
    }
    assert texts == {("", "folder"), ("inner", "mode")}
    assert is_text(Annotated[Literal["a"], 1] | None) and not is_text(Literal["a", 1])
