from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3export.engine.typed_json import JsonValue, parse_json, read_json
from dsv3export.errors import EngineError


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (lambda v: v.fields("a", "b"), {"a": 1}, "f: expected the key 'b', got none"),
        (lambda v: v.fields("a"), {"a": 1, "c": 2}, "f: expected only the keys a, got 'c'"),
        (lambda v: v.mapping(), [1], r"f: expected an object, got \[1\]"),
        (lambda v: v.array(), {}, "f: expected an array, got {}"),
        (lambda v: v.text(), 3, "f: expected a string, got 3"),
        (lambda v: v.choice("x", "y"), "z", "f: expected 'x' or 'y', got \"z\""),
        (lambda v: v.integer(), True, "f: expected an integer from 0 to 9223372036854775807, got true"),
        (lambda v: v.integer(), 1.0, "got 1.0"),
        (lambda v: v.integer(), "1", 'got "1"'),
        (lambda v: v.integer(), -1, "got -1"),
        (lambda v: v.integer(), 2**63, "got 9223372036854775808"),
        (lambda v: v.integer(minimum=1), 0, "from 1 to"),
        (lambda v: v.integers(), 3, "f: expected an array, got 3"),
        (lambda v: v.integers(), [3, "4"], r'f\[1\]: expected an integer from 0 to 9223372036854775807, got "4"'),
        (lambda v: v.integers(), [3, 4, -1], r"f\[2\]: expected an integer .*got -1"),
        (lambda v: v.integers(), [2**63], r"f\[0\]: expected an integer"),
        (lambda v: v.integers(), [False], r"f\[0\]: expected an integer .*got false"),
        (lambda v: v.sha256(), "A" * 64, "64 lower-case hexadecimal digits"),
        (lambda v: v.sha256(), "a" * 63, "64 lower-case hexadecimal digits"),
        (lambda v: v.sha256(), None, "a string, got null"),
        (lambda v: v.text(), ["x" * 500], r"xxx\.\.\."),
    ],
)
def test_a_value_of_another_kind_is_refused(read: Callable[[JsonValue], object], value: object, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        read(JsonValue(value, "f"))


def test_the_place_is_named() -> None:
    document = parse_json(b'{"weights": [{"shape": [1, "2"]}]}', "engine.json")
    shape = document.fields("weights")["weights"].array()[0].mapping()["shape"].array()
    assert shape[0].integer() == 1
    with pytest.raises(EngineError, match=r"^engine.json.weights\[0\].shape\[1\]: expected an integer"):
        shape[1].integer()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"NaN", b"[Infinity]", b"[" * 100_000, b"9" * 10_000, b"{} {}"],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(EngineError, match=r"^engine.json: expected JSON, got .") as caught:
        parse_json(data, "engine.json")
    assert "\n" not in str(caught.value)


def test_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text("[1, 2]")
    assert read_json(path, 6).value == [1, 2]
    with pytest.raises(EngineError, match="expected at most 5 bytes, got more"):
        read_json(path, 5)
    with pytest.raises(EngineError, match="expected a readable file, got No such file"):
        read_json(tmp_path / "other", 5)
