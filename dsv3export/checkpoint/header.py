"""Reading the header of a .safetensors file that may lie.

The file is: 8 bytes little-endian header length n, n bytes of JSON, then the data. The JSON maps each tensor's name to
its dtype, shape and data_offsets (start and end, relative to the data); the tensors fill the data without gap or
overlap. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dsv3export.config.json_file import check_regular_file, parse_json_object, shown
from dsv3export.dtypes import NUMPY, itemsize
from dsv3export.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_DIMS = 8


@dataclass(frozen=True)
class TensorInfo:
    """Where one stored tensor is. `dtype` is a safetensors name; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ShardHeader:
    """A header that was found to be consistent with itself and with the length of its file."""

    file: Path
    """Symbolic links are resolved."""
    size: int
    """Bytes of the file."""
    header_sha256: str
    """Digest of the length field and the JSON: any change of a tensor's place, dtype or shape changes it."""
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> ShardHeader:
    """Reads and checks the header of the .safetensors file at `path`; no tensor data is read.

    Raises:
        CheckpointError: The file is unreadable, truncated, or its header is inconsistent; names file and tensor.
    """
    check_regular_file(path, CheckpointError)
    prefix, size = _read_prefix(path)
    entries = parse_json_object(prefix[8:], f"{path}: header", CheckpointError, unique_keys=True)
    _check_metadata(path, entries.pop("__metadata__", {}))
    file = path.resolve()
    tensors = {name: _read_entry(path, file, name, entry, len(prefix)) for name, entry in entries.items()}
    _check_layout(path, list(tensors.values()), len(prefix), size)
    return ShardHeader(file, size, hashlib.sha256(prefix).hexdigest(), tensors)


def _read_prefix(path: Path) -> tuple[bytes, int]:
    """(length field and JSON, bytes of the file); the length is checked before that much is read."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            field = stream.read(8)
            length = int.from_bytes(field, "little")
            if len(field) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _wrong_length(path, size, length)
            json_text = stream.read(length)
    except OSError as bad:
        raise CheckpointError(str(path), expected="a readable file", got=bad.strerror or str(bad)) from None
    if not json_text.startswith(b"{"):
        raise CheckpointError(f"{path}: header", expected="a JSON object {...}", got=shown(repr(json_text[:16])))
    return field + json_text, size


def _wrong_length(path: Path, size: int, length: int) -> CheckpointError:
    if size < 8:
        got = f"a file of {size} bytes"
        return CheckpointError(str(path), expected="a .safetensors file", got=got, fix="Download it again")
    got = f"{length} in a file of {size} bytes"
    most = min(size - 8, MAX_HEADER_BYTES)
    fix = "The file is truncated or is no .safetensors file"
    return CheckpointError(f"{path}: header length", expected=f"at most {most}", got=got, fix=fix)


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        expected = "a JSON object with strings as values"
        raise CheckpointError(f"{path}: header: __metadata__", expected=expected, got=shown(metadata))


def _read_entry(path: Path, file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    what = f"{path}: tensor {shown(name, 120)}"
    if not isinstance(entry, dict):
        raise CheckpointError(what, expected="a JSON object with dtype, shape and data_offsets", got=shown(entry))
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in NUMPY:
        raise CheckpointError(f"{what}: dtype", expected=f"one of {', '.join(NUMPY)}", got=shown(dtype))
    if not _are_counts(shape) or len(shape) > _MAX_DIMS:
        expected = f"a list of at most {_MAX_DIMS} integers, none negative"
        raise CheckpointError(f"{what}: shape", expected=expected, got=shown(shape))
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        expected = "two integers, 0 <= start <= end"
        raise CheckpointError(f"{what}: data_offsets", expected=expected, got=shown(offsets))
    needed, nbytes = math.prod(shape) * itemsize(dtype), offsets[1] - offsets[0]
    if needed != nbytes:
        expected = f"{shown(needed)} bytes for {dtype} {shown(shape)}"
        raise CheckpointError(f"{what}: data_offsets", expected=expected, got=f"{shown(nbytes)} bytes")
    return TensorInfo(name, dtype, tuple(shape), file, data_start + offsets[0], nbytes)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**64 for item in value)


def _check_layout(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    """The tensors must fill the data exactly."""
    cut = [tensor.name for tensor in tensors if tensor.offset + tensor.nbytes > size]
    if cut:
        needed = max(tensor.offset + tensor.nbytes for tensor in tensors)
        raise CheckpointError(
            f"{path}: the file is truncated: {summary(cut)}",
            expected=f"{shown(needed)} bytes",
            got=f"{size}",
            fix="Download the file again",
        )
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            expected, got = f"{end - data_start}", f"{tensor.offset - data_start}"
            what = f"{path}: tensor {shown(tensor.name, 120)} {fault}: start"
            raise CheckpointError(what, expected=expected, got=got)
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(f"{path}: bytes after the last tensor", expected=f"{end} bytes in all", got=f"{size}")


def summary(names: Iterable[str], limit: int = 3) -> str:
    """The first `limit` names and how many more there are: ``"a", "b", "c" and 7 more``."""
    quoted = [shown(name, 120) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")
