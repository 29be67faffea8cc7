"""Headers that lie: each lie has one clear error, and no corruption gives anything but a `CheckpointError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3export.checkpoint.header import read_header
from dsv3export.errors import CheckpointError
from tests.support.synthetic import framed, safetensors_header, write_safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.zeros((0, 4), dtype=np.float16),
    "c": np.array(7, dtype=np.int64),
}
DATA = b"".join(array.tobytes() for array in TENSORS.values())


def test_a_good_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS)
    header = read_header(tmp_path / "x")
    start = header.size - len(DATA)
    infos = [(i.name, i.dtype, i.shape, i.offset - start, i.nbytes) for i in header.tensors.values()]
    assert infos == [("a", "F32", (2, 3), 0, 24), ("b", "F16", (0, 4), 24, 0), ("c", "I64", (), 24, 8)]
    assert {info.file for info in header.tensors.values()} == {(tmp_path / "x").resolve()}


def test_a_file_of_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(TENSORS, tmp_path / "x", metadata={"format": "np"})
    assert {name: info.shape for name, info in read_header(tmp_path / "x").tensors.items()} == {
        name: array.shape for name, array in TENSORS.items()
    }


def header_with(name: str, **changes: Any) -> dict[str, Any]:
    header = safetensors_header(TENSORS)
    header[name] = {**header[name], **changes}
    return header


BAD_HEADERS: list[tuple[dict[str, Any] | bytes, str]] = [
    (b"", "expected a JSON object {...}"),
    (b"[]", "expected a JSON object {...}"),
    (b' {"a": 1}', "expected a JSON object {...}"),
    (b'{"a": }', "expected valid JSON"),
    (b'{"a": "\xff"}', "expected UTF-8 text"),
    (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', "got NaN"),
    (b'{"a": 1, "a": 2}', 'got the key "a" twice'),
    (b'{"a": {"dtype": "F32", "dtype": "F16"}}', 'got the key "dtype" twice'),
    ({"a": 1}, 'tensor "a": expected a JSON object with dtype, shape and data_offsets, got 1'),
    ({"a": {}}, "dtype: expected one of"),
    ({"__metadata__": 1}, "__metadata__: expected a JSON object with strings as values, got 1"),
    ({"__metadata__": {"format": 1}}, "__metadata__"),
    (header_with("a", dtype="F31"), 'tensor "a": dtype: expected one of F64, F32, F16, BF16'),
    (header_with("a", dtype="F4"), 'got "F4"'),
    (header_with("a", dtype=["F32"]), 'got ["F32"]'),
    (header_with("a", shape=[2, -3]), "shape: expected a list of at most 8 integers, none negative, got [2, -3]"),
    (header_with("a", shape="23"), 'got "23"'),
    (header_with("a", shape=[2, 3.0]), "got [2, 3.0]"),
    (header_with("a", shape=[2, True]), "got [2, true]"),
    (header_with("a", shape=[2, 3] + [1] * 7), "shape: expected a list of at most 8"),
    (header_with("a", shape=[2, 10**4000]), "shape: expected a list"),
    (header_with("a", shape=[2**63, 2**63]), "data_offsets: expected 3402823669209384634"),
    (header_with("a", shape=[3, 3]), 'tensor "a": data_offsets: expected 36 bytes for F32 [3, 3], got 24 bytes'),
    (header_with("a", dtype="F16"), "expected 12 bytes for F16 [2, 3], got 24 bytes"),
    (header_with("a", data_offsets=[24, 0]), "data_offsets: expected two integers, 0 <= start <= end, got [24, 0]"),
    (header_with("a", data_offsets=[-24, 0]), "got [-24, 0]"),
    (header_with("a", data_offsets=[0]), "got [0]"),
    (header_with("a", data_offsets=None), "got null"),
    (header_with("a", data_offsets=[0, 24, 48]), "got [0, 24, 48]"),
    (header_with("c", data_offsets=[25, 33]), 'the file is truncated: "c"'),
    (header_with("c", data_offsets=[2**62, 2**62 + 8]), 'the file is truncated: "c": expected 46116860'),
    (header_with("c", data_offsets=[16, 24]), 'tensor "c" overlaps the tensor before it'),
    (header_with("b", data_offsets=[30, 30]), 'tensor "b" overlaps the tensor before it'),
    ({"a": header_with("a")["a"]}, "bytes after the last tensor"),
    ({"c": header_with("c")["c"]}, 'tensor "c" leaves a gap before it: start: expected 0, got 24'),
    ({}, "bytes after the last tensor"),
]


@pytest.mark.parametrize(("header", "says"), BAD_HEADERS, ids=[says for _, says in BAD_HEADERS])
def test_lies_are_named(tmp_path: Path, header: dict[str, Any] | bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(header) + DATA)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "expected a .safetensors file, got a file of 0 bytes"),
        (b"1234567", "got a file of 7 bytes"),
        (b"\xff" * 8, "header length: expected at most 0, got 18446744073709551615 in a file of 8 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "expected at most 2, got 1099511627776 in a file of 10 bytes"),
        (framed(safetensors_header(TENSORS))[:50], "header length"),
        (framed(safetensors_header(TENSORS)) + DATA[:-1], 'the file is truncated: "c": expected 240 bytes, got 239'),
        (framed(safetensors_header(TENSORS)), 'the file is truncated: "a", "b", "c": expected 240 bytes, got 208'),
        (framed(safetensors_header(TENSORS)) + DATA + b"\0", "bytes after the last tensor"),
        (b"PK\x03\x04" + b"\0" * 100, "is no .safetensors file"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert says in str(caught.value)


def test_a_header_longer_than_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)
    with pytest.raises(CheckpointError, match="header length: expected at most 100000000, got 1000000000"):
        read_header(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a file, got a directory"):
        read_header(tmp_path)


def survives(path: Path, data: bytes) -> None:
    """Reading `data` gives tensors that lie in the file, or a `CheckpointError` in one printable line."""
    path.write_bytes(data)
    message, ends = "", []
    try:
        ends = [info.offset + info.nbytes for info in read_header(path).tensors.values()]
    except CheckpointError as error:
        message = str(error)
    assert message.isprintable()
    assert max(ends, default=0) <= len(data)


FIXTURES_ARE_FINE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


@FIXTURES_ARE_FINE
@given(
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 400)
)
def test_random_corruption(tmp_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(framed(safetensors_header(TENSORS)) + DATA)
    for place, value in edits:
        data[place % len(data)] = value
    survives(tmp_path / "x.safetensors", bytes(data[: len(data) - cut] if cut % 3 == 0 else data))


@FIXTURES_ARE_FINE
@given(st.binary(max_size=60))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    survives(tmp_path / "x.safetensors", data)
    survives(tmp_path / "x.safetensors", framed(b"{" + data))


NUMBERS = st.integers() | st.integers(0, 40) | st.floats() | st.booleans() | st.none()
VALUES = NUMBERS | st.text(max_size=3) | st.sampled_from(["F32", "F16", "I64", "U8"]) | st.lists(NUMBERS, max_size=4)
ENTRIES = st.fixed_dictionaries({}, optional={"dtype": VALUES, "shape": VALUES, "data_offsets": VALUES, "x": VALUES})
HEADERS = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRIES | VALUES, max_size=3)


@FIXTURES_ARE_FINE
@given(header=HEADERS, start=st.sampled_from(["a", "b", "c"]), change=ENTRIES)
def test_random_headers(tmp_path: Path, header: dict[str, Any], start: str, change: dict[str, Any]) -> None:
    survives(tmp_path / "x.safetensors", framed(json.dumps(header).encode()) + DATA)
    survives(tmp_path / "x.safetensors", framed(json.dumps(header_with(start, **change)).encode()) + DATA)
