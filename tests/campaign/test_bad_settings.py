# SPDX-License-Identifier: Apache-2.0
"""Every setting with every wrong value, made from the settings' own types and limits; YAML files
that are none, or say something twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigning import call, refused, tree
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sniper.training.config import Config, from_dict, load
from sniper.training.settings import ConfigError
from sniper.training.validation import kinds, limits_of, section


def fields(model: type[BaseModel] = Config, way: tuple[str, ...] = ()) -> Iterator[Any]:
    """Dotted name and field of every setting that holds a value."""
    for name, field in model.model_fields.items():
        below = section(field)
        if below is None:
            yield ".".join((*way, name)), field
        else:
            yield from fields(below, (*way, name))


FIELDS: dict[str, FieldInfo] = dict(fields())
JUNK: list[Any] = [{}, {"a": 1}, [None], [[]], "nonsense", b"bytes", -1, math.nan, -math.inf]
JUNK += [10**30, "\0", "\ud800", "", True, 1.5, None, "1", "null", [0.5], {0: "x"}, {"0.5": None}]


def allowed(field: FieldInfo, value: Any) -> bool:
    """Whether a value is one that the setting's own declaration takes, by plain Python."""
    kind, optional = kinds(field.annotation)
    if value is None:
        return optional
    if kind in (int, float):
        if isinstance(value, str) and kind is float:
            try:
                value = float(value)
            except ValueError:
                return False
        number = int if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, number):
            return False
        limits = limits_of(field)
        checks = {"gt": value.__gt__, "ge": value.__ge__, "le": value.__le__, "lt": value.__lt__}
        return math.isfinite(value) and all(checks[k](v) is True for k, v in limits.items())
    if kind is bool:
        return isinstance(value, bool)
    return kind is str and isinstance(value, str)


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_one_sentence(name: str):
    """Taken as it is, or refused by its name with what was expected and what came."""
    for value in JUNK:
        try:
            config = from_dict(nested(name, value))
        except ConfigError as error:
            said = str(error)
            last = name.split(".")[-1]
            assert last in said or name.split(".")[0] in said, (value, said)
            assert re.search(r"expected|unknown|must be|must not|need ", said), (value, said)
            assert len(said) < 2000 and "pydantic" not in said, (value, said)
            continue
        kind, _ = kinds(FIELDS[name].annotation)
        if kind in (int, float, bool):
            looser = name in ("sparsity.prime_moments", "train.grad_clip")  # documented
            assert allowed(FIELDS[name], value) or looser, f"{name} took {value!r}"
        from_dict(config.to_dict())  # what was taken can be written and read again


@pytest.mark.parametrize("name", FIELDS)
def test_a_limit_is_where_it_is_said(name: str):
    field = FIELDS[name]
    kind, _ = kinds(field.annotation)
    if kind not in (int, float):
        beside = name[:-1] + ("x" if name[-1] != "x" else "y")
        with pytest.raises(ConfigError, match="unknown setting .*did you mean"):
            from_dict(nested(beside, 1))
        return
    step = 1 if kind is int else 1e-6
    for limit, value in limits_of(field).items():
        outside = {"gt": value, "ge": value - step, "le": value + step, "lt": value}[limit]
        with pytest.raises(ConfigError) as error:
            from_dict(nested(name, outside if kind is float else int(outside)))
        assert name in str(error.value) and "expected" in str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_file_says_an_override_says_too(name: str, tmp_path: Path):
    """The default, written and read by both ways, is the default."""
    default = from_dict({})
    value: Any = default.to_dict()
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(nested(name, value)), encoding="utf-8")
    by_file = load(str(path))
    by_override = load(str(path), [f"{name}={text.strip().removesuffix('...').strip()}"])
    assert by_override.to_dict() == by_file.to_dict()


