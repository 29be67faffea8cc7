"""Results as JSON and back: dataclasses of numbers, texts, tuples and each other.

JSON has no infinities and no NaN. They are written as the texts "Infinity", "-Infinity" and "NaN", as protobuf's JSON
does: what compares numbers then stumbles, where a null would pass as small.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from dsv3export.config.json_file import shown
from dsv3export.errors import RequestError

T = TypeVar("T")
_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_Reader = Callable[[Any, str], Any]


def to_json(value: object) -> Any:
    """What `json.dumps(..., allow_nan=False)` takes, of a dataclass, a container of them, or a plain value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_json(cls: type[T], value: object, where: str) -> T:
    """A dataclass from what `to_json` made of it.

    Keys that it does not know are left out, so that a newer program's result can be read; one that is missing gets the
    field's default.

    Args:
        where: Names the value in messages.

    Raises:
        RequestError: A key without a default is missing, or a value has another type; the message leads to it.
    """
    made: T = _reader(typing.cast(typing.Hashable, cls))(value, where)
    return made


@cache
def _reader(kind: typing.Hashable) -> _Reader:
    """The function that checks and converts a value of one annotation."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_reader(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple_reader(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _optional_reader(next(each for each in arguments if each is not types.NoneType))
    plain: Mapping[typing.Hashable, _Reader] = {
        float: _read_float, int: _read_int, str: _read_str, bool: _read_bool, Any: _read_any
    }  # fmt: skip
    return plain[kind]


def _dataclass_reader(cls: type) -> _Reader:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        missing = next((name for name in required if name not in value), None)
        if missing is not None:
            raise RequestError(where, expected=f"the key {missing!r}", got="none")
        given = [field.name for field in fields if field.name in value]
        return cls(**{name: _reader(hints[name])(value[name], f"{where}.{name}") for name in given})

    return read


def _tuple_reader(kind: Any) -> _Reader:
    item = _reader(kind)

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise _wrong(where, "an array", value)
        # Thousands of positions of thousands of values: plain ones are checked all at once.
        if kind is float and all(type(each) is float for each in value):
            return tuple(value)
        return tuple(item(each, f"{where}[{place}]") for place, each in enumerate(value))

    return read


def _optional_reader(kind: Any) -> _Reader:
    item = _reader(kind)
    return lambda value, where: None if value is None else item(value, where)


def _read_float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, 'a number, "Infinity", "-Infinity" or "NaN"', value)
    try:
        return float(value)
    except OverflowError:
        raise _wrong(where, "a number that float64 can hold", value) from None


def _read_int(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise _wrong(where, "an integer", value)
    return value


def _read_str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a text", value)
    return value


def _read_bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _read_any(value: Any, where: str) -> Any:
    """A place for a number or a list of numbers: what is not finite comes back as a number."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    return value


def _wrong(where: str, expected: str, value: object) -> RequestError:
    return RequestError(where, expected=expected, got=shown(value))
