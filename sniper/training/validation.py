# SPDX-License-Identifier: Apache-2.0
"""Settings with types and limits, checked by pydantic and refused in one line a fault."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo

from sniper.training.settings import ConfigError, show
from sniper.tts.files import with_home


class Settings(BaseModel):
    """A section of settings: its fields are the keys, and nothing is guessed from another type."""

    # Strict, or pydantic takes "3" for 3 and 1 for true, and a typing error trains something else.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _switch(value: Any) -> Any:
    # The reader of YAML leaves these as text.
    return {"on": True, "off": False}.get(value.lower(), value) if type(value) is str else value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    return value


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected text that UTF-8 can hold, got {value!r}") from None
    return value


def _path(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError(f"expected a path, got {value!r}")
    return _encodable(with_home(value))


Switch = Annotated[bool, BeforeValidator(_switch)]
Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, AfterValidator(_encodable)]
PathText = Annotated[str, AfterValidator(_path)]


def sizes_of(cls: type, limit: int, leave_out: Iterable[str] = ()) -> type[Settings]:
    """What a file may say about a dataclass: any of its fields, of their types.

    Args:
        cls: a dataclass; those among its fields become sections of their own.
        limit: the most that a whole number in it may be.
        leave_out: fields that no file sets.
    """
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {
        field.name: (_loose(hints[field.name], limit), None)
        for field in dataclasses.fields(cls)
        if field.name not in leave_out
    }
    return create_model(cls.__name__, __base__=Settings, __doc__=cls.__doc__, **fields)


def _loose(kind: Any, limit: int) -> Any:
    """The type in which a file may hold what `kind` says."""
    if dataclasses.is_dataclass(kind):
        return sizes_of(typing.cast(type, kind), limit)
    if typing.get_origin(kind) in (typing.Union, UnionType):
        first, *others = (_loose(k, limit) for k in typing.get_args(kind) if k is not type(None))
        assert not others, f"expected a type or None, got {kind}"
        return first | None
    if typing.get_origin(kind) is tuple:
        return Annotated[kind, Strict(False)]  # YAML has lists only
    number = Annotated[int, Field(le=limit)]
    return {bool: Switch, float: Number, int: number, str: Text}.get(kind, kind)


_S = TypeVar("_S", bound=Settings)


def validate(cls: type[_S], data: Any, where: str = "") -> _S:
    """Settings from plain dictionaries.

    Raises:
        ConfigError: a line for each unknown key (with the nearest known one) and for each value of
            another type or out of range.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'config'}: expected a mapping, got {show(data)}")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        faults = [_fault(cls, dict(one), where) for one in error.errors(include_url=False)]
    # Several of pydantic's errors may become the same line of ours.
    raise ConfigError("\n".join(dict.fromkeys(faults)))


def field_at(cls: type[BaseModel], keys: Iterable[Any]) -> tuple[list[str], FieldInfo | None]:
    """The field that dotted keys lead to, and how far they lead; None: to no field."""
    found, way = None, []
    model: type[BaseModel] | None = cls
    for key in keys:
        if model is None or key not in model.model_fields:
            break
        way.append(key)
        found = model.model_fields[key]
        model = section(found)
    return way, found


def section(field: FieldInfo) -> type[BaseModel] | None:
    """The settings that a field holds, where it is a section."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def kinds(annotation: Any) -> tuple[Any, bool]:
    """The type behind an annotation, and whether None is allowed."""
    if typing.get_origin(annotation) is Annotated:
        return kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        (kind,) = (k for k in typing.get_args(annotation) if k is not type(None))
        return kinds(kind)[0], True
    return annotation, False


def limits_of(field: FieldInfo) -> dict[str, Any]:
    """The least and the most that a number may be, as pydantic calls them: gt, ge, le, lt."""
    return {key: getattr(m, key) for m in field.metadata for key in _LIMITS if hasattr(m, key)}


def is_text(annotation: Any) -> bool:
    """Whether a setting's values are text, or some words of it."""
    kind, _ = kinds(annotation)
    if typing.get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in typing.get_args(kind))
    return kind is str


# In the words of docs/settings.md: who writes YAML need not know Python's.
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
_LIMITS = {"gt": "a number above", "ge": "at least", "le": "at most", "lt": "a number below"}


def _fault(cls: type[BaseModel], error: dict[str, Any], where: str) -> str:
    """One of pydantic's errors in our words."""
    way, field = field_at(cls, error["loc"])
    name = ".".join(filter(None, [where, *way]))
    kind, context = error["type"], error.get("ctx", {})
    # pydantic names the key alone; a typing error wants the setting that was meant.
    if kind in ("extra_forbidden", "invalid_key"):
        model = (section(field) if field else None) or cls
        return unknown(error["loc"][len(way)], model.model_fields, name)
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"])
    expected = _TYPES.get(kind)
    limits = {key: context[key] for key in _LIMITS if key in context}
    if kind == "finite_number" and field is not None:
        limits = limits_of(field)
    if limits:
        key, limit = next(iter(limits.items()))
        expected = f"{_LIMITS[key]} {int(limit) if limit == int(limit) else limit}"
    elif kind == "literal_error" and field is not None:
        expected = f"one of {', '.join(typing.get_args(kinds(field.annotation)[0]))}"
    elif kind in ("missing", "too_long", "too_short") and field is not None:
        expected = f"a list of {len(typing.get_args(kinds(field.annotation)[0]))}"
    return f"{name}: expected {expected or error['msg']}, got {show(error['input'])}"


def unknown(key: Any, known: Iterable[str], where: str) -> str:
    """That a key is not known, with the nearest one that is."""
    prefix = f"{where}." if where else ""
    names = sorted(f"{prefix}{name}" for name in known)
    near = difflib.get_close_matches(f"{prefix}{key}", names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    shown = show(key)
    shown = shown[1:-1] if isinstance(key, str) and len(shown) == len(key) + 2 else shown
    return f"config: unknown setting {prefix}{shown}: {hint}"