FILES: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"   \n\n",
    "a list": b"- 1\n- 2\n",
    "a word": b"hello",
    "a number": b"3",
    "not YAML": b"train: [1, 2\nmodel: }",
    "tabs": b"train:\n\tepochs: 3\n",
    "binary": bytes(range(256)),
    "NUL": b"name: a\0b\n",
    "UTF-16": "name: täst\n".encode("utf-16"),
    "latin-1": "name: täst\n".encode("latin-1"),
    "a section twice": b"train: {epochs: 1}\nmodel: {}\ntrain: {lr: 1.0}\n",
    "a key twice": b"train: {epochs: 1, epochs: 2}\n",
    "deep": b"[" * 20_000,
    "deep mappings": b"{a: " * 5_000,
    "an endless alias": b"a: &a [*a]\ntrain: *a\n",
    "a bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n".encode()
        for i in range(8)
    ),
    "a python tag": b"train: !!python/object/apply:os.system ['echo gone']\n",
    "an unknown tag": b"train: !wanted {epochs: 1}\n",
    "a huge integer": b"train: {epochs: " + b"9" * 5000 + b"}\n",
    "a date": b"train: {epochs: 2026-01-01}\n",
    "two documents": b"train: {epochs: 1}\n---\ntrain: {epochs: 2}\n",
    "an unknown section": b"trian: {epochs: 1}\n",
    "a base that is itself": b"base: SELF\n",
    "an unknown base": b"base: nowhere\n",
    "a base of another type": b"base: [demo]\n",
    "numbers as keys": b"1: 2\n",
    "null as a key": b"null: 2\n",
    "a section that is null": b"train:\nmodel:\n",
    "a schedule that rises": b"sparsity: {schedule: {0: 0.1, 1: 0.9}}\n",
    "a schedule that begins late": b"sparsity: {schedule: {3: 0.5}}\n",
    "a schedule of text": b"sparsity: {schedule: {0: most}}\n",
    "a schedule above 1": b"sparsity: {schedule: {0: 80}}\n",
    "an epoch that is NaN": b"sparsity: {schedule: {0: 0.5, .nan: 0}}\n",
    "an epoch twice": b"sparsity: {schedule: {0: 0.5, '0': 0.4}}\n",
    "a switch in words": b"model: {encoder_pre_norm: perhaps}\n",
}
# What a file may leave out: nothing, or sections without settings.
HARMLESS = ("empty", "spaces", "a section that is null")


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_config(case: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(FILES[case].replace(b"SELF", str(path).encode()))
    before = tree(tmp_path)
    if case in HARMLESS:
        try:
            assert load(str(path)).to_dict() == from_dict({}).to_dict()
        except ConfigError as error:
            assert "mine.yaml" in str(error) or "expected" in str(error)
        return
    said = refused(call("train", "--config", path, f"output={tmp_path / 'run'}"), statuses=(2,))
    assert len(said) < 3000
    assert tree(tmp_path) == before
    compared = call("compare", "--config", path, "--output", tmp_path / "out")
    refused(compared, "mine.yaml", statuses=(2,))


OVERRIDES = ("", "=", "train", "train=", "=3", "train.epochs", "train.epochs=", "train.epochs=[")
OVERRIDES += ("train..epochs=1", ".train.epochs=1", "train.epochs.more=1", "train.epochs=1e3x")
OVERRIDES += ("train.epochs={a: 1}", "train=3", "train.epochs=\0", "name=\ud800", "output=")
OVERRIDES += ("data.root=a\0b", "train.lr=.nan", "train.lr=-.inf", "train.epochs=&a [*a]")
OVERRIDES += ("sparsity.schedule=0.5", "sparsity.schedule={0: .nan}", "model.d_model=7")
OVERRIDES += ("features.hop_length=0", "features.f_max=1e9", "features.sample_rate=1", "x=" * 999)


@pytest.mark.parametrize("override", OVERRIDES, ids=[str(i) for i in range(len(OVERRIDES))])
def test_an_override_that_is_none(override: str, tmp_path: Path):
    done = call("train", f"output={tmp_path / 'run'}", override)
    said = refused(done, statuses=(2,))
    assert len(said) < 2500 and not (tmp_path / "run").exists()
