"""What a build intends to store, and how that lies in safetensors files, both known before a byte is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dsv3export.checkpoint import TensorInfo
from dsv3export.dtypes import itemsize
from dsv3export.errors import InternalError

SHARD_BYTES = 4_000_000_000
_HEADER_ALIGNMENT = 64


@dataclass(frozen=True)
class Region:
    """Rows and columns of a matrix, or items of a vector (which has no columns): the first and the one behind the last.

    None is all of them.
    """

    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor's part."""
        cuts = (self.rows, self.columns)[: len(whole)]
        return tuple(size if cut is None else cut[1] - cut[0] for size, cut in zip(whole, cuts, strict=True))


@dataclass(frozen=True)
class PlannedWeight:
    """One initializer of the graph.

    `name` is the initializer's name, `dtype` a safetensors dtype name, `sources` the checkpoint tensors it is made
    from and `transform` the name of the packing transform. `reference` are the tensors that, one after the other, are
    the array byte for byte, when it stays in the checkpoint; none when the build makes it. With a `region` it is these
    rows and columns of each of them. `folder` is that of the
    rank that it belongs to, relative to the engine; empty in an engine that one process runs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    transform: str
    reference: tuple[TensorInfo, ...] = ()
    folder: str = ""
    region: Region | None = None

    @property
    def key(self) -> str:
        """Tells it from the weights of the same name that other ranks have."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Shard:
    """A safetensors file to be written: its header, then its tensors back to back in this order."""

    file: str
    header: bytes
    weights: tuple[PlannedWeight, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(weight.nbytes for weight in self.weights)

    def offsets(self) -> Iterator[tuple[PlannedWeight, int]]:
        """Each weight and where its bytes start in the file."""
        offset = len(self.header)
        for weight in self.weights:
            yield weight, offset
            offset += weight.nbytes


def layout_shards(weights: Sequence[PlannedWeight], limit: int = SHARD_BYTES) -> list[Shard]:
    """The files of each folder: see `_layout_folder`."""
    folders: dict[str, list[PlannedWeight]] = {}
    for weight in weights:
        folders.setdefault(weight.folder, []).append(weight)
    return [shard for folder, members in folders.items() for shard in _layout_folder(folder, members, limit)]


def _layout_folder(folder: str, weights: Sequence[PlannedWeight], limit: int) -> list[Shard]:
    """Fills files of at most `limit` bytes of tensors in the given order; a larger tensor gets a file of its own.

    Where a tensor would not be aligned, as the safetensors format allows no gaps between tensors, the widest dtypes
    come first in that file; elsewhere the order stays, in which weights that are made together stand together.
    """
    names = {weight.name for weight in weights}
    if len(names) != len(weights):
        raise InternalError("two planned weights have the same name")
    groups: list[list[PlannedWeight]] = []
    room = 0
    for weight in weights:
        if not groups or weight.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(weight)
        room -= weight.nbytes
    place = f"{folder}/weights" if folder else "weights"
    return [_shard(f"{place}/model-{i:05d}.safetensors", group) for i, group in enumerate(groups, start=1)]


def _shard(file: str, group: list[PlannedWeight]) -> Shard:
    starts = accumulate((weight.nbytes for weight in group), initial=0)
    aligned = all(start % itemsize(weight.dtype) == 0 for weight, start in zip(group, starts, strict=False))
    weights = tuple(group if aligned else sorted(group, key=lambda weight: -itemsize(weight.dtype)))
    table: dict[str, object] = {}
    offset = 0
    for weight in weights:
        end = offset + weight.nbytes
        table[weight.name] = {"dtype": weight.dtype, "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _HEADER_ALIGNMENT)
    return Shard(file, len(text).to_bytes(8, "little") + text, weights)
