"""Dataclasses from JSON, strictly: every value is checked against its field's type, nothing is executed or guessed."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from enum import Enum
from typing import Any, NoReturn, TypeVar

from .messages import did_you_mean

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class UnclearJson(ValueError):
    """JSON that Python would read, though it says two things at once, or holds what is no number."""


def load_json(text: str | bytes) -> Any:
    """`json.loads`, but for a name that stands twice in an object, of which Python takes the last without a word, and
    for NaN and Infinity, which JSON does not have.

    Raises:
        UnclearJson: it holds one of these.
        json.JSONDecodeError: it is no JSON. Both are ValueErrors.

    Example:
        >>> load_json('{"depth": 6, "depth": 9}')
        Traceback (most recent call last):
            ...
        hf_reprot.utils.strict_json.UnclearJson: "depth" stands twice in one object: keep one
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)


def check_json(text: str) -> None:
    """Refuses what `load_json` calls unclear, in text that is JSON; other text is none of its business.

    Raises:
        UnclearJson: see there.
    """
    try:
        load_json(text)
    except UnclearJson:
        raise
    except (ValueError, RecursionError):
        return


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise UnclearJson(f"{json.dumps(name[:60])} stands twice in one object: keep one")
        content[name] = value
    return content


def _no_number(word: str) -> NoReturn:
    raise UnclearJson(f"{word} is no number: it takes finite ones")


def from_mapping(cls: type[T], data: Any, where: str = "") -> T:
    """Builds a dataclass from what `json.loads` gave.

    Args:
        cls: A dataclass whose fields are str, int, float, bool, None, enumerations, lists, dictionaries with string
            keys, unions of these, or such dataclasses.
        data: The mapping.
        where: Path to it, for messages.

    Raises:
        ValueError: a field is missing, unknown (the nearest one is named) or of another type.
    """
    place = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{place} must be a mapping, got {_kind(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ValueError(f"{place} has no field {name!r}.{did_you_mean(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _check(hints[name], data[name], f"{where}.{name}" if where else name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place} lacks the field {name!r}")
    return cls(**values)


def fitting(cls: type[DataclassInstance], data: dict[str, Any]) -> dict[str, Any]:
    """The mapping without what `from_mapping` would refuse: what is written can be read again.

    Args:
        cls: The dataclass that it is a mapping of.
        data: The mapping, as `dataclasses.asdict` gives it.
    """
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        value = _fitted(hints[field.name], data.get(field.name))
        if value is not _MISFIT:
            found[field.name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            found[field.name] = next(empty for empty in _EMPTY if _fitted(hints[field.name], empty) is not _MISFIT)
    return found


_MISFIT = object()
_EMPTY: tuple[Any, ...] = (None, "not known", 0, [], {})


def _fitted(kind: Any, value: Any) -> Any:
    """A value as `_check` takes it, without the parts that it would refuse; `_MISFIT` where nothing is left."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        tries = (_fitted(option, value) for option in arguments)
        return next((tried for tried in tries if tried is not _MISFIT), _MISFIT)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return fitting(kind, value)
    if origin is list and isinstance(value, list | tuple):
        items = [_fitted(arguments[0], item) for item in value]
        return [item for item in items if item is not _MISFIT]
    if origin is dict and isinstance(value, dict):
        named = {str(key): _fitted(arguments[1], item) for key, item in value.items()}
        return {key: item for key, item in named.items() if item is not _MISFIT}
    try:
        _check(kind, value, "")
    except ValueError:
        return _MISFIT
    return value


def _check(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _check_union(arguments, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {_kind(value)}")
        return [_check(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, got {_kind(value)}")
        return {str(key): _check(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            legal = ", ".join(str(member.value) for member in kind)
            raise ValueError(f"{where} must be one of {legal}, got {_kind(value)}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is types.NoneType:
        fits = value is None
    else:  # True is an int to Python, not to a reader of JSON
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {_kind(value)}")
    return value


def _check_union(kinds: tuple, value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not types.NoneType]
    # The exact kind first, so that 1 stays an int where both int and float are legal.
    exact = [kind for kind in rest if type(value) is kind]
    failures = []
    for kind in exact + [kind for kind in rest if kind not in exact]:
        try:
            return _check(kind, value, where)
        except ValueError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    names = ", ".join(str(getattr(kind, "__name__", kind)) for kind in rest)
    raise ValueError(f"{where} must be one of {names}, got {_kind(value)}")


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
