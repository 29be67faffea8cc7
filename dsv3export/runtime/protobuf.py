"""The protobuf wire format, as far as ONNX files need it to be read without the onnx package.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedMessageError(ValueError):
    """The bytes are no protobuf message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; a value is an integer or the bytes of a string or message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(message, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise MalformedMessageError(f"wire type {kind} at byte {position}")
        if position + size > len(message):
            raise MalformedMessageError(f"a field of {size} bytes at byte {position} of {len(message)}")
        yield key >> 3, message[position : position + size]
        position += size


def messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of one field, which are messages or strings."""
    for field, value in fields(message):
        if field == wanted and not isinstance(value, int):
            yield value


def varints(packed: memoryview) -> list[int]:
    """Numbers one behind the other."""
    numbers, position = [], 0
    while position < len(packed):
        number, position = _varint(packed, position)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The base-128 number at `position` and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise MalformedMessageError(f"a number that does not end before byte {position}")
