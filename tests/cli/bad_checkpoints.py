"""Ways to spoil a copy of examples/tiny-dsv3, and what the error has to name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.altered import (
    add_tensor,
    drop_tensor,
    edit_bytes,
    edit_header,
    edit_json,
    edit_tensor,
    replace_file,
)
from tests.support.synthetic import framed

FIRST = "model-00001-of-000002.safetensors"
SECOND = "model-00002-of-000002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.0.input_layernorm.weight"
WEIGHT = "model.layers.0.mlp.down_proj.weight"
SCALE = f"{WEIGHT}_scale_inv"


@dataclass(frozen=True)
class BadCheckpoint:
    """`spoil` alters the folder; each text of `says` is in the one line that the program prints."""

    name: str
    spoil: Callable[[Path], object]
    says: tuple[str, ...]


def _field(tensor: str, key: str, value: object) -> Callable[[Path], None]:
    """A header that says something else about a tensor of the first shard."""
    return lambda folder: edit_header(folder / FIRST, lambda header: header[tensor].update({key: value}))


def _scale(value: float) -> Callable[[Path], None]:
    """A block scale of that value in the place of the first one."""
    return lambda folder: edit_tensor(folder / FIRST, SCALE, lambda data: struct.pack("<f", value) + data[4:])


def _raw_header(header: bytes) -> Callable[[Path], None]:
    return lambda folder: replace_file(folder / FIRST, framed(header) + bytes(64))


def _length(value: int) -> Callable[[Path], None]:
    """A header that claims to be `value` bytes long."""
    return lambda folder: edit_bytes(folder / FIRST, lambda data: value.to_bytes(8, "little") + data[8:])


def _map(tensor: str, file: str) -> Callable[[Path], None]:
    """An index that looks for a tensor in another file."""
    return lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].update({tensor: file}))


def _without(tensor: str) -> Callable[[Path], None]:
    """A checkpoint that lacks a tensor, in file and index alike."""

    def spoil(folder: Path) -> None:
        drop_tensor(folder / FIRST, tensor)
        edit_json(folder / INDEX, lambda index: index["weight_map"].pop(tensor))

    return spoil


def _with(tensor: str) -> Callable[[Path], None]:
    """A checkpoint with one tensor more, in file and index alike."""

    def spoil(folder: Path) -> None:
        add_tensor(folder / FIRST, tensor, "BF16", [2, 2], bytes(8))
        _map(tensor, FIRST)(folder)

    return spoil


def _in_place_of(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return spoil


def _twice(folder: Path) -> None:
    add_tensor(folder / SECOND, NORM, "BF16", [256], bytes(512))


def _overlap(folder: Path) -> None:
    """Two tensors of one size in one place: the file is then longer than the tensors."""
    edit_header(
        folder / FIRST,
        lambda header: header["model.layers.0.mlp.up_proj.weight"].update(
            data_offsets=header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"]
        ),
    )


BAD_CHECKPOINTS = (
    # files
    BadCheckpoint("truncated shard", lambda f: edit_bytes(f / FIRST, lambda data: data[:-1000]), (FIRST,)),
    BadCheckpoint("shard cut in its header", lambda f: edit_bytes(f / FIRST, lambda data: data[:100]), (FIRST,)),
    BadCheckpoint("shard of 3 bytes", lambda f: replace_file(f / FIRST, b"abc"), (FIRST,)),
    BadCheckpoint("empty shard", lambda f: replace_file(f / FIRST, b""), (FIRST,)),
    BadCheckpoint("bytes after the data", lambda f: edit_bytes(f / FIRST, lambda data: data + bytes(8)), (FIRST,)),
    BadCheckpoint("missing shard", lambda f: (f / SECOND).unlink(), (SECOND,)),
    BadCheckpoint("link to nothing", _in_place_of(SECOND, lambda p: p.symlink_to("gone")), (SECOND, "do not exist")),
    BadCheckpoint("folder as shard", _in_place_of(SECOND, Path.mkdir), (SECOND, "directory")),
    BadCheckpoint("no weights at all", lambda f: [(f / n).unlink() for n in (FIRST, SECOND, INDEX)], ("safetensors",)),
    BadCheckpoint("no config", lambda f: (f / "config.json").unlink(), ("config.json",)),
    BadCheckpoint("garbled config", lambda f: replace_file(f / "config.json", "{,}"), ("config.json", "JSON")),
    BadCheckpoint("config in UTF-16", lambda f: replace_file(f / "config.json", b"\xff\xfe{\0}\0"), ("UTF-8",)),
    # headers that lie
    BadCheckpoint("header of 2^63 bytes", _length(2**63), (FIRST,)),
    BadCheckpoint("header longer than the file", _length(10**8), (FIRST,)),
    BadCheckpoint("header is no JSON", _raw_header(b"{nonsense}"), (FIRST, "JSON")),
    BadCheckpoint("header is no UTF-8", _raw_header(b'{"\xff": 1}'), (FIRST, "UTF-8")),
    BadCheckpoint("header is a list", _raw_header(b"[1, 2]"), (FIRST, "object")),
    BadCheckpoint("header nests too deeply", _raw_header(b"[" * 100_000), (FIRST,)),
    BadCheckpoint("header with one name twice", _raw_header(b'{"a": {}, "a": {}}'), (FIRST, "twice")),
    BadCheckpoint("entry without dtype", lambda f: edit_header(f / FIRST, lambda h: h[NORM].pop("dtype")), (NORM,)),
    BadCheckpoint("offsets beyond the file", _field(NORM, "data_offsets", [0, 2**60]), (FIRST, NORM)),
    BadCheckpoint("offsets reversed", _field(NORM, "data_offsets", [512, 0]), (FIRST, NORM)),
    BadCheckpoint("negative offsets", _field(NORM, "data_offsets", [-512, 0]), (FIRST, NORM)),
    BadCheckpoint("offsets as text", _field(NORM, "data_offsets", ["0", "512"]), (FIRST, NORM)),
    BadCheckpoint("two tensors in one place", _overlap, (FIRST,)),
    BadCheckpoint("shape against offsets", _field(NORM, "shape", [255]), (FIRST, NORM)),
    BadCheckpoint("negative shape", _field(NORM, "shape", [-256]), (FIRST, NORM)),
    BadCheckpoint("shape that overflows", _field(NORM, "shape", [2**40, 2**40]), (FIRST, NORM)),
    BadCheckpoint("shape of 5000 dimensions", _field(NORM, "shape", [1] * 5000), (FIRST, NORM)),
    BadCheckpoint("unknown dtype", _field(NORM, "dtype", "Q7"), (FIRST, NORM, "Q7")),
    # tensors that are not what the config says
    BadCheckpoint("norm as integers", _field(NORM, "dtype", "I16"), (FIRST, NORM, "I16")),
    BadCheckpoint("FP8 weight as bytes", _field(WEIGHT, "dtype", "U8"), (FIRST, WEIGHT, "U8")),
    BadCheckpoint("scale as integers", _field(SCALE, "dtype", "I32"), (FIRST, SCALE, "I32")),
    BadCheckpoint("norm of two dimensions", _field(NORM, "shape", [16, 16]), (FIRST, NORM, "[16, 16]")),
    BadCheckpoint("transposed weight", _field(WEIGHT, "shape", [512, 256]), (FIRST, WEIGHT, "[512, 256]")),
    BadCheckpoint("transposed scale", _field(SCALE, "shape", [4, 2]), (FIRST, SCALE, "[4, 2]")),
    BadCheckpoint("missing tensor", _without(NORM), ("missing", NORM)),
    BadCheckpoint("missing scale", _without(SCALE), ("missing", SCALE)),
    BadCheckpoint("surplus tensor", _with("model.layers.0.mlp.extra.weight"), (FIRST, "model.layers.0.mlp.extra")),
    BadCheckpoint("surplus layer", _with("model.layers.9.input_layernorm.weight"), (FIRST, "layers.9", "layer 4")),
    BadCheckpoint("NaN scale", _scale(float("nan")), (FIRST, SCALE, "nan")),
    BadCheckpoint("infinite scale", _scale(float("inf")), (FIRST, SCALE, "inf")),
    BadCheckpoint("zero scale", _scale(0.0), (FIRST, SCALE, "0.0")),
    BadCheckpoint("negative scale", _scale(-1.0), (FIRST, SCALE, "-1.0")),
    # indexes
    BadCheckpoint("garbled index", lambda f: replace_file(f / INDEX, "{"), (INDEX, "JSON")),
    BadCheckpoint("index without weight_map", lambda f: replace_file(f / INDEX, json.dumps({})), (INDEX, "weight_map")),
    BadCheckpoint("index that leaves the folder", _map(NORM, f"../{FIRST}"), (INDEX, f"../{FIRST}")),
    BadCheckpoint("index with an absolute path", _map(NORM, "/etc/passwd"), (INDEX, "/etc/passwd")),
    BadCheckpoint("index names the wrong shard", _map(NORM, SECOND), (NORM,)),
    BadCheckpoint("index names what no file has", _map("model.bogus", FIRST), ("model.bogus",)),
    BadCheckpoint("one tensor in two shards", _twice, (NORM,)),
)  # fmt: skip
